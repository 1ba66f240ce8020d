"""`/docs` of each service, as a reader uses it: "Try it out" with the unchanged example, and nothing from another host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from compose.local.servers import read_secret
from compose.local.services import Web
from compose.local.stack import Stack
from tests.browser.conftest import SCREENSHOTS


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("ingest", "/v1/messages/batch", "200"),
        pytest.param("manage", "/v1/runs", "202", marks=pytest.mark.long),
        pytest.param("query", "/v1/counts/{counter}/members", "200", marks=pytest.mark.long),
    ],
)
def test_an_example_is_tried_out_as_it_stands(
    live: Stack, open_page: Callable[..., Page], name: str, path: str, status: str
) -> None:
    service: Web = getattr(live, name)
    page = open_page()
    page.goto(f"{service.url}/docs")
    if service.token_path.exists():
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container input").fill(read_secret(service.token_path))
        page.locator(".auth-container").get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").click()
    operation = page.locator(".opblock").filter(has=page.locator(f'[data-path="{path}"]')).first
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    answered = operation.locator(".live-responses-table .response-col_status").nth(1)
    expect(answered).to_contain_text(status)
    SCREENSHOTS.mkdir(exist_ok=True)
    operation.screenshot(path=SCREENSHOTS / f"docs-{name}-{path.rpartition('/')[2]}.png")
