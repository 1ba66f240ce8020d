"""The page of docs/examples, on a server of its own, unchanged except for query's port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from compose.local.stack import Stack
from tests.browser.conftest import barriers, screenshot
from tests.contract.test_docs import ROOT
from tests.system.asking import ask, count
from tests.system.test_examples import of_this_stack


@pytest.fixture
def elsewhere(live: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the page. Query lets pages of this origin read its answers; the next test has it as it was."""
    page = (ROOT / "docs" / "examples" / "live.html").read_text()
    (tmp_path / "live.html").write_text(of_this_stack(page, live))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("CORS_ORIGINS", origin)
        live.query.stop()
        live.query.start()
        yield f"{origin}/live.html"
        live.query.stop()
        server.shutdown()


def test_the_static_page_shows_a_number_that_moves(live: Stack, elsewhere: str, open_page: Callable[..., Page]) -> None:
    page = open_page(tolerate=rf"asked another host for {live.query.url}/v1/stream|favicon")
    page.goto(elsewhere)
    users = page.locator("[data-counter=users]")
    expect(page.get_by_role("status")).to_have_text("Live")
    before = count(live) or 0
    expect(users.locator("strong")).to_have_text(f"{before:,}")
    expect(users.locator("small")).to_contain_text("is counted")
    message = {"state": "NY", "city": "Ithaca", "username": "on the static page", "message": ""}
    assert ask(live.ingest, "POST", "/v1/messages", message)[1]["counted"]
    expect(users.locator("strong")).to_have_text(f"{before + 1:,}")
    assert barriers(page) == []
    screenshot(page, "example-live")
