"""Query's page, as people use it: in a browser, over a whole stack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Response, expect

from compose.local.stack import Stack
from shared_models import declarations
from shared_models.protocol import keys, samples
from shared_models.protocol.samples import MOST, SAMPLE_SECONDS, Sample
from tests.browser.conftest import NARROW, WIDE, barriers, screenshot
from tests.servers import sql, wait_for
from tests.system.asking import ask, count, mend

# What chromium writes to the console when a test has taken the service away.
GONE = r"Failed to load resource"


def message(username: str, city: str = "Ithaca") -> dict[str, str]:
    return {"state": "NY", "city": city, "username": username, "message": "hello"}


def post(live: Stack, *usernames: str, city: str = "Ithaca") -> None:
    status, answer = ask(live.ingest, "POST", "/v1/messages/batch", [message(name, city) for name in usernames])
    assert (status, answer["accepted"], answer["counted"]) == (200, len(usernames), True)


def finished_at(live: Stack, run: str) -> Any:
    return ask(live.manage, "GET", f"/v1/runs/{run}")[1]["finished_at"]


def visit(live: Stack, page: Page) -> Page:
    page.goto(live.query.url)
    return page


def part(page: Page, name: str, counter: str = "users") -> Locator:
    return page.locator(f"[data-counter={counter}] [data-part={name}]")


def connection(page: Page) -> Locator:
    return page.locator("[data-part=connection]")


@pytest.fixture
def an_hour(live: Stack) -> Iterator[None]:
    """Samples of a whole hour, as a keeper takes them, with a gap of ten minutes in the middle."""
    now = datetime.now(UTC)
    with live.valkey.client() as client:
        pipe = client.pipeline()
        for counter in declarations.COUNTERS:
            pipe.delete(keys.of_counter(counter.name).samples)
            total = count(live, counter.name) or 0
            for n in range(MOST):
                if not MOST // 2 < n < MOST // 2 + 60:
                    at = now - timedelta(seconds=SAMPLE_SECONDS * (MOST - n))
                    samples.queue_sample(pipe, counter.name, Sample(at, total * (n + 200) // (MOST + 200)))
        pipe.execute()
        yield
        client.delete(*(keys.of_counter(counter.name).samples for counter in declarations.COUNTERS))


def test_the_numbers_move_when_messages_are_posted(live: Stack, page: Page) -> None:
    visit(live, page)
    expect(connection(page)).to_have_text("Live")
    before = int(part(page, "count").inner_text().replace(",", ""))
    post(live, *(f"moves-{n}" for n in range(3)))
    expect(part(page, "count")).to_have_text(f"{before + 3:,}")


def test_freshness_and_verification_are_told_in_words(live: Stack, page: Page) -> None:
    visit(live, page)
    expect(part(page, "freshness")).to_have_text(
        re.compile(r"^complete to \d+(\.\d)? s ago, verified .+ ago, no drift$")
    )


@pytest.mark.parametrize(("dark", "size"), [(False, WIDE), (True, NARROW)], ids=["light-wide", "dark-narrow"])
def test_what_a_repair_has_mended_is_told_and_what_a_check_has_found(
    live: Stack, open_page: Callable[..., Page], dark: bool, size: tuple[int, int]
) -> None:
    page, users = visit(live, open_page(dark=dark, size=size)), keys.of_counter("users").members
    with live.valkey.client() as client:
        pipe = client.pipeline(transaction=True)
        pipe.sadd(users, "ghost")
        pipe.hincrby(keys.of_counter("users").intake, "size", 1)  # as if its row had been deleted since
        pipe.execute()
    for mode, words in (
        ("check", r"^complete to .+ ago, verified .+ ago, drift: 1 extra$"),
        ("repair", r"^complete to .+ ago, 1 member left, verified .+ ago$"),
    ):
        run = ask(live.manage, "POST", "/v1/runs", {"counters": ["users"], "mode": mode})[1]
        wait_for(partial(finished_at, live, run["id"]), f"the {mode}")
        expect(part(page, "freshness")).to_have_text(re.compile(words))
        screenshot(page, f"query-{mode}-{'narrow' if size == NARROW else 'wide'}-{'dark' if dark else 'light'}")
    mend(live)


def test_the_page_says_why_a_counter_has_no_count(live: Stack, page: Page) -> None:
    live.keeper.stop()
    with live.valkey.client() as client:
        client.sadd(keys.of_counter("users").members, "by hand")
    visit(live, page)
    expect(part(page, "building")).to_contain_text("Cannot be counted now: its set has")
    expect(part(page, "progress")).to_be_hidden()
    assert barriers(page) == []
    screenshot(page, "query-changed")
    live.keeper.start()
    expect(part(page, "building")).to_be_hidden()
    mend(live)


def test_the_page_says_since_when_it_is_stale_and_goes_on_by_itself(
    live: Stack, open_page: Callable[..., Page]
) -> None:
    page = visit(live, open_page(tolerate=GONE))
    expect(connection(page)).to_have_text("Live")
    live.query.kill()
    expect(connection(page)).to_have_text(re.compile(r"stale since \d\d:\d\d:\d\d"))
    expect(page.locator("[data-counter=users]")).to_have_attribute("data-state", "stale")
    screenshot(page, "query-stale")
    live.query.start()
    expect(connection(page)).to_have_text("Live")
    expect(page.locator("[data-counter=users]")).to_have_attribute("data-state", "live")


def test_a_stream_that_leads_nowhere_is_noticed(live: Stack, page: Page) -> None:
    page.clock.install()
    visit(live, page)
    expect(connection(page)).to_have_text("Live")
    master = live.query.running()
    assert master is not None
    frozen = [master, *master.children(recursive=True)]
    try:
        for process in frozen:
            process.suspend()  # the connection stays: nothing tells the browser
        page.clock.fast_forward(61_000)
        page.clock.fast_forward(2_000)
        expect(connection(page)).to_have_text(re.compile(r"stale since \d\d:\d\d:\d\d"))
    finally:
        for process in frozen:
            process.resume()
    expect(connection(page)).to_have_text("Live")


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without"])
def test_a_member_is_looked_up(live: Stack, open_page: Callable[..., Page], javascript: bool) -> None:
    post(live, "ann & <b>bob</b>")
    page = visit(live, open_page(javascript=javascript))
    users, cities = page.locator("[data-counter=users]"), page.locator("[data-counter=cities]")
    users.get_by_label("Username").fill("ann & <b>bob</b>")
    users.get_by_role("button").click()
    expect(part(page, "answer")).to_have_text("Yes, “ann & <b>bob</b>” is counted.")
    users.get_by_label("Username").fill("nobody")
    users.get_by_label("Username").press("Enter")
    expect(part(page, "answer")).to_have_text("No, “nobody” is not counted.")
    cities.get_by_label("State").fill("NY")
    cities.get_by_label("City").fill("Ithaca")
    cities.get_by_role("button").click()
    expect(part(page, "answer", "cities")).to_have_text("Yes, “NY, Ithaca” is counted.")


def test_a_cold_counter_says_that_it_is_being_built(live: Stack, page: Page) -> None:
    at = keys.of_counter("users")
    live.keeper.stop()
    with live.valkey.client() as client:
        client.delete(at.state, at.members)
        client.hset(at.fill, mapping={"token": "none", "read": 1500, "expected": 6000})
        visit(live, page)
        expect(part(page, "count")).to_have_text("—")
        expect(part(page, "building")).to_have_text(re.compile("Being built: 1,500 of about 6,000 members"))
        expect(page.get_by_role("progressbar", name="users")).to_have_js_property("position", 0.25)
        screenshot(page, "query-cold")
        client.delete(at.fill)
    live.keeper.start()
    expect(part(page, "building")).to_be_hidden()
    ((rows,),) = sql(live.primary, "SELECT count(DISTINCT username) FROM message")
    expect(part(page, "count")).to_have_text(f"{rows:,}")


def stretches(page: Page, counter: str = "users") -> list[str]:
    """The parts of a chart's line, between its gaps."""
    path = part(page, "chart", counter).locator("path").get_attribute("d") or ""
    return [stretch for stretch in path.split("M") if stretch]


def test_the_last_hour_is_drawn_with_its_gap_and_grows(
    live: Stack, an_hour: None, open_page: Callable[..., Page]
) -> None:
    still = visit(live, open_page(javascript=False))
    assert len(stretches(still)) == 2
    page = visit(live, open_page())
    expect(connection(page)).to_have_text("Live")
    drawn, before = stretches(page), count(live) or 0
    assert len(drawn) == 2
    post(live, *(f"grows-{n}" for n in range(50)))
    expect(part(page, "high")).to_have_text(f"{before + 50:,}")
    assert stretches(page) != drawn and len(stretches(page)) == 2
    expect(part(page, "chart").get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"The last hour: between [\d,]+ and [\d,]+")
    )


def test_the_numbers_are_there_without_javascript(live: Stack, open_page: Callable[..., Page]) -> None:
    page = visit(live, open_page(javascript=False))
    expect(part(page, "count")).to_have_text(f"{count(live):,}")
    expect(part(page, "freshness")).to_have_text(re.compile("complete to .+ UTC, verified .+ UTC, no drift"))


def test_the_page_is_small_and_asks_its_own_host_only(live: Stack, an_hour: None, page: Page) -> None:
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    visit(live, page)
    expect(connection(page)).to_have_text("Live")
    page.wait_for_load_state("load")

    def both_are_drawn() -> bool:
        page.wait_for_timeout(50)  # playwright hears of answers only while it is asked something
        return sum("/history" in answer.url for answer in answers) == 2

    wait_for(both_are_drawn)
    whole = [answer for answer in answers if not answer.url.endswith("/v1/stream")]
    size_bytes = sum(len(answer.body()) + len(str(answer.headers)) for answer in whole)
    assert 10_000 < size_bytes < 60_000


@pytest.mark.parametrize(("dark", "size"), [(False, WIDE), (True, NARROW)], ids=["light-wide", "dark-narrow"])
def test_nobody_is_kept_out(
    live: Stack, an_hour: None, open_page: Callable[..., Page], dark: bool, size: tuple[int, int]
) -> None:
    page = visit(live, open_page(dark=dark, size=size))
    expect(connection(page)).to_have_text("Live")
    page.get_by_label("Username").fill("nobody")
    page.get_by_label("Username").press("Enter")
    expect(part(page, "answer")).not_to_be_empty()
    assert barriers(page) == []
    screenshot(page, f"query-{'narrow' if size == NARROW else 'wide'}-{'dark' if dark else 'light'}")
    # Nothing has to be scrolled sideways.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_everything_is_reached_with_the_keyboard(live: Stack, page: Page) -> None:
    visit(live, page)
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
    assert reached == ["state", "city", "is-one-of", "username", "is-one-of", "JSON", "Events", "API"]
