"""Query's page with groups and windows, and with 40 counters, and manage's console: each alone, over a Redis filled by the steps
of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Page, expect

from compose.local.servers import Valkey
from shared_models import declarations
from shared_models.declarations import parse
from shared_models.protocol import keys, steps
from tests.browser.conftest import NARROW, WIDE, barriers, screenshot
from tests.query.grouped import FILE, World
from tests.query.rolls_in_redis import Rolls
from tests.query.running import Running
from tests.servers import another_valkey, free_port

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
    """A factory: query, or another service, with this file; its address."""
    running: list[Running] = []

    def start_one(text: str, **other: Any) -> str:
        folder = tmp_path_factory.mktemp("service")
        (folder / "rollcall.toml").write_text(text)
        running.append(Running(valkey.url, folder, ROLLCALL_FILE=str(folder / "rollcall.toml"), WORKERS="1", **other))
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


@pytest.fixture(scope="module")
def manage(start: Callable[..., str]) -> str:
    """Manage without a replica; nobody executes its runs."""
    nowhere = f"postgres://x@127.0.0.1:{free_port()}/x"
    return start(FILE, configuration="manage_service/gunicorn.conf.py", DATABASE_URL=nowhere, AUTH="off")


@pytest.mark.parametrize(("dark", "size"), [(False, WIDE), (True, NARROW)], ids=["light-wide", "dark-narrow"])
def test_the_console_has_the_groupings_below_their_total(
    manage: str, world: World, open_page: Callable[..., Page], dark: bool, size: tuple[int, int]
) -> None:
    broken = keys.of_counter("customers:shop").broken
    world.client.hset(broken, "1", "token")
    page = open_page(dark=dark, size=size)
    page.goto(manage)
    expect(page.locator("[data-part=connection]")).to_have_text("Live")
    card = page.locator("[data-counter=customers]")
    expect(card.locator("[data-part=days]")).to_have_text("40 different days")
    expect(card.locator("summary")).to_have_text("6 groupings, 1 not live")
    by_shop, by_state = (page.locator(f"[data-grouping='customers:{by}']") for by in ("shop", "state"))
    expect(by_shop.locator(".pill")).to_have_text("1 cold")
    expect(by_state.locator(".pill")).to_have_text("live")
    groups, members = (world.client.zcard(keys.of_counter("customers:state").members), elements_of(world))
    expect(by_state.locator(".words")).to_contain_text(f"{members} in {groups} groups · complete to")
    assert barriers(page) == []
    assert fits(page)
    screenshot(page, f"manage-groupings-{'narrow' if size == NARROW else 'wide'}")
    card.locator("summary").click()
    expect(by_state).to_be_hidden()
    card.locator("summary").click()

    page.get_by_role("button", name="Check customers by state", exact=True).click()
    expect(page.locator("[data-part=runs] tr").first).to_contain_text("check customers by state")
    card.get_by_role("button", name="Check customers", exact=True).click()
    expect(page.locator("[data-part=runs] tr").first).to_contain_text("check customers with 6 groupings")
    page.get_by_role("button", name="Check all").click()
    expect(page.locator("[data-part=runs] tr").first).to_contain_text(
        "check customers with 6 groupings, buyers with 2 groupings, shops"
    )
    world.client.delete(broken, *world.client.scan_iter(f"{keys.RUNS}*"))


def elements_of(world: World) -> int:
    return int(world.client.hget(keys.of_counter("customers:state").intake, "elements") or 0)


def fits(page: Page) -> bool:
    """Nobody has to scroll to the right."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width <= 0
