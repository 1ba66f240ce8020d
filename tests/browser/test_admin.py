"""Ingest's admin as an operator uses it: signing in, searching, looking, deleting; it loads nothing from other hosts."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from compose.local.servers import read_secret
from compose.local.stack import Stack
from tests.browser.conftest import screenshot
from tests.system.asking import ask


def test_an_operator_finds_rows_and_deletes_one(live: Stack, open_page: Callable[..., Page]) -> None:
    people = [f"admin-{number}" for number in range(3)]
    for person in people:
        row = {"state": "NY", "city": "Ithaca", "username": person, "message": "hello"}
        assert ask(live.ingest, "POST", "/v1/messages", row)[0] == 201
    page = open_page()
    page.goto(live.ingest.admin_url)
    page.get_by_label("Username").fill(live.ingest.first_user)
    page.get_by_label("Password").fill(read_secret(live.ingest.admin_password_path))
    page.get_by_role("button", name="Log in").click()
    page.locator("#content").get_by_role("link", name="Messages", exact=True).click()
    page.locator("#id_users-username").fill("admin-")
    page.locator("#id_users-username").press("Enter")
    cells = page.locator("#result_list .field-username")
    expect(cells).to_have_text(people)
    screenshot(page, "admin-list")
    page.get_by_role("checkbox").nth(3).check()  # behind the two "exactly", and the one for all
    page.get_by_label("Action:").select_option("delete_selected")
    page.get_by_role("button", name="Go").click()
    sure = page.get_by_role("button", name="Yes, I’m sure")
    expect(sure).to_be_visible()
    screenshot(page, "admin-delete")
    sure.click()
    expect(page.get_by_text("Successfully deleted 1 message.")).to_be_visible()
    expect(cells).to_have_text(people[1:])
    page.get_by_role("link", name="Log entries").first.click()
    expect(page.locator("#result_list")).to_contain_text("message")
    screenshot(page, "admin-log")
