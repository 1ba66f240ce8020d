"""Query's page with groups and windows, and with 40 counters: query alone, over a Redis filled by the steps of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Page, expect

from compose.local.servers import Valkey
from shared_models import declarations
from shared_models.declarations import parse
from shared_models.protocol import steps
from tests.browser.conftest import NARROW, WIDE, barriers, screenshot
from tests.query.grouped import FILE, World
from tests.query.rolls_in_redis import Rolls
from tests.query.running import Running
from tests.servers import another_valkey

MANY = FILE + "".join(
    f'[counters.more_{n:02}]\ntable = "orders"\nmember = ["email"]\n' + ('last_seen = "created_at"\n' if n % 2 else "")
    for n in range(37)
)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    server = another_valkey("many", appendonly="no", save="")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def world(valkey: Valkey) -> Iterator[World]:
    """40 counters, all but one live, with some hundred members."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(declarations, "COUNTERS", parse(MANY)[1])
        with valkey.client() as client:
            world = World(Rolls(client))
            world.make_live()
            today = datetime.now(ZoneInfo("Europe/Berlin")).date()
            world.record("customers", *(((str(today - timedelta(days=n % 40)),), f"{n}") for n in range(400)))
            for n, state in enumerate(
                ["New York", "California", "", "Llanfairpwllgwyngyllgogerychwyrndrobwll <b>", "TX", "WA"]
            ):
                world.record("customers:state", *(((state,), f"{m}") for m in range(100 // (n + 1))))
            for n in range(37):
                if n != 5:
                    world.rolls.make_live(f"more_{n:02}", [])
            yield world


@pytest.fixture(scope="module")
def start(valkey: Valkey, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A factory: query with this file; its address."""
    running: list[Running] = []

    def start_one(text: str) -> str:
        folder = tmp_path_factory.mktemp("query")
        (folder / "rollcall.toml").write_text(text)
        running.append(Running(valkey.url, folder, ROLLCALL_FILE=str(folder / "rollcall.toml"), WORKERS="1"))
        return f"http://127.0.0.1:{running[-1].port}/"

    yield start_one
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def few(start: Callable[[str], str]) -> str:
    return start(FILE)


@pytest.fixture(scope="module")
def many(start: Callable[[str], str]) -> str:
    return start(MANY)


@pytest.mark.parametrize(("dark", "size"), [(False, WIDE), (True, NARROW)], ids=["light-wide", "dark-narrow"])
def test_groups_and_windows_are_shown_without_javascript(
    few: str, open_page: Callable[..., Page], dark: bool, size: tuple[int, int]
) -> None:
    page = open_page(dark=dark, size=size, javascript=False)
    page.goto(few)
    card = page.locator("[data-counter=customers]")
    expect(card.locator("[data-part=count]")).to_have_text("400")
    expect(card.locator(".windows dd")).to_have_text(["10", "70", "300"])
    bars = card.locator(".groups").first.locator("li")
    expect(bars).to_have_count(5)
    expect(bars.first).to_contain_text("New York")
    widths = [float(each.get_attribute("width") or 0) for each in bars.locator("rect").all()]
    assert widths == [100, 50, 33, 25, 20]
    expect(bars.nth(2)).to_contain_text("(empty)")
    expect(card.locator(".groups").first).to_contain_text("1 more")
    expect(page.get_by_role("searchbox")).to_have_count(0)
    screenshot(page, f"query-groups-{'narrow' if size == NARROW else 'wide'}")
    assert fits(page)


def test_groups_and_windows_move_too(few: str, world: World, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.clock.install()
    page.goto(few)
    expect(page.locator("[data-part=connection]")).to_have_text("Live")
    steps.record(world.client, {"customers:state": [b"TX\0" + b"%d" % n for n in range(500)]})
    page.clock.run_for(11_000)
    expect(page.locator(".groups").first.locator("li").first).to_contain_text("TX")
    assert barriers(page) == []


@pytest.mark.parametrize(
    ("dark", "size"), [(False, WIDE), (False, NARROW), (True, NARROW)], ids=["wide", "narrow", "dark"]
)
def test_forty_counters_are_a_table_that_can_be_searched(
    many: str, open_page: Callable[..., Page], dark: bool, size: tuple[int, int]
) -> None:
    page = open_page(size=size, dark=dark)
    page.goto(many)
    expect(page.locator("[data-part=connection]")).to_have_text("Live")
    expect(page.locator("tbody tr")).to_have_count(40)
    row = page.locator("[data-counter=customers]")
    expect(row.locator("[data-part=count]")).to_have_text("400")
    expect(row.locator(".window")).to_have_text(["10", "70", "300"])
    cold = page.locator("[data-counter=more_05]")
    expect(cold).to_contain_text("Cannot be counted now: it has not been built yet")
    assert barriers(page) == []
    assert fits(page)
    screenshot(page, f"query-many-{'dark' if dark else 'narrow' if size == NARROW else 'wide'}")

    page.get_by_role("searchbox").fill("more 1")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody tr")).to_have_count(10)
    page.get_by_role("searchbox").fill("buy")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("section.counter")).to_have_count(1)
    expect(page.get_by_role("search")).to_contain_text("1 of 40")
    page.get_by_label("email").fill("nobody")
    page.get_by_role("button", name="Is it counted?").click()
    expect(page.locator("output")).to_have_text("No, “nobody” is not counted.")
    page.get_by_role("link", name="all").click()
    page.get_by_role("link", name="more 01").click()
    expect(page.locator("[data-counter=more_01]")).to_have_count(1)
    page.get_by_role("searchbox").fill("nothing like this")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("main")).to_contain_text("No counter has")
    assert fits(page)


def test_a_question_within_a_search_is_answered_without_javascript(many: str, open_page: Callable[..., Page]) -> None:
    page = open_page(javascript=False)
    page.goto(f"{many}?find-counters=customers")
    page.get_by_label("email").fill("7")
    page.get_by_role("button", name="Is it counted?").click()
    expect(page.locator("output")).to_have_text("Yes, “7” is counted.")
    expect(page.locator("section.counter")).to_have_count(1)


def fits(page: Page) -> bool:
    """Nobody has to scroll to the right."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width <= 0
