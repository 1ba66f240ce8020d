"""Whether what Redis holds is what the tables say, element by element, with everything that is kept beside the elements; and
whether query says the same. The SQL is such as people write it, and shares nothing with the product's."""

from __future__ import annotations

import http.client
import json
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from redis import Redis

from compose.local.servers import HOST
from loadtest.chaos.stack import ORDERS_ZONE, ChaosStack, run_sql
from shared_models import declarations
from shared_models.declarations import Counter, Storage
from shared_models.protocol import keys, states
from shared_models.protocol.elements import shard_of_member
from shared_models.protocol.members import encode

# (member,), (group, member) or (day, member): by the storage.
Elements: TypeAlias = set[tuple[bytes, ...]]

MESSAGES = "SELECT DISTINCT {} FROM message"
ORDERS = "SELECT DISTINCT {} FROM shop.orders WHERE deleted_at IS NULL AND email IS NOT NULL"
PLACED = f"{ORDERS} AND placed_at IS NOT NULL"
# Its group, and then its member. Of those that know the last day: the day, and the member.
SQL = {
    "cities": MESSAGES.format("state, city"),
    "users": "SELECT max({messages_day}), username FROM message GROUP BY username",
    "users:state": MESSAGES.format("state, username"),
    "users:day(create_time)": MESSAGES.format("{messages_day}, username"),
    "branches": "SELECT DISTINCT branch::text FROM shop.orders",
    "customers": PLACED.replace("DISTINCT {}", "max({orders_day}), email") + " GROUP BY email",
    "customers:branch": ORDERS.format("branch::text, email"),
    "customers:day(placed_at)": PLACED.format("{orders_day}, email"),
    "customers:branch,week(placed_at)": PLACED.format("branch::text, {orders_week}, email"),
}
WINDOWS = ("today", "2d", "7d", "30d", "400d")
# As many as an answer lists.
LISTED = 1_000


def why_not_exact(stack: ChaosStack, quiet_wall: float) -> str | None:
    """The first difference between the tables and a derived counter; None if there is none. Raises what stores and services do."""
    why = stack.redis.why_not_whole()
    if why is not None:
        return why
    with stack.redis.nodes() as nodes:
        found = states.read_wholes(nodes)
        for counter in declarations.derived():
            name, state = counter.name, found[counter.name]
            if state.cold or state.complete_through is None:
                return f"{name} is {state.condition}"
            if state.complete_through.timestamp() < quiet_wall:
                return f"{name} is complete through {state.complete_through} only: {state.withheld or 'it is behind'}"
            table = in_table(stack, counter)
            for part in counter.parts:
                client, of_part = nodes.of(keys.home_of(part)), of(part, counter, table)
                redis = in_redis(client, part)
                if redis != of_part:
                    missing, extra = sorted(of_part - redis)[:3], sorted(redis - of_part)[:3]
                    return f"{part.name}: {len(redis)} in Redis, {len(of_part)} in the table; missing {missing}, extra {extra}"
                for why in odd_beside(client, part, of_part):
                    return f"{part.name}: {why}"
            for why in odd_answers(stack, counter, table):
                return f"{name}: {why}"
    return None


def in_table(stack: ChaosStack, counter: Counter) -> Elements:
    """What the table says."""
    messages_day = f"(create_time AT TIME ZONE '{stack.zone}')::date::text"
    moment = f"placed_at AT TIME ZONE '{ORDERS_ZONE}'"
    sql = SQL[counter.name].format(
        messages_day=messages_day,
        orders_day=f"({moment})::date::text",
        orders_week=f"(({moment})::date - (extract(isodow FROM {moment})::int - 1))::text",
    )
    rows = run_sql(stack.primary, sql)
    fields = len(counter.fields)
    if counter.storage is Storage.SET:
        return {(encode(row),) for row in rows}
    return {(encode(row[:-fields]), encode(row[-fields:])) for row in rows}


def of(part: Counter, counter: Counter, table: Elements) -> Elements:
    """Those of the table's elements that belong to a part."""
    if counter.shards == 1:
        return table
    return {element for element in table if shard_of_member(counter, element[-1]) == part.shard}


def in_redis(client: Redis, counter: Counter) -> Elements:
    """What a part holds."""
    at = keys.of_counter(counter.name)
    if counter.storage is Storage.SET:
        return {(member,) for member in cast("set[bytes]", client.smembers(at.members))}
    if counter.storage is Storage.LAST_SEEN:
        days = cast("dict[bytes, bytes]", client.hgetall(at.members))
        return {(day, member) for member, day in days.items()}
    generation = client.hget(at.intake, "generation")
    groups = cast("list[bytes]", client.zrange(at.members, 0, -1))
    pipe = client.pipeline(transaction=False)
    for group in groups:
        pipe.smembers(at.group(generation, group))
    return {(group, member) for group, some in zip(groups, pipe.execute(), strict=True) for member in some}


def odd_beside(client: Redis, counter: Counter, table: Elements) -> Iterator[str]:
    """What does not fit among the numbers that are kept beside the elements."""
    at = keys.of_counter(counter.name)
    size = client.hget(at.intake, "size")
    sizes = Tally(element[0] for element in table)
    if counter.storage is Storage.GROUPS:
        scores = client.zrange(at.members, 0, -1, withscores=True)
        directory = {group: int(score) for group, score in cast("list[tuple[bytes, float]]", scores)}
        if directory != sizes:
            yield f"its directory is {directory}, and has to be {dict(sizes)}"
        if set(client.zrange(at.names, 0, -1)) != set(sizes):
            yield "its names are not those of its groups"
        if int(client.hget(at.intake, "elements") or 0) != len(table):
            yield f"elements is {client.hget(at.intake, 'elements')!r}, and there are {len(table)}"
        if client.exists(at.broken):
            yield f"groups are broken: {client.hgetall(at.broken)}"
    elif counter.storage is Storage.LAST_SEEN:
        days = {day: int(number) for day, number in client.hgetall(at.days).items()}
        if days != sizes:
            yield f"its days are {days}, and have to be {dict(sizes)}"
    entries = len(sizes) if counter.storage is Storage.GROUPS else len(table)
    if int(size or 0) != entries:
        yield f"its size is {size!r}, and has to be {entries}"


def odd_answers(stack: ChaosStack, counter: Counter, table: Elements) -> Iterator[str]:
    """What query says otherwise."""
    if not counter.by:
        served = read_count(stack, counter.name)
        if served.get("count") != len(table) or served["state"] != "live":
            yield f"query says {served}, and there are {len(table)}"
    if counter.storage is Storage.GROUPS:
        listed = dict(read_groups(stack, counter))
        if listed != Tally(head for head, _ in table):
            yield f"query lists {listed}"
    elif counter.storage is Storage.LAST_SEEN:
        for window in WINDOWS:
            said = read(stack, f"{counter.name}?window={window}")
            expected = sum(day.decode() >= said["from"] for day, _ in table)
            if said["count"] != expected:
                yield f"query says {said} of {window}, and there are {expected}"


def read_groups(stack: ChaosStack, counter: Counter) -> Iterator[tuple[bytes, int]]:
    """All groups as query lists them, page by page."""
    after = ""
    while True:
        by = quote(",".join(counter.by_names))
        said = read(stack, f"{counter.of}/groups?by={by}&limit={LISTED}{after}")
        yield from ((encode(each["group"]), each["count"]) for each in said["groups"])
        if said["next_cursor"] is None:
            return
        after = f"&cursor={said['next_cursor']}"


def read_count(stack: ChaosStack, name: str) -> dict[str, Any]:
    """Query's present answer for a counter."""
    status, body = ask(stack.query.port, "GET", f"/v1/counts/{name}")
    return body if status == 200 else {"state": body["title"], "complete_through": None}


def read(stack: ChaosStack, path: str) -> dict[str, Any]:
    """Query's answer to a question about groups or windows. Raises ValueError if it has none."""
    status, body = ask(stack.query.port, "GET", f"/v1/counts/{path}")
    if status != 200:
        raise ValueError(f"{path}: {status} {body}")
    found: dict[str, Any] = body
    return found


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and decoded answer of a service, read for this request. Raises OSError, ValueError, http.client.HTTPException."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Cache-Control": "no-cache", "Content-Type": "application/json"}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
