"""Manage's console, as operators use it: in a browser, over a whole stack."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, expect
from redis import Redis

from compose.local.servers import read_secret
from compose.local.services import Web
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.browser.conftest import NARROW, WIDE, barriers, screenshot
from tests.servers import free_port, replay_paused, wait_for
from tests.system.asking import ask, mend

USERS = keys.of_counter("users").members
# A colour scheme and a size, by name.
LOOKS: dict[str, tuple[Literal["light", "dark"], tuple[int, int]]] = {
    "light": ("light", WIDE),
    "dark": ("dark", WIDE),
    "narrow": ("light", NARROW),
}
# Chromium's own message on its console when an answer is a refusal.
REFUSED = "Failed to load resource: the server responded with a status of 401"


@pytest.fixture(autouse=True)
def settled(live: Stack) -> None:
    """The keeper has verified every counter, and asks for no run: the newest run is the test's own. Members that other
    tests have deleted were repaired, and the last reconcile has found no drift."""

    def verified() -> bool:
        status = ask(live.manage, "GET", "/v1/status")[1]
        return not status["open_runs"] and all(counter["verified_at"] for counter in status["counters"].values())

    wait_for(verified, "every counter to be verified", seconds=60)
    mend(live)


@pytest.fixture
def redis(live: Stack) -> Iterator[Redis]:
    """Redis, for tests that make drift. Afterwards it is repaired."""
    with live.valkey.client() as client:
        yield client
    mend(live)


def log_in(page: Page, stack: Stack) -> None:
    page.goto(stack.manage.url)
    page.get_by_label("Token", exact=True).fill(read_secret(stack.manage.token_path))
    page.keyboard.press("Enter")
    expect(page.locator("[data-part=connection]")).to_have_text("Live")


def reads_well(page: Page, look: str, picture: str) -> None:
    """The present page is accessible to everybody, and no part of it is outside the window."""
    scheme, (width, height) = LOOKS[look]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    assert barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    screenshot(page, picture)


def counter(page: Page, name: str = "users") -> Locator:
    return page.locator(f"[data-counter={name}]")


def newest_run(page: Page) -> Locator:
    return page.locator("[data-part=runs] tr").first


def post(stack: Stack, *usernames: str) -> None:
    for username in usernames:
        message = {"state": "NY", "city": "Ithaca", "username": username, "message": ""}
        assert ask(stack.ingest, "POST", "/v1/messages", message)[1]["counted"]


def caught_up(stack: Stack) -> bool:
    """Whether the counter claims everything acknowledged: from then on removing a member from the set makes drift."""
    users = ask(stack.manage, "GET", "/v1/status")[1]["counters"]["users"]
    return users["cursor"] > users["watermark"]


def bring_about_drift(redis: Redis, extra: Sequence[str], missing: Sequence[str] = ()) -> None:
    """As if rows had been deleted and others written past everything. The size moves along: the keeper sees nothing to settle."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.sadd(USERS, *extra)
        if missing:
            pipe.srem(USERS, *missing)
        pipe.hincrby(keys.of_counter("users").intake, "size", len(extra) - len(missing))
        pipe.execute()


def runs(stack: Stack) -> list[dict[str, Any]]:
    return ask(stack.manage, "GET", "/v1/runs")[1]["runs"]


def get_without_token(stack: Stack, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", stack.manage.port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_page_is_open_and_what_it_shows_is_not(live: Stack) -> None:
    assert get_without_token(live, "/") == 200
    for path in ("/v1/status", "/v1/runs", "/v1/drift", "/metrics", "/index.html"):
        assert get_without_token(live, path) == 401, path


def test_a_wrong_token_says_so_and_the_right_one_stays_in_the_tab(live: Stack, open_page: Callable[..., Page]) -> None:
    page = open_page(tolerate=REFUSED)
    page.goto(live.manage.url)
    field, refusal = page.get_by_label("Token", exact=True), page.locator("[data-part=login-error]")
    expect(field).to_be_focused()
    for wrong in ("rollcall_nobody", "Authorization: né"):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(refusal).to_contain_text("not")
        expect(page.locator("[data-part=console]")).to_be_hidden()
    assert barriers(page) == []
    screenshot(page, "manage-login")
    field.fill(read_secret(live.ingest.token_path))
    page.get_by_role("button", name="Open the console").click()
    expect(refusal).to_contain_text("Manage has tokens of its own")

    log_in(page, live)
    page.reload()
    expect(page.locator("[data-part=connection]")).to_have_text("Live")
    assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    page.evaluate("for (const key of Object.keys(sessionStorage)) sessionStorage.setItem(key, 'rollcall_taken_out')")
    page.reload()
    expect(refusal).to_have_text("This token is not valid any more.")
    log_in(page, live)
    page.get_by_role("button", name="Forget the token").click()
    expect(field).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.locator("[data-part=console]")).to_be_hidden()


def test_no_token_is_asked_for_where_none_is_needed(live: Stack, page: Page) -> None:
    def variables() -> dict[str, str]:
        return live.keeper.variables() | {"AUTH": "off"}

    service = Web(live.folder / "open-manage", free_port(), variables, application="manage_service.asgi")
    try:
        service.start()
        page.goto(service.url)
        expect(page.locator("[data-part=connection]")).to_have_text("Live")
        expect(page.locator("[data-part=login]")).to_be_hidden()
        expect(page.get_by_role("button", name="Forget the token")).to_be_hidden()
        counter(page).get_by_role("button", name="Check users").click()
        expect(newest_run(page)).to_contain_text("check users")
        page.goto("about:blank")  # it asks once a second, and would miss the service
    finally:
        service.stop()


def test_how_everything_stands(live: Stack, page: Page) -> None:
    post(live, "console-ann")
    log_in(page, live)
    count = ask(live.manage, "GET", "/v1/status")[1]["counters"]["users"]["count"]
    expect(counter(page).locator("[data-part=count]")).to_have_text(f"{count:,}")
    expect(counter(page).locator("[data-part=state]")).to_have_text("live")
    for part in ("cursor", "horizon", "watermark"):
        expect(counter(page).locator(f"[data-part={part}]")).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("[data-part=keeper-words]")).to_contain_text(f"process {live.keeper.pid} on")
    expect(page.locator("[data-part=replica-words]")).to_contain_text("behind")


def test_drift_is_found_shown_with_its_members_and_mended(live: Stack, page: Page, redis: Redis) -> None:
    post(live, "console-lost", "console-kept")
    wait_for(lambda: caught_up(live), "the cursor to pass what was posted")
    hostile = "<img src=x onerror=alert(1)>\u202e"
    bring_about_drift(redis, extra=["console-ghost", hostile], missing=["console-lost"])
    log_in(page, live)
    counter(page).get_by_role("button", name="Check users").click()
    samples = counter(page).locator("[data-part=samples]")
    expect(counter(page).locator("[data-part=drift-words]")).to_have_text(
        "The last check, which repairs nothing: 1 missing, 2 extra"
    )
    expect(samples.locator(".missing bdi")).to_have_text(["console-lost"])
    expect(samples.locator(".extra")).to_contain_text("console-ghost")
    expect(samples.locator(".extra")).to_contain_text("<img src=x onerror=alert(1)>\\u{202e}")
    expect(newest_run(page)).to_contain_text("check users")
    expect(newest_run(page).locator(".pill")).to_have_text("done")
    expect(page.locator("[data-part=findings]")).to_contain_text("found 1 missing, 2 extra, and repaired nothing")
    expect(page.locator("[data-part=all-is-well]")).to_be_hidden()
    newest_run(page).locator("summary").click()
    expect(newest_run(page).locator(".samples .missing")).to_contain_text("console-lost")
    expect(counter(page).locator("svg .missing").last).to_be_attached()
    assert "1 missing, 2 extra" in (counter(page).locator("svg").get_attribute("aria-label") or "")
    assert barriers(page) == []
    screenshot(page, "manage-wide-light")

    counter(page).get_by_role("button", name="Repair users").click()
    expect(newest_run(page)).to_contain_text("repair users")
    mended = "1 member was missing and was added, 2 members left"
    expect(page.locator("[data-part=announcement]")).to_contain_text(f"The repair of users is done. users: {mended}")
    expect(counter(page).locator("[data-part=drift-words]")).to_have_text(f"The last repair: {mended}")
    expect(samples).to_contain_text("added (was missing): console-lost")
    expect(samples.locator(".extra")).to_contain_text("left (has no row any longer): ")
    expect(page.locator("[data-part=all-is-well]")).to_be_visible()
    assert barriers(page) == []
    screenshot(page, "manage-repaired")
    counter(page).get_by_role("button", name="Check users").click()
    expect(counter(page).locator("[data-part=drift-words]")).to_have_text("The last look: no drift")
    expect(samples).to_be_empty()
    assert not redis.sismember(USERS, "console-ghost") and redis.sismember(USERS, "console-lost")


def test_a_run_moves_on_the_page_and_another_one_is_cancelled(live: Stack, page: Page, redis: Redis) -> None:
    log_in(page, live)
    with replay_paused(live.replica):
        # It is recorded and not replayed: a run that suspects something has to wait for it.
        post(live, "console-unseen")
        bring_about_drift(redis, extra=["console-suspect"])
        counter(page).get_by_role("button", name="Repair users").click()
        expect(newest_run(page).locator(".pill")).to_have_text("running")
        expect(newest_run(page)).to_contain_text("waiting for the replica")
        expect(newest_run(page)).to_contain_text("it is behind")
        first = newest_run(page).get_attribute("data-run")
        page.get_by_role("button", name="Check all").click()
        expect(newest_run(page)).not_to_have_attribute("data-run", str(first))
        expect(newest_run(page).locator(".pill")).to_have_text("queued")
        screenshot(page, "manage-running")
        second = newest_run(page)
        second.get_by_role("button", name="Cancel").click()
        expect(second.locator(".pill")).to_have_text("stopping")
    watched = page.locator(f"[data-run='{first}']")
    expect(watched.locator(".pill")).to_have_text("done")
    expect(watched).to_contain_text("1 member left")
    expect(second.locator(".pill")).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert [run["status"] for run in runs(live)[:2]] == ["cancelled", "done"]


def test_what_is_wrong_is_said_with_why_a_counter_is_cold(live: Stack, page: Page, redis: Redis) -> None:
    live.keeper.stop()
    try:
        redis.sadd(USERS, "console-by-hand")
        redis.hset(keys.KEEPER, "ticked_at", 1_700_000_000_000_000)  # the keeper was last seen long ago
        log_in(page, live)
        expect(counter(page).locator("[data-part=reason]")).to_contain_text(
            "something other than Rollcall has changed it"
        )
        expect(page.locator("[data-part=findings] li")).to_have_count(2)
        expect(page.locator("[data-part=findings]")).to_contain_text("no keeper is at work")
        for look in LOOKS:
            reads_well(page, look, f"manage-wrong-{look}")
    finally:
        live.keeper.start()
    expect(page.locator("[data-part=all-is-well]")).to_be_visible()


def test_what_is_away_is_said_and_comes_back(live: Stack, open_page: Callable[..., Page]) -> None:
    page = open_page(tolerate="status of 503|ERR_CONNECTION_REFUSED")
    log_in(page, live)
    live.valkey.stop()
    expect(page.locator("[data-part=connection]")).to_contain_text("Redis")
    counter(page).get_by_role("button", name="Check users").click()
    expect(page.locator("[data-part=refusal]")).to_contain_text("Not done: runs and the state of counters are in Redis")
    live.valkey.start()
    expect(page.locator("[data-part=connection]")).to_have_text("Live")


def test_it_reads_well_in_the_dark_and_on_a_telephone(live: Stack, page: Page) -> None:
    log_in(page, live)
    expect(newest_run(page)).to_be_visible()
    for look in ("dark", "narrow"):
        reads_well(page, look, f"manage-{look}")


def test_the_keyboard_reaches_everything(live: Stack, page: Page) -> None:
    log_in(page, live)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert {"Check all", "Repair all", "Check cities", "Repair cities", "Check users", "Repair users"} <= reached
