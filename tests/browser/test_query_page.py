"""Query's page, as people meet it: in a browser, over a whole stack."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from compose.stack import Stack
from tests.browser.conftest import screenshot
from tests.system.asking import ask


def message(username: str, city: str = "Ithaca") -> dict[str, str]:
    return {"state": "NY", "city": city, "username": username, "message": "hello"}


def test_the_numbers_move_when_messages_are_posted(live: Stack, page: Page) -> None:
    page.goto(live.query.url)
    users = page.locator("[data-counter=users] [data-part=count]")
    expect(page.locator("[data-part=connection]")).to_have_text("Live")
    before = int(users.inner_text().replace(",", ""))
    for n in range(3):
        assert ask(live.ingest, "POST", "/v1/messages", message(f"moves-{n}"))[1]["counted"]
    expect(users).to_have_text(f"{before + 3:,}")
    screenshot(page, "query-wide-light")
