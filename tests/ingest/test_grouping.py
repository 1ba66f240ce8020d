"""Group commit: which rows share a transaction, and that no row suffers from it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import psycopg2
import pytest

from ingest_service.catalog import read_collections
from ingest_service.writing import counting, group_commit, recording, transactions
from ingest_service.writing.group_commit import Committer
from ingest_service.writing.idempotency import KeyReused, RequestClaim, read_claim
from ingest_service.writing.recording import Recorded
from ingest_service.writing.transactions import CommitUnknown, NotStored, RefusedByDatabase
from shared_models.protocol import keys
from tests.ingest.producing import Producer, message
from tests.ingest.severing import Severing
from tests.ingest.test_recording import trigger
from tests.servers import sql, started_primary, wait_for

Came: TypeAlias = Recorded | BaseException


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Where requests wait for their key."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def committer(producer: Producer, pool: ThreadPoolExecutor) -> Iterator[Committer]:
    """A worker's own."""
    committer = Committer(pool)
    yield committer
    committer.close()


def claim_of(username: str, key: str | None) -> RequestClaim | None:
    return read_claim("", key, username)


async def record(committer: Committer, username: str, key: str | None = None) -> Recorded:
    collection = read_collections()["messages"]
    return await committer.record(collection, collection.row(**message(username)), claim_of(username, key))


async def gather(committer: Committer, *requests: tuple[str, str | None]) -> list[Came]:
    """Record these (username, key), which come at the same time, and so make one group; what came of each."""
    return await asyncio.gather(*(record(committer, *request) for request in requests), return_exceptions=True)


def together(committer: Committer, *requests: tuple[str, str | None]) -> list[Came]:
    """`gather`, in a loop of its own."""
    return asyncio.run(gather(committer, *requests))


def noting(calls: list[str], name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which notes each call by this name."""

    def noted(*arguments: Any) -> Any:
        calls.append(name)
        return whole(*arguments)

    return noted


def kinds(came: list[Came]) -> list[type]:
    return [type(each) for each in came]


def ids(came: list[Came]) -> list[Any]:
    return [each.answer["id"] for each in came if isinstance(each, Recorded)]


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each round trip to Redis was about."""
    calls: list[int] = []
    count = counting.count

    def noting(collection: Any, found: Any, rows: int, xact: int, source: str) -> bool:
        calls.append(rows)
        return count(collection, found, rows, xact, source)

    monkeypatch.setattr(counting, "count", noting)
    return calls


def test_requests_that_gather_share_a_transaction_and_a_round_trip(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_calls(monkeypatch)
    came = together(committer, *((f"user{n}", None) for n in range(8)))
    rows = sql(started_primary(), "SELECT id, username, xact FROM message ORDER BY id")
    assert came == [Recorded({"id": row_id}, counted=True) for row_id, _, _ in rows]
    assert [name for _, name, _ in rows] == [f"user{n}" for n in range(8)]
    assert len({xact for _, _, xact in rows}) == 1
    assert producer.state("users").watermark == rows[0][2]
    assert producer.members("users") == {f"user{n}".encode() for n in range(8)}
    assert calls == [8]


def test_a_group_is_bounded_and_the_rest_makes_the_next_one(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "GROUP_ROWS", 3)
    calls = counted_calls(monkeypatch)
    assert kinds(together(committer, *((f"user{n}", None) for n in range(8)))) == [Recorded] * 8
    assert calls == [3, 3, 2]


def test_what_comes_while_a_group_is_being_recorded_makes_the_next_one(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_calls(monkeypatch)
    begun, go_on, insert = threading.Event(), threading.Event(), recording.insert

    def held(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return insert(*args)

    monkeypatch.setattr(recording, "insert", held)

    async def send() -> None:
        first = asyncio.ensure_future(gather(committer, ("ann", None)))
        await asyncio.to_thread(begun.wait, 10)
        others = asyncio.ensure_future(gather(committer, ("bob", None), ("cat", None), ("dan", None)))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, others)

    asyncio.run(send())
    assert calls == [1, 3]


def test_who_has_just_been_answered_shares_the_next_group(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_calls(monkeypatch)
    monkeypatch.setattr(group_commit, "GROUP_ROWS", 4)

    async def client(name: str) -> None:
        for _ in range(3):
            await record(committer, name)

    async def clients() -> None:
        # Two of them have to wait for the second group, and go on with those of the first.
        await asyncio.gather(*(client(f"user{n}") for n in range(6)))

    asyncio.run(clients())
    assert calls == [4, 4, 4, 4, 2]


@pytest.mark.parametrize("when", ["insert", "commit"])
@pytest.mark.parametrize(("code", "error"), [("check_violation", RefusedByDatabase), ("raise_exception", NotStored)])
def test_a_row_that_the_database_refuses_fails_alone(
    producer: Producer, committer: Committer, when: str, code: str, error: type[Exception]
) -> None:
    refuse = f"IF NEW.username LIKE 'bad%' THEN RAISE EXCEPTION 'no such user' USING ERRCODE = '{code}'; END IF"
    requests = [("bad" if n in (3, 4, 16) else f"user{n}", f"k{n}" if n % 2 else None) for n in range(17)]
    with trigger(when, refuse):
        came = together(committer, *requests)
    assert [n for n, each in enumerate(came) if isinstance(each, error)] == [3, 4, 16]
    assert [n for n, each in enumerate(came) if isinstance(each, Recorded) and each.counted] == [
        n for n in range(17) if n not in (3, 4, 16)
    ]
    stored = {f"user{n}" for n in range(17) if n not in (3, 4, 16)}
    assert len(producer.usernames()) == 14
    assert set(producer.usernames()) == stored
    assert producer.members("users") == {name.encode() for name in stored}
    assert {key for (key,) in sql(started_primary(), "SELECT key FROM receipt")} == {
        f"k{n}" for n in range(17) if n % 2 and n != 3
    }


def test_a_primary_that_has_become_read_only_is_not_asked_for_each_row(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    insert = recording.insert

    def read_only(transaction: Any, collection: Any, rows: Any) -> Any:
        asked.append(len(rows))
        transaction.execute("SET TRANSACTION READ ONLY")
        return insert(transaction, collection, rows)

    monkeypatch.setattr(recording, "insert", read_only)
    assert kinds(together(committer, *((f"user{n}", None) for n in range(8)))) == [NotStored] * 8
    assert asked == [8]


def test_keys_in_a_group_mean_what_they_mean_alone(producer: Producer, committer: Committer) -> None:
    (first,) = together(committer, ("ann", "old"))
    requests = (
        ("ann", "old"),  # a replay
        ("bob", "new"),
        ("bob", "new"),  # the same twice in one group
        ("cat", "new"),  # the key belongs to another request
        ("cat", "old"),
        ("dan", None),
        ("eve", "newer"),
    )
    came = together(committer, *requests)
    assert kinds(came) == [Recorded, Recorded, Recorded, KeyReused, KeyReused, Recorded, Recorded]
    assert [each.replayed for each in came if isinstance(each, Recorded)] == [True, False, True, False, False]
    assert all(each.counted for each in came if isinstance(each, Recorded))
    assert ids(came)[0] == ids([first])[0]
    assert ids(came)[1] == ids(came)[2]
    assert sorted(producer.usernames()) == ["ann", "bob", "dan", "eve"]
    again = together(committer, ("bob", "new"), ("eve", "newer"))
    assert [each.replayed for each in again if isinstance(each, Recorded)] == [True, True]
    assert ids(again) == [ids(came)[1], ids(came)[4]]


def test_each_replay_of_a_group_says_what_is_counted_of_its_own_row(producer: Producer, committer: Committer) -> None:
    together(committer, ("ann", "k1"), ("bob", "k2"), ("cat", "k3"))
    producer.redis.srem(keys.of_counter("users").members, "bob")
    came = together(committer, ("ann", "k1"), ("bob", "k2"), ("cat", "k3"))
    assert [(each.replayed, each.counted) for each in came if isinstance(each, Recorded)] == [
        (True, True),
        (True, False),
        (True, True),
    ]


def test_a_group_of_replays_takes_one_transaction_and_one_round_trip(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [(f"user{n}", f"k{n}") for n in range(20)]
    together(committer, *requests)
    calls: list[str] = []
    for module, name in ((transactions, "_committed"), (counting, "are_counted")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, noting(calls, name, whole))
    came = together(committer, *requests)
    assert all(isinstance(each, Recorded) and each.replayed for each in came)
    assert calls == ["_committed", "are_counted"]


def test_a_key_that_another_transaction_is_using_holds_up_its_own_request_only(
    producer: Producer, committer: Committer
) -> None:
    blocker = psycopg2.connect(started_primary().url)
    requests = [(f"user{n}", f"k{n}" if n % 3 else None) for n in range(12)]
    try:
        with blocker.cursor() as cursor:
            cursor.execute("INSERT INTO receipt (key, fingerprint, answer) VALUES ('k7', 'x', '')")

            async def send() -> list[Came]:
                tasks = [asyncio.ensure_future(record(committer, *request)) for request in requests]
                waiting = tasks[7]
                await asyncio.wait_for(asyncio.gather(*(t for t in tasks if t is not waiting)), 10)
                assert not waiting.done()
                # Neither does it hold up who comes later.
                assert isinstance(await asyncio.wait_for(record(committer, "later", "k100"), 10), Recorded)
                assert not waiting.done()
                blocker.rollback()
                return await asyncio.gather(*tasks, return_exceptions=True)

            came = asyncio.run(send())
    finally:
        blocker.close()
    assert kinds(came) == [Recorded] * 12
    assert sorted(producer.usernames()) == sorted(["later", *(name for name, _ in requests)])


@pytest.mark.parametrize(("when", "stored"), [("before", 0), ("after", 3)])
def test_a_connection_lost_in_the_commit_is_unknown_to_each_of_the_group(
    producer: Producer, severing: Severing, committer: Committer, when: str, stored: int
) -> None:
    severing.when = when
    requests = (("ann", "k1"), ("bob", "k2"), ("cat", "k3"))
    assert kinds(together(committer, *requests)) == [CommitUnknown] * 3
    wait_for(lambda: len(producer.rows()) == stored, "the primary to have noticed")
    assert producer.members("users") == set()
    came = together(committer, *requests)
    assert [each.replayed for each in came if isinstance(each, Recorded)] == [bool(stored)] * 3
    assert sorted(producer.usernames()) == ["ann", "bob", "cat"]


def test_an_unknown_commit_is_unknown_to_those_of_its_transaction_only(
    producer: Producer, severing: Severing, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "GROUP_ROWS", 2)
    severing.when = "after"
    came = together(committer, ("ann", None), ("bob", None), ("cat", None), ("dan", None))
    assert kinds(came) == [CommitUnknown, CommitUnknown, Recorded, Recorded]
    assert sorted(producer.usernames()) == ["ann", "bob", "cat", "dan"]


def test_without_the_primary_each_of_the_group_hears_so(
    producer: Producer, severing: Severing, committer: Committer
) -> None:
    severing.__exit__()
    assert kinds(together(committer, ("ann", None), ("bob", "k1"))) == [NotStored] * 2
    assert producer.rows() == []


def test_without_redis_the_whole_group_is_stored_and_none_is_counted(
    producer: Producer, committer: Committer, use_redis: Callable[[str], None]
) -> None:
    use_redis("redis://127.0.0.1:1/0")
    came = together(committer, ("ann", None), ("bob", "k1"))
    assert [each.counted for each in came if isinstance(each, Recorded)] == [False, False]
    assert sorted(producer.usernames()) == ["ann", "bob"]


def test_a_fault_of_ours_leaves_nobody_waiting_and_the_committer_goes_on(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise SystemError("a fault of ours, after the commit")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "count", fail)
        assert kinds(together(committer, ("ann", None), ("bob", None), ("cat", "k1"))) == [CommitUnknown] * 3
    assert kinds(together(committer, ("dan", None))) == [Recorded]


def test_a_client_that_is_gone_changes_nothing_for_the_others(
    producer: Producer, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send() -> list[Came]:
        tasks = [asyncio.ensure_future(record(committer, name)) for name in ("ann", "bob", "cat")]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert kinds(asyncio.run(send())) == [asyncio.CancelledError, Recorded, Recorded]
    assert {"bob", "cat"} <= set(producer.usernames())
    assert kinds(together(committer, ("dan", None))) == [Recorded]


def test_of_very_many_at_once_each_gets_its_own_row(producer: Producer, committer: Committer) -> None:
    async def client(number: int) -> list[tuple[str, Recorded]]:
        names = [f"u{number}-{n}" for n in range(25)]
        return [(name, await record(committer, name, name if n % 2 else None)) for n, name in enumerate(names)]

    async def clients() -> list[tuple[str, Recorded]]:
        return [pair for pairs in await asyncio.gather(*map(client, range(40))) for pair in pairs]

    came = dict(asyncio.run(clients()))
    stored = dict(sql(started_primary(), "SELECT username, id FROM message"))
    assert {name: recorded.answer["id"] for name, recorded in came.items()} == stored
    assert all(recorded.counted and not recorded.replayed for recorded in came.values())
    assert producer.members("users") == {name.encode() for name in came}
    kept = dict(sql(started_primary(), "SELECT key, answer FROM receipt"))
    assert {name: json.loads(text)["id"] for name, text in kept.items()} == {name: stored[name] for name in kept}
    assert len(kept) == 40 * 12
