"""A whole stack, and a real browser in front of it: chromium, driven by Playwright.

A page that a test opens is listened to. When the test ends it fails where the page has written an error to the console, has
let an exception go, or has asked another host than its own for anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from tests.browser import chromium

# The stack is the same as the one of tests/system: pytest finds fixtures by their names here.
from tests.system.conftest import live as live
from tests.system.conftest import stack as stack

# For people to look at. Not in git.
SCREENSHOTS = Path(__file__).parent / "screenshots"

WIDE, NARROW = (1200, 800), (390, 844)

# For anything that a page does; well under a second as a rule.
PATIENCE_SECONDS = 15.0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One chromium for the tests of this folder."""
    program = chromium.find()
    if program is None:
        pytest.fail(
            "there is no chromium on this machine that starts: `python -m tests.browser.chromium` gets one, or says what "
            "to do; `make check` has tried that",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        # A process for all pages, and none kept in reserve for the next one: to start one takes half a second.
        arguments = [
            "--renderer-process-limit=1",
            "--disable-features=SpareRendererForSitePerProcess,IsolateOrigins,site-per-process",
        ]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # its sandbox refuses to work for root
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        yield browser
        browser.close()


class Visit:
    """One page, and all that is wrong with how it behaves."""

    def __init__(self, context: BrowserContext, tolerate: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_SECONDS * 1000)
        self.tolerate = re.compile(tolerate) if tolerate else None
        self.faults: list[str] = []
        self.page.on("console", lambda said: self.note(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on("request", self.note_request)

    def note(self, fault: str) -> None:
        if self.tolerate is None or not self.tolerate.search(fault):
            self.faults.append(fault)

    def note_request(self, request: Request) -> None:
        """Where the test itself goes is its own affair; what a page asks for has to be its own host's."""
        asked, own = urlsplit(request.url), urlsplit(request.frame.url)
        if not request.is_navigation_request() and (asked.scheme, asked.netloc) != (own.scheme, own.netloc):
            self.note(f"{request.frame.url} asked another host for {request.url}")


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A factory of pages: `open_page(dark=True, size=NARROW, javascript=False, headers={…}, tolerate="a pattern")`.

    `tolerate` is for what the test itself brings about: a fault that it matches is none. Each page is a
    visitor of its own, who shares no cookie and no cache with another one.
    """
    visits: list[Visit] = []

    def open_one(
        *,
        dark: bool = False,
        size: tuple[int, int] = WIDE,
        javascript: bool = True,
        headers: dict[str, str] | None = None,
        tolerate: str = "",
    ) -> Page:
        context = browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": size[0], "height": size[1]},
            java_script_enabled=javascript,
            extra_http_headers=headers,
            locale="en-US",
            timezone_id="UTC",
        )
        visits.append(Visit(context, tolerate))
        return visits[-1].page

    yield open_one
    for visit in visits:
        visit.page.context.close()
    assert [fault for visit in visits for fault in visit.faults] == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """An ordinary page: light, wide, with JavaScript."""
    return open_page()


def screenshot(page: Page, name: str) -> Path:
    """A picture of the whole page, for a person to look at: tests/browser/screenshots/<name>.png"""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.wait_for_load_state()  # between two pages there is nothing to see, and chromium says so
    page.screenshot(path=path, full_page=True, animations="disabled")
    return path


def barriers(page: Page) -> list[str]:
    """What keeps people out, as axe finds it: everything that it calls serious or critical, with where it is."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['impact']}: {each['id']}: {each['help']}: {', '.join(str(node['target']) for node in each['nodes'])}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
