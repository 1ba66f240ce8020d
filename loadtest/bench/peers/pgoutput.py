"""A simple program that follows a table by logical replication: it adds the member of each inserted row with SADD.

`python -m loadtest.bench.peers.pgoutput DATABASE_URL REDIS_URL KEY PUBLICATION`. The publication has one table, with a key and
the member's column. It prints "ready" when it listens. It lacks deletes, updates, members with several rows, earlier
rows, a verification, and the supervision of the slot while it does not run.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2.extras import LogicalReplicationConnection
from redis import Redis

SLOT = "bench_pgoutput"
# It acknowledges the members added by then.
STATUS_SECONDS = 1


def columns(message: bytes) -> Iterator[bytes | None]:
    """The texts of an Insert message of pgoutput's protocol 1: 'I', the relation's oid, 'N', how many, then each."""
    (number,) = struct.unpack_from("!H", message, 6)
    at = 8
    for _ in range(number):
        kind, at = message[at : at + 1], at + 1
        if kind != b"t":
            yield None
            continue
        (length,) = struct.unpack_from("!I", message, at)
        yield message[at + 4 : at + 4 + length]
        at += 4 + length


def main() -> None:
    database, redis_url, key, publication = sys.argv[1:]
    redis = Redis.from_url(redis_url)
    connection = psycopg2.connect(database, connection_factory=LogicalReplicationConnection)
    cursor = connection.cursor()
    cursor.execute(f"CREATE_REPLICATION_SLOT {SLOT} TEMPORARY LOGICAL pgoutput")
    cursor.start_replication(
        slot_name=SLOT, options={"proto_version": "1", "publication_names": publication}, status_interval=STATUS_SECONDS
    )
    print("ready", flush=True)

    found: list[bytes] = []

    def consume(message: Any) -> None:
        if message.payload[:1] == b"I":
            _, member = columns(message.payload)
            if member is not None:
                found.append(member)
        elif message.payload[:1] == b"C":  # the transaction's end
            if found:
                redis.sadd(key, *found)
                found.clear()
            message.cursor.send_feedback(flush_lsn=message.data_start)

    cursor.consume_stream(consume)


if __name__ == "__main__":
    main()
