"""The rows that are sent, and their table. The same numbers give the same rows."""

from __future__ import annotations

import json
import random

from loadtest.bench.world import World, connected, run_sql, wait_until_replayed

BATCH_ROWS = 10_000
CITIES = 5_000
REMARK = "Good morning from {}! It rains again, of course."
# Of a filled table: the number of rows for each user.
ROWS_PER_USER = 5
# Rows of one INSERT of `fill`, about 3 seconds.
FILL_ROWS = 500_000


def batch(seed: int, rows: int = BATCH_ROWS, users: int = 100_000) -> list[dict[str, str]]:
    """Some messages."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        city = draw.randrange(CITIES)
        found.append(
            {
                "state": f"S{city % 50:02d}",
                "city": f"City {city:04d}",
                "username": f"user{draw.randrange(users):07d}",
                "message": REMARK.format(city),
            }
        )
    return found


def as_ndjson(messages: list[dict[str, str]]) -> bytes:
    """The rows as a producer sends them."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def as_copy(messages: list[dict[str, str]]) -> bytes:
    """The rows in COPY's format. No value has a character that COPY treats specially."""
    return "".join("\t".join(message.values()) + "\n" for message in messages).encode()


def fill(world: World, rows: int) -> int:
    """Fill the table to this size, by ROWS_PER_USER and CITIES; returns the number of users. Analyzed, and replayed."""
    users = max(1, rows // ROWS_PER_USER)
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE message, receipt")
        for start in range(0, rows, FILL_ROWS):
            # A stride without a common factor with the number of users reaches each of them, and in no order.
            cursor.execute(
                """INSERT INTO message (state, city, username, message)
                   SELECT 'S' || lpad((city %% 50)::text, 2, '0'), 'City ' || lpad(city::text, 4, '0'),
                          'user' || lpad((n * 7919 %% %(users)s)::text, 7, '0'), 'Good morning from ' || city
                   FROM (SELECT n, n * 31 %% %(cities)s AS city
                         FROM generate_series(%(first)s::bigint, %(last)s) AS n) AS numbers""",
                {"users": users, "cities": CITIES, "first": start, "last": min(rows, start + FILL_ROWS) - 1},
            )
        cursor.execute("VACUUM (ANALYZE) message")
        cursor.execute("CHECKPOINT")
    wait_until_replayed(world)
    return int(run_sql(world.primary.url, "SELECT count(DISTINCT username) FROM message")[0][0])
