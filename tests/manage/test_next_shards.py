"""More shards for a counter: built next to the present ones, then switched to. Each actor at each step is the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.management import call_command

from ingest_service.writing.departures import KEEP_BYTES, PRUNE, PRUNE_ROWS
from manage_service.keeper.loop import Keeper
from manage_service.keeper.sampling import take_samples
from manage_service.runs import registry
from manage_service.runs.registry import Mode
from manage_service.site.console import describe
from manage_service.status.judging import Limits
from manage_service.status.report import read_status
from manage_service.status.schemas import StatusReport
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.protocol import elements, keys, steps
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.grouped import SMALL, in_redis, in_table, is_exact, orders
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World

PRESENT = SMALL + "shards = 2\n"
BOTH = PRESENT + "next_shards = 4\n"
SWITCHED = SMALL + "shards = 4\n"
NEXT = ["customers@4", "customers@4:country"]
ROWS = """
    INSERT INTO shop.orders (email, country, created_at)
    SELECT 'user ' || i %% 70, 'country ' || i %% 3, timestamptz '2024-01-01 00:00Z' + i * interval '37 min'
    FROM generate_series(1, 200) AS i
"""


@pytest.fixture
def shop(world: World) -> Iterator[World]:
    """An adopted table whose counter has two shards."""
    with orders(world, PRESENT):
        world.ask_primary(ROWS)
        world.replay()
        yield world


@pytest.fixture
def keeper(shop: World) -> Iterator[Keeper]:
    """A keeper that has built everything."""
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: is_exact(shop), "the builds")
        yield keeper


def declare(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """As if this process had been restarted with another file."""
    monkeypatch.setattr(declarations, "COUNTERS", declarations.parse(lines)[1])


def record(world: World, email: str, knows: tuple[Counter, ...]) -> None:
    """As ingest: a row, and its elements in the counters that this ingest knows."""
    insert = "INSERT INTO shop.orders (email, country, created_at) VALUES (%s, 'DE', '2024-05-05 12:00Z')"
    ((xact, source),) = world.ask_primary(f"{insert} RETURNING xact, ({SOURCE_SQL})", email)
    values = {"email": email, "country": "DE", "created_at": "2024-05-05"}
    for counter in knows:
        row = tuple(values[each.column] for each in counter.terms)
        for part, some in elements.by_part(counter, elements.encode_all(counter, [row])):
            steps.record(world.redis, {part.name: some}, xact, source)


def status(world: World) -> StatusReport:
    return read_status(world.nodes, world.replica, Limits.of(1.0, 3600.0))


def test_a_counter_has_more_shards_without_a_cold_moment(
    shop: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every count on the way is what the table has, also with an ingest that does not know the next shards yet."""
    declare(monkeypatch, BOTH)
    present = declarations.derived()

    def are_exact(counters: tuple[Counter, ...]) -> bool:
        return all(in_redis(shop, each) == in_table(shop, each) for each in counters)

    at_first = status(shop)
    assert {name: each.state for name, each in at_first.counters.items()} == {
        **dict.fromkeys(["customers", "customers:country"], "live"),
        **dict.fromkeys(NEXT, "cold"),
    }
    assert at_first.counters["customers@4:country"].next_of == "customers:country"
    assert not [each for each in at_first.findings if each.about in NEXT], (
        "query does not read them yet: this is no fault"
    )

    written = 0

    def a_moment() -> bool:
        """Rows come and go during the builds, and the present counters are right all the time."""
        nonlocal written
        written += 1
        record(shop, f"new {written}", present if written % 2 else declarations.kept())
        assert are_exact(present) and all(status(shop).counters[each.name].state == "live" for each in present)
        return all(status(shop).counters[name].state == "live" for name in NEXT)

    tick_until(keeper, a_moment, "the next shards to be built")
    shop.ask_primary("DELETE FROM shop.orders WHERE email = 'user 7'")
    shop.replay()
    tick_until(keeper, lambda: is_exact(shop), "departures from both")
    record(shop, "after the builds", declarations.kept())
    take_samples(shop.nodes)
    assert [describe(each)["title"] for each in declarations.totals()] == ["customers", "customers, next: 4 shards"]

    declare(monkeypatch, SWITCHED)
    found = status(shop)
    assert {name: each.state for name, each in found.counters.items()} == {
        "customers": "live",
        "customers:country": "live",
    }
    assert are_exact(declarations.derived()), "before any tick"
    assert shop.redis.llen(keys.of_samples("customers")) > 0, "the chart goes on"
    call_command("orphans", "--remove")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("customers") and line.endswith("done=removed") for line in lines)
    shop.replay()
    tick_until(keeper, lambda: is_exact(shop))


def test_what_the_next_shards_lack_is_caught_up_before_they_are_complete(
    shop: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ingest with the older file writes on and on, also after the builds: for the next shards it is an SQL client."""
    present = declarations.derived()
    declare(monkeypatch, BOTH)
    tick_until(keeper, lambda: is_exact(shop), "the builds")
    record(shop, "from an older ingest", present)
    ((committed_at,),) = shop.ask_primary("SELECT clock_timestamp()")
    following = declarations.get_counter("customers@4")
    assert in_redis(shop, following) != in_table(shop, following)
    assert all((status(shop).counters[name].complete_through or committed_at) <= committed_at for name in NEXT)
    shop.replay()
    tick_until(keeper, lambda: is_exact(shop), "the pass")


def test_damage_to_the_next_shards_is_found_before_query_reads_them(
    shop: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, BOTH)
    tick_until(keeper, lambda: is_exact(shop), "the builds")
    following = declarations.get_counter("customers@4:country")
    at = keys.of_counter(following.parts[1].name)
    shop.redis.spop(at.group(shop.redis.hget(at.intake, "generation"), b"country 1"))
    assert in_redis(shop, following, whole=False) != in_table(shop, following)
    tick_until(keeper, lambda: in_redis(shop, following, whole=False) == in_table(shop, following), "the group")


@pytest.mark.parametrize("are_pruned", [False, True], ids=["noted", "pruned"])
def test_shards_that_were_left_behind_catch_up_exactly(
    shop: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, are_pruned: bool
) -> None:
    """next_shards is removed, and put back later. Meanwhile rows came, changed and left."""
    declare(monkeypatch, BOTH)
    tick_until(keeper, lambda: is_exact(shop), "the builds")
    shop.ask_primary("DELETE FROM shop.orders WHERE email = 'user 1'")  # noted, and not resolved in all of them
    declare(monkeypatch, PRESENT)
    for statement in (
        "DELETE FROM shop.orders WHERE email IN ('user 2', 'user 3')",
        "UPDATE shop.orders SET country = 'DE' WHERE email = 'user 4'",
        "UPDATE shop.orders SET cancelled = true WHERE email = 'user 5'",
        "UPDATE shop.orders SET created_at = '2024-01-01' WHERE email = 'user 6'",
    ):
        shop.ask_primary(statement)
        record(shop, f"after {len(statement)}", declarations.kept())
    shop.replay()
    tick_until(keeper, lambda: is_exact(shop), "the present shards")
    if are_pruned:
        shop.ask_primary(PRUNE, 0.0, KEEP_BYTES, PRUNE_ROWS)
        assert shop.ask_primary("SELECT DISTINCT element FROM rollcall_triggers.departure") == [(None,)]
        shop.replay()
    keeper.start_over()
    declare(monkeypatch, BOTH)
    tick_until(keeper, lambda: is_exact(shop), "the next shards")


def test_a_run_that_the_switch_interrupts_looks_at_the_new_parts(
    shop: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 0 of 2, which it has verified, is not part 0 of 4."""
    declare(monkeypatch, BOTH)
    tick_until(keeper, lambda: is_exact(shop), "the builds")
    run = registry.create(shop.redis, ["customers", "customers:country"], Mode.REPAIR, asked_by="api")

    def verified() -> set[str]:
        return {name for name, each in registry.get(shop.redis, run.id).findings.items() if each.verified_at}

    tick_until(keeper, verified, "the present parts")
    assert registry.get(shop.redis, run.id).open
    keeper.start_over()
    declare(monkeypatch, SWITCHED)
    tick_until(keeper, lambda: not registry.get(shop.redis, run.id).open, "the run")
    found = registry.get(shop.redis, run.id)
    assert {name: each.definition for name, each in found.findings.items()} == {
        part.name: part.definition for part in declarations.parts()
    }
    assert verified() == {part.name for part in declarations.parts()}
