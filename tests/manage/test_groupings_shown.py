"""What people see of counters by group, and of days: status, page, metrics, runs, command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO

import pytest
from django.core.management import call_command
from msgspec import UNSET, structs
from rich.console import Console

from manage_service.keeper import schedule
from manage_service.keeper.schedule import Schedule
from manage_service.management import terminal
from manage_service.protocol.findings import Findings
from manage_service.protocol.groups import watch
from manage_service.runs import registry
from manage_service.runs.registry import Mode, Run
from manage_service.site.metrics import Facts
from manage_service.status.judging import Limits
from manage_service.status.report import read_status
from manage_service.status.schemas import CounterStatus, StatusReport
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.nodes import only
from shared_models.protocol import keys, states, steps
from tests.asgi import Client
from tests.manage.grouped import orders
from tests.manage.test_console import Elements
from tests.manage.world import World

ROWS = """
    INSERT INTO shop.orders (email, country, shop, created_at, due) VALUES
        ('ann', 'CA', 1, '2024-03-01 12:00Z', '2024-03-01'), ('bob', 'DE', 2, '2024-03-02 12:00Z', '2024-03-02'),
        ('ann', 'DE', 2, '2024-03-02 12:00Z', '2024-03-01')
"""
BY_COUNTRY = "customers:country"


@pytest.fixture
def shop(world: World) -> Iterator[World]:
    """Counters by group, built and never verified."""
    with orders(world):
        world.ask_primary(ROWS)
        world.replay()
        world.build(*(counter.name for counter in declarations.derived()))
        yield world


def status_of(world: World) -> StatusReport:
    return read_status(only(world.redis), world.replica, Limits.of(1.0, 3600.0))


def damage(world: World, group: bytes, name: str = BY_COUNTRY) -> None:
    """Change the set of a group by hand; it is found and dropped."""
    at = keys.of_counter(name)
    world.redis.sadd(at.group(world.redis.hget(at.intake, "generation"), group), "mallory")
    next(watch(get_counter(name), world.redis))


def said_of(world: World, kind: str) -> list[str]:
    return [finding.detail for finding in status_of(world).findings if finding.kind == kind]


def test_a_grouping_says_how_many_groups_and_a_total_how_many_days(shop: World, client: Client) -> None:
    damage(shop, b"CA")
    counters = client.get("/v1/status").json()["counters"]
    assert list(counters) == [each.name for each in declarations.derived()]
    by_country, total = counters[BY_COUNTRY], counters["customers"]
    assert (by_country["count"], by_country["groups"], by_country["broken_groups"]) == (2, 1, 1)
    assert "days" not in by_country
    assert (total["count"], total["days"]) == (2, 1)
    assert not {"groups", "broken_groups"} & set(total)


def test_a_cold_grouping_has_no_numbers_and_its_total_is_not_touched(shop: World, client: Client) -> None:
    shop.redis.delete(keys.of_counter(BY_COUNTRY).state, keys.of_counter("baskets").state)
    counters = client.get("/v1/status").json()["counters"]
    cold = counters[BY_COUNTRY]
    assert (cold["state"], cold["count"], cold["groups"]) == ("cold", None, None)
    assert (counters["baskets"]["state"], counters["baskets"]["days"]) == ("cold", None)
    assert counters["customers"]["state"] == "live"


def test_the_findings_name_groups_that_are_cold_and_what_cannot_be_built(shop: World) -> None:
    assert said_of(shop, "broken-groups") == []
    damage(shop, b"CA")
    (said,) = said_of(shop, "broken-groups")
    assert said.startswith("customers:country: something other than Rollcall has changed one of its groups")
    damage(shop, b"DE")
    assert "has changed 2 of its groups" in said_of(shop, "broken-groups")[0]
    at = keys.of_counter("baskets:shop")
    shop.redis.delete(at.state)
    shop.redis.hset(at.state, "refused", "TooManyGroups: more than 100000 groups (MAX_GROUPS)")
    (said,) = said_of(shop, "cold")
    assert said.startswith("baskets:shop cannot be counted") and said.endswith("(MAX_GROUPS)")


def test_a_total_and_its_groupings_that_are_cold_for_the_same_reason_are_said_once(shop: World) -> None:
    for each in declarations.derived():
        if each.name.startswith("baskets"):
            shop.redis.delete(keys.of_counter(each.name).state)
    (said,) = said_of(shop, "cold")
    assert said.startswith("baskets, like 2 of its groupings, cannot be counted: it has not been built yet")
    shop.redis.hset(keys.of_counter("baskets:shop").state, "refused", "there is no index")
    assert [each.split(" cannot")[0] for each in said_of(shop, "cold")] == [
        "baskets, like 1 of its groupings,",
        "baskets:shop",
    ]


def test_a_directory_that_somebody_has_changed_has_groups_and_is_built(shop: World) -> None:
    shop.redis.zadd(keys.of_counter(BY_COUNTRY).members, {"ZZ": 1})
    (said,) = said_of(shop, "cold")
    assert "its directory has 3 groups, but 2 were recorded" in said and said.endswith("the keeper builds it")


def test_what_a_total_and_its_groupings_have_in_common_is_said_once(shop: World) -> None:
    first, second = said_of(shop, "not-verified")
    assert (
        first.startswith("customers, like 4 of its groupings, has never been verified: ")
        and "`reconcile customers`" in first
    )
    assert second.startswith("baskets, like 2 of its groupings, has never been verified: ")
    shop.reconcile("baskets", "customers:week(created_at)")
    said = said_of(shop, "not-verified")
    assert [each.split(" has ")[0] for each in said] == [
        "customers, like 3 of its groupings,",
        "baskets:country",
        "baskets:shop",
    ]


def test_a_command_in_a_finding_can_be_pasted_into_a_shell(shop: World) -> None:
    shop.reconcile("customers", "baskets")
    said = said_of(shop, "not-verified")
    named = [shlex.split(each.split("`")[1])[1] for each in said]
    assert named == [each.name for each in declarations.derived() if each.of]


def test_metrics_do_not_grow_with_the_groups(shop: World) -> None:
    def labels() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for metric in Facts(only(shop.redis)).collect():
            for sample in metric.samples:
                if sample.name != "rollcall_counter_cold":
                    found.setdefault(sample.name, set()).add(str(sample.labels))
        return found

    before = labels()
    many = [b"country %d\0ann" % number for number in range(100)]
    steps.record(shop.redis, {BY_COUNTRY: many, "customers": [b"2025-01-%02d\0x%d" % (i, i) for i in range(1, 29)]})
    assert states.read_state(shop.redis, BY_COUNTRY).count == 102
    assert labels() == before
    assert before["rollcall_counter_days"] == {"{'counter': 'baskets'}", "{'counter': 'customers'}"}
    assert len(before["rollcall_counter_groups"]) == len(declarations.derived()) - 2


def test_a_run_is_for_a_counter_with_its_groupings_or_for_one_of_them(shop: World, client: Client) -> None:
    def ask(*names: str) -> list[str]:
        answer = client.post("/v1/runs", json.dumps({"counters": names}), "application/json")
        assert answer.status_code == 202, answer.content
        return answer.json()["counters"]

    assert ask("baskets") == ["baskets", "baskets:country", "baskets:shop"]
    assert ask("baskets:shop") == ["baskets:shop"]
    assert ask("baskets:shop", "customers:country") == ["baskets:shop", "customers:country"]
    assert client.post("/v1/runs", "{}", "application/json").json()["counters"] == list(status_of(shop).counters)
    waiting = client.get("/v1/runs?limit=1").json()["runs"]
    assert waiting[0]["status"] == "queued"


def test_an_unknown_name_is_answered_with_those_that_may_be_meant(shop: World, client: Client) -> None:
    totals = "customers, baskets"
    for name, known in (("nobody", totals), ("baskets:stat", "baskets:country, baskets:shop"), ("x:y", totals)):
        answer = client.post("/v1/runs", json.dumps({"counters": [name]}), "application/json")
        assert answer.status_code == 422
        assert answer.json()["detail"].endswith(f"there is no counter '{name}'; there are: {known}")


def test_the_page_has_a_place_for_each_grouping(shop: World, client: Client) -> None:
    elements = Elements(client.get("/").content.decode()).found
    assert [a["data-grouping"] for _, a in elements if "data-grouping" in a] == [
        each.name for each in declarations.derived() if each.of
    ]
    assert [a["data-counter"] for _, a in elements if "data-counter" in a] == ["customers", "baskets"]
    labels = {a.get("aria-label") for tag, a in elements if tag == "button"}
    assert {"Check customers by country", "Repair customers by country, month(due)"} <= labels
    assert all("open" in a for tag, a in elements if tag == "details")


def test_groups_and_days_that_are_not_declared_any_longer_are_orphans(
    shop: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {keys.what_of(each): each for each in declarations.derived()}
    monkeypatch.setattr(declarations, "COUNTERS", declarations.COUNTERS[:1])
    call_command("orphans")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert {before[what].name: members for what, members, *_ in lines} == {
        "baskets": "members=3",
        "baskets:country": "members=3",
        "baskets:shop": "members=3",
    }
    call_command("orphans", "--remove")
    assert capsys.readouterr().out.count("done=removed") == 3
    call_command("orphans")
    assert capsys.readouterr().out == ""
    assert not states.read_state(shop.redis, BY_COUNTRY).cold


def of_many_counters() -> dict[str, CounterStatus]:
    """Five totals with seven groupings each, live."""
    now = datetime.now(UTC)
    live = CounterStatus("live", "", "", 298_000, 5, 5, 6, 0.1, 4, "1/1/1", now, now, None, False, None, None)
    found = {}
    for total in ("visitors", "customers", "members", "senders", "payers"):
        found[total] = structs.replace(live, days=31)
        for column in ("a", "b", "c", "d", "e", "f", "g"):
            name = f"{total}:country,day({column})"
            found[name] = structs.replace(live, groups=10_000, broken_groups=2 if column == "g" else 0)
    return found


@pytest.mark.parametrize(("columns", "lines"), [(160, 43), (60, 5 * (1 + 7 + 7) + 1)])
def test_forty_counters_are_a_table_of_forty_rows_or_lists_without_any_line_too_much(columns: int, lines: int) -> None:
    shown = StringIO()
    console = Console(file=shown, width=columns)
    terminal.print_whole(console, terminal.table_of_counters(of_many_counters(), datetime.now(UTC)))
    seen = shown.getvalue().rstrip().splitlines()
    assert len(seen) <= lines, shown.getvalue()
    (total,) = [line for line in seen if line.lstrip().startswith("customers")]
    assert columns == 60 or "31 days" in total
    below = [line for line in seen if "by country, day(g)" in line or "by country,day(g)" in line]
    assert len(below) == 5 and all("10,000 groups, 2 cold" in line for line in below)


def test_without_groups_the_table_is_as_it_was() -> None:
    plain = {name: structs.replace(each, days=UNSET) for name, each in of_many_counters().items() if ":" not in name}
    table = terminal.table_of_counters(plain, datetime.now(UTC))
    headers = [column.header for column in table.columns]
    assert headers == ["counter", "state", "count", "complete to", "verified", "found then", "last run"]


def test_a_run_of_many_counters_shows_only_the_bar_of_the_present_one(shop: World) -> None:
    names = list(of_many_counters())
    run = Run("1", names, Mode.CHECK, datetime.now(UTC), "cli", status=registry.Status.RUNNING)
    run.findings[names[0]] = Findings(verified_at=datetime.now(UTC))
    run.counter, run.phase = names[1], "missing"
    follower = terminal.Follower(run, quiet=True)
    follower.show(run)
    assert [task.fields["name"] for task in follower.bars.tasks if task.visible] == [names[1]]
    assert run.counters_in_words == (
        "visitors with 7 groupings, customers with 7 groupings, members with 7 groupings, senders with 7 groupings, "
        "payers with 7 groupings"
    )


@pytest.mark.parametrize(
    ("counters", "words"),
    [
        (["users"], "users"),
        (["users", "users:a", "cities"], "users with 1 grouping, cities"),
        (["users:a", "users:b"], "users:a, users:b"),
        (list("abcdefg"), "a, b, c, d, and 3 more"),
    ],
)
def test_the_counters_of_a_run_in_words(counters: list[str], words: str) -> None:
    assert Run("1", counters, Mode.CHECK, datetime.now(UTC), "cli").counters_in_words == words


def test_members_of_a_group_or_a_day_are_shown_by_field() -> None:
    told = {
        "users": {"state": "NY", "city": "Ithaca"},
        "users:country": {"country": "CA", "email": "ann"},
        "customers": {"email": "ann", "day(due)": "2024-03-01"},
    }
    assert [terminal.in_words(*each) for each in told.items()] == [
        "NY, Ithaca",
        "country CA, email ann",
        "email ann, day(due) 2024-03-01",
    ]


def test_the_schedule_asks_for_each_by_itself_and_leaves_room_for_others(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MOST_OPEN", 3)
    names = [each.name for each in declarations.derived()]
    plan, found = Schedule(3600.0), states.read_states(shop.redis, names)
    for _ in range(2):
        plan.ask_for_what_is_due(found, (), shop.redis)
    waiting = registry.still_open(shop.redis)
    assert [run.counters for run in waiting] == [[name] for name in names[:3]]
    for run in waiting:
        run.end(registry.Status.DONE)
        registry.save(shop.redis, run)
    plan.ask_for_what_is_due(found, (), shop.redis)
    assert [run.counters for run in registry.still_open(shop.redis)] == [[name] for name in names[3:6]]
