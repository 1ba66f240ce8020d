"""Several replicas in one URL, as libpq writes them: postgres://user@host1:5432,host2:5433/name. Which of them is read.

The first that answers and is not behind the others. A snapshot proves itself, whichever server it is from (`snapshots`), so
another choice costs nothing but a connection. What is compared is the last commit that each shows, which is the primary's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn, parse_dsn

# A replica that shows so much less than another is passed over.
BEHIND = timedelta(seconds=5)


class Choice(NamedTuple):
    """The connection to a replica, its host, and why others before it are not read."""

    connection: Connection
    host: str
    passed_over: Mapping[str, str]


def split(dsn: str) -> dict[str, str]:
    """By "host:port", the connection string of each server that this one names. Raises psycopg2.ProgrammingError."""
    found = parse_dsn(dsn)
    hosts, ports = (found.get(name, "").split(",") for name in ("host", "port"))
    if len(hosts) < 2:
        return {"": dsn}
    if len(ports) not in (1, len(hosts)):
        raise psycopg2.ProgrammingError(f"DATABASE_URL names {len(hosts)} hosts and {len(ports)} ports")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    places = zip(hosts, ports, strict=True)
    return {f"{host}:{port or 5432}": make_dsn(dsn, host=host, port=port or "5432") for host, port in places}


def choose(
    dsns: Mapping[str, str],
    connect: Callable[[str], Connection],
    shown_by: Callable[[Connection], datetime | None],
) -> Choice:
    """Connect to each of these, and keep the first that is not behind. `shown_by`: the last commit that a connection shows.

    Raises psycopg2.Error, the last one's, if none can be read.
    """
    found: list[tuple[str, Connection, datetime | None]] = []
    passed_over: dict[str, str] = {}
    error: psycopg2.Error | None = None
    for host, dsn in dsns.items():
        try:
            connection = connect(dsn)
        except psycopg2.Error as raised:
            passed_over[host], error = first_line(raised), raised
            continue
        try:
            found.append((host, connection, shown_by(connection)))
        except psycopg2.Error as raised:
            connection.close()
            passed_over[host], error = first_line(raised), raised
    if not found:
        raise error or psycopg2.OperationalError("DATABASE_URL names no host")
    return keep_one(found, passed_over)


def keep_one(found: Sequence[tuple[str, Connection, datetime | None]], passed_over: dict[str, str]) -> Choice:
    """The first that is not behind the others, whose connections are closed."""
    newest = max((shown for _, _, shown in found if shown is not None), default=None)
    chosen: Choice | None = None
    for host, connection, shown in found:
        behind = None if newest is None or shown is None else newest - shown
        if behind is not None and behind > BEHIND:
            passed_over[host] = (
                f"it shows commits up to {shown:%H:%M:%S}, and another one {behind.total_seconds():.0f} s more"
            )
        elif chosen is None:
            chosen = Choice(connection, host, passed_over)
            continue
        connection.close()
    if chosen is None:  # the newest is not behind
        raise psycopg2.OperationalError("no replica shows a commit")
    return chosen


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]
