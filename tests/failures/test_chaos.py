"""Chaos: the checker finds the errors in histories written by hand, and none in a correct one; then a short run
of the whole, with several kinds of fault."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loadtest.chaos import exact, tampering
from loadtest.chaos.checker import judge
from loadtest.chaos.clients import counts_in
from loadtest.chaos.faults import Faults, method_of
from loadtest.chaos.history import GROUPINGS, read, rounds
from loadtest.chaos.injecting import Injector
from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import CLUSTER_KINDS, GROUPED, KINDS, LAST_SEEN, SETS, Fault, expand
from loadtest.chaos.stack import DECLARE
from shared_models import declarations
from shared_models.declarations import Storage, get_counter
from shared_models.protocol.elements import shard_of_member
from shared_models.protocol.members import encode
from tests.servers import wait_for

WALL = 1_700_000_000.0
# Messages: a name, a state, a city, a day.
ANN = ["t1", "ann", "NY", "Rome", "2026-11-27"]
BOB = ["t2", "bob", "NY", "Troy", "2026-11-20"]
# Orders: a customer, a branch, whether it was deleted, and a day.
CAT = ["t3", "cat", "north", False, "2026-11-27"]
NOBODYS, GONE = ["t4", None, "north", False, "2026-11-27"], ["t5", "dan", "north", True, "2026-11-27"]


class Hand:
    """A journal written by hand: the times of each operation are given, and the wall clock runs in parallel."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.n = 0

    def add(self, event: str, t: float, **details: Any) -> None:
        self.events.append({"event": event, "t": t, "wall": WALL + t, **details})

    def operation(self, began: float, ended: float | None, invoke: dict[str, Any], complete: dict[str, Any]) -> None:
        self.n += 1
        self.add("invoke", began, n=self.n, client="hand", **invoke)
        if ended is not None:
            self.add("complete", ended, n=self.n, **complete)

    def post(self, began, ended, *rows, outcome="ok", counted=False, request="", answer=1):
        asked = {"op": "post", "service": "ingest", "request": request or rows[0][0], "rows": list(rows)}
        self.operation(began, ended, asked, {"outcome": outcome, "counted": counted, "answer": answer})

    def order(self, began, ended, *rows, outcome="ok", table="orders"):
        asked = {"op": "post", "table": table, "request": rows[0][0], "rows": list(rows)}
        self.operation(began, ended, asked, {"outcome": outcome, "counted": False, "answer": None})

    def erase(self, began, ended, outcome="ok", table="message", **where):
        self.operation(began, ended, {"op": "erase", "table": table, "where": where}, {"outcome": outcome})

    def users(self, began, ended, count, *, through, fresh=True, state="live", counter="users"):
        moment = None if through is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(WALL + through))
        said = {counter: {"count": count, "state": state, "complete_through": moment}}
        self.operation(began, ended, {"op": "counts", "fresh": fresh}, {"outcome": "ok", "counters": said})

    def is_member(self, began, ended, member, found, counter="users"):
        asked = {"op": "members", "counter": counter, "asked": [[member]]}
        self.operation(began, ended, asked, {"outcome": "ok", "found": [found]})

    def lose(self, began, ended, **what):
        self.add("loss", ended, **{"from": began}, **what)

    def stale(self, began, ended, **what):
        self.add("stale", ended, **{"from": began}, **what)

    def table(self, t, *rows, orders=()):
        self.add("table", t, rows={"message": list(rows), "orders": list(orders)})

    def broken(self) -> list[str]:
        """The promises that the last round breaks."""
        (*_, last) = rounds(sorted(self.events, key=lambda event: event["t"]))
        return [violation.promise for violation in judge(last, {"ingest": 5.0}).violations]


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_a_history_in_which_all_is_well(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.users(3, 4, 1, through=1)
    hand.is_member(4, 5, "ann", True)
    hand.post(5, 6, BOB)
    hand.users(7, 8, 1, through=1)  # bob is not counted yet, and nobody says so
    hand.users(9, 10, 2, through=8)
    hand.erase(11, 12, username="ann")
    hand.users(13, 14, 1, through=12)
    hand.is_member(14, 15, "ann", False)
    hand.table(20, BOB)
    assert hand.broken() == []


# -- P1


def test_an_acknowledged_row_that_is_not_in_the_table(hand):
    hand.post(1, 2, ANN)
    hand.table(20)
    assert hand.broken() == ["P1"]


def test_a_row_of_unknown_outcome_may_be_there_or_not_but_once(hand):
    hand.post(1, 2, ANN, outcome="unknown")
    hand.table(20)
    assert hand.broken() == []
    hand.events[-1]["rows"] = {"message": [ANN]}
    assert hand.broken() == []
    hand.events[-1]["rows"] = {"message": [ANN, ANN]}
    assert hand.broken() == ["P1"]


def test_a_retry_that_was_stored_again(hand):
    hand.post(1, 2, ANN, outcome="unknown")
    hand.post(3, 4, ANN)
    hand.table(20, ANN, ANN)
    assert hand.broken() == ["P1"]


def test_a_retry_that_was_answered_otherwise(hand):
    hand.post(1, 2, ANN, answer={"id": 1})
    hand.post(3, 4, ANN, answer={"id": 2})
    hand.table(20, ANN)
    assert hand.broken() == ["P1"]


def test_a_refused_row_that_was_stored_all_the_same(hand):
    hand.post(1, 2, ANN, outcome="refused")
    hand.table(20, ANN)
    assert hand.broken() == ["P1"]


def test_a_refusal_after_an_unknown_outcome_proves_nothing(hand):
    hand.post(1, 2, ANN, outcome="unknown")
    hand.post(3, 4, ANN, outcome="refused")
    hand.table(20, ANN)
    assert hand.broken() == []


def test_a_batch_that_was_stored_in_part(hand):
    hand.post(1, 2, ANN, BOB, outcome="unknown")
    hand.table(20, ANN)
    assert hand.broken() == ["P1"]


def test_a_row_that_nobody_sent(hand):
    hand.post(1, 2, ANN)
    hand.table(20, ANN, BOB)
    assert hand.broken() == ["P1"]


def test_an_erased_row_that_came_back(hand):
    hand.post(1, 2, ANN)
    hand.erase(3, 4, username="ann")
    hand.table(20, ANN)
    assert hand.broken() == ["P1"]


@pytest.mark.parametrize(("began", "ended"), [(1.5, 3), (3, None)])
def test_an_erase_that_may_have_met_the_row_proves_nothing_about_it(hand, began, ended):
    hand.post(1, 2, ANN)
    hand.erase(began, ended, username="ann")
    for table in ([], [ANN]):
        hand.table(20, *table)
        assert hand.broken() == []
        hand.events.pop()


def test_a_row_of_an_earlier_round_that_is_gone(hand):
    hand.post(1, 2, ANN)
    hand.table(20, ANN)
    hand.table(40)
    assert hand.broken() == ["P1"]


# -- P2


def test_a_counted_member_that_the_next_count_lacks(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.users(3, 4, 0, through=0)
    assert hand.broken() == ["P2"]


def test_a_counted_member_that_is_said_to_be_none(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.is_member(3, 4, "ann", False)
    assert hand.broken() == ["P2"]


@pytest.mark.parametrize("excuse", ["not counted", "asked before", "lost", "erased", "cached", "stale"])
def test_what_excuses_a_count_without_the_member(hand, excuse):
    hand.post(1, 2, ANN, counted=excuse != "not counted")
    if excuse == "lost":
        hand.lose(1.5, 2.5)
    if excuse == "erased":
        hand.erase(2.5, 6, username="ann")
    began = 1.5 if excuse == "asked before" else 3
    state = "stale" if excuse == "stale" else "live"
    hand.users(began, 4, 0, through=0, fresh=excuse != "cached", state=state)
    assert hand.broken() == []


def test_a_loss_before_the_member_was_counted_excuses_nothing(hand):
    hand.lose(0.1, 0.5)
    hand.post(1, 2, ANN, counted=True)
    hand.users(3, 4, 0, through=0)
    assert hand.broken() == ["P2"]


def test_a_loss_of_some_parts_excuses_nothing_of_the_others(hand):
    """A server of a cluster failed over: only what it held may be missing."""
    hand.post(1, 2, ANN, BOB, counted=True)
    hand.lose(2.5, 2.6, parts=[part_of("ann", 9)], of=9)
    hand.is_member(3, 4, "ann", False)
    hand.users(3, 4, 1, through=0)
    assert hand.broken() == []
    hand.is_member(3, 4, "bob", False)
    hand.users(3, 4, 0, through=0)
    assert hand.broken() == ["P2", "P2"]


def test_a_loss_of_some_parts_excuses_a_member_until_complete_through_has_passed_its_row(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.lose(2.5, 2.6, parts=[part_of("ann", 9)], of=9)
    hand.users(3, 4, 0, through=1)
    assert hand.broken() == []
    hand.users(5, 6, 0, through=3)
    assert hand.broken() == ["P7"]


def test_a_server_that_was_replaced_may_show_what_it_had_until_it_hears_of_that(hand):
    hand.post(1, 2, BOB, counted=True)
    hand.post(3, 4, ANN, counted=True)
    hand.stale(2.5, 5, parts=[part_of("ann", 9), part_of("bob", 9)], of=9)
    hand.users(4.5, 4.6, 1, through=0)
    hand.is_member(4.5, 4.6, "ann", False)
    assert hand.broken() == []
    hand.is_member(4.5, 4.6, "bob", False)  # who was counted before there were two of them
    hand.is_member(5.5, 5.6, "ann", False)  # by then there is one
    assert hand.broken() == ["P2", "P2"]


def test_a_server_that_was_replaced_excuses_nothing_of_another(hand):
    hand.post(3, 4, ANN, counted=True)
    hand.stale(2.5, 5, parts=[part_of("bob", 9)], of=9)
    hand.is_member(4.5, 4.6, "ann", False)
    assert part_of("bob", 9) != part_of("ann", 9) and hand.broken() == ["P2"]


def test_a_claim_of_the_new_server_is_not_held_against_the_one_that_it_replaced(hand):
    hand.post(1, 2, ANN)
    hand.stale(2.5, 5, parts=[part_of("ann", 9)], of=9)
    hand.users(4, 4.1, 1, through=3)
    hand.is_member(4.5, 4.6, "ann", False)
    assert hand.broken() == []
    hand.is_member(5.5, 5.6, "ann", False)
    assert hand.broken() == ["P7"]


def part_of(name: str, parts: int) -> int:
    counter = replace(get_counter("users"), shards=parts)
    return shard_of_member(counter, encode([name]))


def test_a_loss_of_one_counter_excuses_nothing_of_another(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.lose(2.5, 2.6, counter="cities")
    hand.is_member(3, 4, "ann", False)
    assert hand.broken() == ["P2"]
    hand.lose(2.5, 2.6, counter="users")
    assert hand.broken() == []


# -- P4 and P7


def test_a_count_without_a_row_from_before_complete_through(hand):
    hand.post(1, 2, ANN)
    hand.users(10, 11, 0, through=5)
    assert hand.broken() == ["P7"]


def test_redis_having_lost_something_does_not_excuse_what_complete_through_claims(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.lose(3, 4)
    hand.users(10, 11, 0, through=5, fresh=False)
    assert hand.broken() == ["P7"]


def test_a_member_denied_after_a_count_that_claims_it(hand):
    hand.post(1, 2, ANN)
    hand.post(1, 2, BOB)
    hand.users(10, 11, 2, through=5)
    hand.is_member(12, 13, "ann", False)
    assert hand.broken() == ["P7"]


def test_a_loss_after_the_claim_excuses_the_denial(hand):
    hand.post(1, 2, ANN)
    hand.users(10, 11, 1, through=5)
    hand.lose(10.5, 11.5)
    hand.is_member(12, 13, "ann", False)
    assert hand.broken() == []


def test_a_partial_count_of_what_was_there_when_the_round_began(hand):
    hand.post(1, 2, ANN, BOB)
    hand.table(20, ANN, BOB)
    hand.users(30, 31, 1, through=25)
    assert hand.broken() == ["P7"]


def test_a_count_that_does_not_say_how_complete_it_is(hand):
    hand.users(3, 4, 0, through=None)
    assert hand.broken() == ["P4"]


def test_a_count_of_more_than_was_ever_sent(hand):
    hand.post(1, 2, ANN)
    hand.post(1, 2, BOB, outcome="refused")
    hand.users(3, 4, 2, through=0)
    assert hand.broken() == ["P4"]


def test_a_member_that_nobody_sent(hand):
    hand.is_member(3, 4, "ghost", True)
    assert hand.broken() == ["P4"]


def test_a_member_may_be_counted_before_its_producer_hears_of_it(hand):
    hand.post(1, None, ANN)
    hand.users(3, 4, 1, through=0)
    hand.is_member(4, 5, "ann", True)
    assert hand.broken() == []


# -- orders


def test_orders_that_do_not_count_and_those_of_nobody_are_no_customers(hand):
    hand.order(1, 2, CAT, NOBODYS, GONE)
    hand.users(3, 4, 1, through=2.5, counter="customers")
    hand.users(3, 4, 1, through=2.5, counter="branches")
    hand.users(3, 4, 0, through=2.5)
    hand.table(20, orders=[CAT, NOBODYS, GONE])
    assert hand.broken() == []
    hand.events[-1]["rows"]["orders"].pop()
    assert hand.broken() == ["P1"]


def test_a_customer_of_a_deleted_order_only_is_never_counted(hand):
    hand.order(1, 2, GONE)
    hand.users(3, 4, 1, through=0, counter="customers")
    hand.is_member(5, 6, "dan", True, "customers")
    assert hand.broken() == ["P4", "P4"]


def test_a_change_of_an_order_takes_its_row_and_brings_another_one(hand):
    hand.order(1, 2, CAT)
    changed = ["t3b", "eve", "north", False, "2026-11-27"]
    hand.erase(5, 6, table="orders", token=["t3"])
    hand.order(5, 6, changed)
    hand.table(20, orders=[changed])
    for count in (1, 2):  # the old customer may be there still
        hand.users(10, 11, count, through=8, counter="customers")
    assert hand.broken() == []
    hand.is_member(12, 13, "cat", False, "customers")
    assert hand.broken() == []
    hand.is_member(12, 13, "eve", False, "customers")
    assert hand.broken() == ["P7"]


def test_a_table_that_was_emptied_loses_its_own_rows_only(hand):
    hand.post(1, 2, ANN)
    hand.order(1, 2, CAT)
    hand.erase(3, 4, table="orders")
    hand.table(20, ANN)
    assert hand.broken() == []
    hand.events[-1]["rows"] = {"message": [], "orders": [CAT]}
    assert sorted(hand.broken()) == ["P1", "P1"]


# -- groups and days


IN_NY, IN_CA, SINCE = "users?by=state&group=NY", "users?by=state&group=CA", "users?from=2026-11-21"


def test_groups_and_days_of_which_all_is_well(hand):
    hand.post(1, 2, ANN, BOB, counted=True)
    hand.users(3, 4, 2, through=2.5, counter=IN_NY)
    hand.users(3, 4, 0, through=2.5, counter=IN_CA)
    hand.users(3, 4, 1, through=2.5, counter=SINCE)
    hand.is_member(5, 6, "bob", True, IN_NY)
    hand.is_member(5, 6, "bob", False, IN_CA)
    hand.is_member(5, 6, "bob", False, SINCE)
    moved = ["t1b", "ann", "CA", "Rome", "2026-11-20"]
    hand.erase(7, 8, token=["t1"])
    hand.order(7, 8, moved, table="message")
    for count in (0, 1):  # it may be there still, and seen on the later day
        hand.users(9, 10, 1 + count, through=8.5, counter=IN_NY)
        hand.users(9, 10, count, through=8.5, counter=SINCE)
    hand.users(9, 10, 1, through=8.5, counter=IN_CA)
    hand.table(20, BOB, moved)
    hand.users(21, 22, 1, through=21, counter=IN_NY)
    assert hand.broken() == []


@pytest.mark.parametrize("text", [IN_NY, SINCE])
def test_a_counted_member_that_its_group_or_day_lacks(hand, text):
    hand.post(1, 2, ANN, counted=True)
    hand.is_member(3, 4, "ann", False, text)
    hand.users(3, 4, 0, through=0, counter=text)
    assert sorted(hand.broken()) == ["P2", "P2"]


def test_a_group_without_a_row_from_before_complete_through(hand):
    hand.order(1, 2, CAT)
    hand.users(10, 11, 0, through=5, counter="customers?by=branch%2Cweek%28placed_at%29&group=north&group=2026-11-23")
    assert hand.broken() == ["P7"]


@pytest.mark.parametrize("text", [IN_CA, "users?from=2026-11-28"])
def test_a_member_of_a_group_or_day_that_it_has_no_row_of(hand, text):
    hand.post(1, 2, ANN)
    hand.is_member(3, 4, "ann", True, text)
    hand.users(3, 4, 1, through=0, counter=text)
    assert hand.broken() == ["P4", "P4"]


def test_a_loss_of_groups_excuses_nothing_of_days(hand):
    hand.post(1, 2, ANN, counted=True)
    hand.lose(2.5, 2.6, counter="users:state")
    hand.is_member(3, 4, "ann", False, IN_NY)
    assert hand.broken() == []
    hand.is_member(3, 4, "ann", False, SINCE)
    assert hand.broken() == ["P2"]


def test_the_answers_of_query_are_read_as_what_was_asked():
    how = {"state": "live", "complete_through": None}
    ny = {"group": ["NY"], "count": 3}
    assert counts_of({"counter": "users", "by": ["state"], **ny, **how}) == {IN_NY: 3}
    assert counts_of({"counter": "users", "by": ["state"], "groups": [ny], **how}) == {IN_NY: 3}
    assert counts_of({"counter": "users", "by": ["state"], "top": [ny], "groups": 7, **how}) == {IN_NY: 3}
    assert counts_of({"counter": "users", "window": "7d", "from": "2026-11-21", "count": 2, **how}) == {SINCE: 2}
    assert counts_of({"counter": "users", "count": 2, **how}) == {"users": 2}
    assert counts_of({"counters": {"users": {"count": 2, **how}}}) == {"users": 2}


def counts_of(said: dict[str, Any]) -> dict[str, Any]:
    return {text: count["count"] for text, count in counts_in(said)}


# -- limits


def test_a_request_that_took_longer_than_its_limit(hand):
    hand.post(1, 7, ANN)
    assert hand.broken() == ["limits"]


def test_a_service_that_was_stopped_itself_may_keep_its_clients_waiting(hand):
    hand.add("fault", 2, number=1, kind="stop", target="ingest worker", how="0")
    hand.post(1, 7, ANN)
    hand.add("mended", 8, number=1)
    assert hand.broken() == []


# -- the parts


def test_a_seed_says_all_and_another_seed_says_otherwise():
    assert expand(7, 1, 30.0) == expand(7, 1, 30.0)
    assert expand(7, 1, 30.0) != expand(8, 1, 30.0) != expand(8, 2, 30.0)


def test_every_kind_of_fault_is_drawn_and_no_target_suffers_two_at_a_time():
    drawn = [expand(seed, 1, 60.0).faults for seed in range(20)]
    assert {fault.kind for faults in drawn for fault in faults} == {kind.name for kind in KINDS}
    beside = {kind.name: kind.beside for kind in KINDS}
    for faults in drawn:
        ends: dict[str, float] = {}
        for fault in faults:
            for server in (fault.target.split()[0], *beside[fault.kind]):
                assert ends.get(server, 0.0) <= fault.at_seconds
                ends[server] = fault.at_seconds + fault.seconds


def test_every_kind_and_variant_is_one_that_can_be_done():
    for kind in (*KINDS, *CLUSTER_KINDS):
        assert callable(getattr(Faults, method_of(kind.name)))
    hows = {(kind.name, target): set(kind.hows) for kind in KINDS for target in kind.targets}
    assert hows["table rewritten", "table"] == tampering.REWRITES.keys()
    for targets, changes in (
        (SETS, tampering.OF_SETS),
        (LAST_SEEN, tampering.OF_LAST_SEEN),
        (GROUPED, tampering.OF_GROUPS),
    ):
        assert {how for target in targets for how in hows["changed by hand", target]} == changes.keys()


def test_the_declarations_are_those_that_the_schedule_the_checker_and_the_sql_know():
    _, counters = declarations.parse(DECLARE.format(zone="UTC", orders_zone="UTC"))
    derived = {each.name: each.storage for counter in counters for each in (counter, *counter.groupings)}
    of = {Storage.SET: SETS, Storage.LAST_SEEN: LAST_SEEN, Storage.GROUPS: GROUPED}
    assert derived == {name: storage for storage, names in of.items() for name in names}
    assert exact.SQL.keys() == derived.keys()
    assert {each.name: tuple(g.by_names for g in each.groupings) for each in counters if each.groupings} == GROUPINGS


def test_a_database_that_is_its_own_replica_suffers_nothing_that_needs_another_one():
    faults = [fault for seed in range(20) for fault in expand(seed, 1, 60.0, single=True).faults]
    assert {"kill", "kill backend", "burn xids"} <= {fault.kind for fault in faults}
    assert not {"promotion", "replay paused"} & {fault.kind for fault in faults}
    assert not {"replica", "replica-primary"} & {fault.target for fault in faults}


def test_a_cluster_suffers_its_own_faults_and_not_those_of_one_server():
    faults = [fault for seed in range(20) for fault in expand(seed, 1, 60.0, cluster=True).faults]
    assert {kind.name for kind in (*KINDS, *CLUSTER_KINDS)} - {"kill valkey"} == {fault.kind for fault in faults}
    assert not {"valkey", "ingest-valkey", "manage-valkey", "query-valkey"} & {fault.target for fault in faults}


def test_an_undoing_that_another_fault_is_in_the_way_of_waits_until_that_one_is_undone(tmp_path: Path, monkeypatch):
    undone: list[str] = []

    def do(self, fault):
        def undo() -> None:
            if fault.kind == "first" and "second" not in undone:
                raise OSError("the second one is still in force")
            undone.append(fault.kind)

        return undo

    monkeypatch.setattr(Faults, "do", do)
    stack: Any = SimpleNamespace(wires={}, processes=[])
    faults = [Fault(1, 0.0, 0.01, "first", "one", ""), Fault(2, 0.0, 0.1, "second", "other", "")]
    journal = Journal(tmp_path / "journal")
    Injector(stack, journal, lambda line: None).run(faults, 0.2)
    journal.close()
    assert undone == ["second", "first"]


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path):
    path = tmp_path / "journal"
    journal = Journal(path)
    n = journal.invoke("me", "post", service="ingest", request="r", rows=[ANN])
    journal.complete(n, "ok", counted=True, answer={"id": 1})
    journal.close()
    path.write_text(path.read_text() + '{"event": "invo')
    (only,) = read(path)
    assert only.requests["r"].acknowledged < float("inf")


# -- the whole


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where a run puts its folder. The stack's ordinary user has to come through."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-chaos-test-")).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def chaos(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.chaos", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes that still run, of a run whose folder is in this one."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return str(folder) in " ".join([process.cwd(), *process.cmdline(), *process.environ().values()])
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def test_some_faults_of_every_kind_break_no_promise(temporary: Path):
    with chaos(temporary, "--seed", "3", "--seconds", "12", "--rounds", "1") as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    assert "| **wrong answers** (P2, P4, P7) | **0** |" in output
    assert list(temporary.iterdir()) == [] and processes_of(temporary) == []


@pytest.mark.long
def test_some_faults_of_a_cluster_break_no_promise(temporary: Path):
    with chaos(temporary, "--seed", "3", "--seconds", "20", "--rounds", "1", "--cluster", "3") as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    assert "| **wrong answers** (P2, P4, P7) | **0** |" in output
    assert re.search(r"replicas of Redis that were promoted \| [1-9]", output)
    assert list(temporary.iterdir()) == [] and processes_of(temporary) == []


@pytest.mark.long
def test_a_cluster_that_serves_what_was_emptied_is_found_out(temporary: Path):
    options = ("--seed", "3", "--seconds", "8", "--rounds", "1", "--quiet", "--cluster", "3")
    with chaos(temporary, *options, "--kind", "flushed", "--without", "cold") as run:
        output, _ = run.communicate()
    assert run.returncode == 1 and re.search("P[47]: ", output), output


@pytest.mark.long
@pytest.mark.parametrize(
    ("rule", "kind", "promise", "seed", "seconds"),
    [
        ("cold", "kill valkey", "P[47]", 3, 8),
        ("one key", "reset during COMMIT", "P1", 3, 8),
        ("size", "changed by hand", "P[247]", 710, 8),
        ("departures", "deletes left open", "P6", 3, 8),
        ("group size", "changed by hand", "P[247]", 3, 8),
        ("broken group", "killed while mending", "P[27]", 261, 14),  # small groups of what ingest counts
        ("lowered day", "scripts forgotten", "P6", 3, 8),
    ],
)
def test_a_stack_that_is_robbed_of_a_rule_is_found_out(
    temporary: Path, rule: str, kind: str, promise: str, seed: int, seconds: int
):
    """The rules that tests/manage/test_rules_matter.py leaves to this one."""
    options = (
        "--seed",
        str(seed),
        "--seconds",
        str(seconds),
        "--rounds",
        "1",
        "--quiet",
        "--kind",
        kind,
        "--without",
        rule,
    )
    with chaos(temporary, *options) as run:
        output, _ = run.communicate()
    assert run.returncode == 1, output
    assert re.search(f"{promise}: ", output)
    (kept,) = temporary.iterdir()
    assert {path.name for path in kept.iterdir()} == {"journal.jsonl", "log", "rollcall.toml"}


@pytest.mark.long
def test_ctrl_c_leaves_nothing_behind(temporary: Path):
    with chaos(temporary, "--seed", "3", "--seconds", "60", "--rounds", "1", "--kind", "stop") as run:
        output = run.stdout
        assert output is not None
        wait_for(lambda: "stop: " in output.readline(), "the first process to be stopped", seconds=60)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate()
    assert run.returncode == 130, said
    assert list(temporary.iterdir()) == [] and processes_of(temporary) == []
