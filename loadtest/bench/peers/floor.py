"""The floor of filling a set from the table: stream SELECT DISTINCT from the replica, SADD in pipelines.

`python -m loadtest.bench.peers.floor DATABASE_URL REDIS_URL KEY SELECT`: prints the seconds.
"""

from __future__ import annotations

import json
import sys
import time

import psycopg2
from redis import Redis

FETCHED_ROWS = 50_000
SADD_MEMBERS = 1_000


def main() -> None:
    database, redis_url, key, statement = sys.argv[1:]
    began = time.perf_counter()
    connection = psycopg2.connect(database)
    redis = Redis.from_url(redis_url)
    with connection, connection.cursor("floor") as cursor:
        cursor.execute(statement)
        while found := cursor.fetchmany(FETCHED_ROWS):
            members = [
                row[0].encode() if len(row) == 1 else json.dumps(row, separators=(",", ":")).encode() for row in found
            ]
            pipe = redis.pipeline(transaction=False)
            for start in range(0, len(members), SADD_MEMBERS):
                pipe.sadd(key, *members[start : start + SADD_MEMBERS])
            pipe.execute()
    connection.close()
    redis.close()
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
