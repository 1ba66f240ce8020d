"""The demo: sends messages from real cities to ingest's HTTP API, then compares query's counts with SQL's.

Every run stores its messages again, with Idempotency-Keys of its own. The messages are the same each time (fixed
seed), so a second run adds rows but no members.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import psycopg2
import psycopg2.extensions
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from compose.local.ports import read_number
from compose.local.processes import StackError
from compose.local.servers import HOST, Postgres
from compose.local.services import Web, detail_of
from compose.local.stack import Stack
from ingest_service.loading.generator import messages
from shared_models.declarations import COUNTERS, Counter

MESSAGES = 100_000  # default of the variable of this name
BATCH_ROWS = 5_000
ANSWER_SECONDS = 60.0  # for one batch: the slowest disk that is still worth waiting for
COUNTED_SECONDS = 120.0  # for counters that are cold or catching up
TIMES_ASKED = 11
TIMES_COUNTED = 3

T = TypeVar("T")
P = ParamSpec("P")


class DemoFailed(StackError):
    """A service gave a wrong answer."""


class Api:
    """One keep-alive connection to a service of the stack."""

    def __init__(self, service: Web) -> None:
        self.name, self.authorization = service.name, service.authorization()
        self.connection = http.client.HTTPConnection(HOST, service.port, timeout=ANSWER_SECONDS)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            self.connection.request(method, path, body, named | self.authorization)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise DemoFailed(f"{self.name} did not answer {method} {path}: {error or type(error).__name__}.") from error


@dataclass(frozen=True)
class Sent:
    """Ingest's answers to the messages."""

    accepted: int
    all_counted: bool
    seconds: float  # ingest's time for all batches together
    ended_at: datetime


def run(stack: Stack, console: Console | None = None) -> int:
    """Send, wait, compare; 0 if every count is equal."""
    console = console or Console(highlight=False)
    rows = read_number(os.environ, "MESSAGES") or MESSAGES
    sent = send(Api(stack.ingest), rows, console)
    console.print(f"{sent.accepted:,} messages stored and answered in {sent.seconds:.1f} s.")
    query = Api(stack.query)
    wait_until_counted(query, sent)
    equal = compare(query, stack.primary, console)
    console.print(
        f"The stack is still up: {stack.query.url}/ shows the counts live, {stack.manage.url}/ shows how Rollcall keeps them; "
        "`make down` ends it.",
        soft_wrap=True,
    )
    return 0 if equal else 1


def send(ingest: Api, rows: int, console: Console) -> Sent:
    """Send messages in batches, with a progress bar in a terminal."""
    run_key, accepted, all_counted, seconds = secrets.token_hex(8), 0, True, 0.0
    columns = (TextColumn("Sending messages"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=rows)
        for number, batch in enumerate(batches(messages(rows), BATCH_ROWS)):
            lines = b"".join(json.dumps(message, ensure_ascii=False).encode() + b"\n" for message in batch)
            began = time.monotonic()
            status, body = ingest.ask(
                "POST",
                "/v1/messages/batch",
                lines,
                Content_Type="application/x-ndjson",
                Idempotency_Key=f"demo-{run_key}-{number}",
            )
            seconds += time.monotonic() - began
            if status != 200:
                raise DemoFailed(f"ingest answered {status} to a batch: {detail_of(body)}")
            answer = json.loads(body)
            if answer["rejected"]:
                raise DemoFailed(f"ingest rejected {answer['rejected']} messages: {answer['errors'][0]}")
            accepted += answer["accepted"]
            all_counted = all_counted and answer["counted"]
            progress.advance(task, len(batch))
    return Sent(accepted, all_counted, seconds, datetime.now(UTC))


def wait_until_counted(query: Api, sent: Sent) -> None:
    """Wait until every counter is live and includes the sent messages."""
    deadline = time.monotonic() + COUNTED_SECONDS
    while True:
        status, body = query.ask("GET", "/v1/counts")
        if status == 200 and is_complete(json.loads(body), sent):
            return
        if time.monotonic() > deadline:
            raise DemoFailed(f"query has no complete counts after {COUNTED_SECONDS:.0f} s: {detail_of(body)}")
        time.sleep(0.05)


def is_complete(answer: dict[str, Any], sent: Sent) -> bool:
    """Whether these counts include the sent messages: counted before Redis was read, or caught up since."""

    def includes(counter: dict[str, Any]) -> bool:
        if counter["state"] != "live":
            return False
        # If ingest could not reach Redis, only complete_through says so.
        moment = answer["as_of"] if sent.all_counted else counter["complete_through"]
        return moment is not None and datetime.fromisoformat(moment) >= sent.ended_at

    return all(includes(counter) for counter in answer["counters"].values())


def compare(query: Api, primary: Postgres, console: Console) -> bool:
    """Print each count from query next to SQL's; returns whether all are equal."""
    table = Table("counter", box=box.SIMPLE_HEAD)
    for column in ("query", "ms", "COUNT(DISTINCT …)", "ms", "faster", "equal"):
        table.add_column(column, justify="right")
    all_equal = True
    # Query first: counting a large table takes longer than query keeps an idle connection.
    answers = [timed(TIMES_ASKED, read_count, query, counter) for counter in COUNTERS]
    connection = psycopg2.connect(primary.url)
    try:
        for counter, (served, served_ms) in zip(COUNTERS, answers, strict=True):
            in_table, in_table_ms = timed(TIMES_COUNTED, count_distinct, connection, counter)
            equal = served == in_table
            all_equal = all_equal and equal
            table.add_row(
                counter.name,
                f"{served:,}",
                f"{served_ms:.2f}",
                f"{in_table:,}",
                f"{in_table_ms:.1f}",
                f"{in_table_ms / served_ms:,.0f} times",
                "[green]yes" if equal else "[red]no",
            )
    finally:
        connection.close()
    console.print(table)
    console.print(f"Median times of {TIMES_ASKED} requests, {TIMES_COUNTED} statements.")
    return all_equal


def read_count(query: Api, counter: Counter) -> int:
    """The count that query serves."""
    status, body = query.ask("GET", f"/v1/counts/{counter.name}")
    if status != 200:
        raise DemoFailed(f"query answered {status} for {counter.name}: {detail_of(body)}")
    return int(json.loads(body)["count"])


def count_distinct(connection: psycopg2.extensions.connection, counter: Counter) -> int:
    """The count from the table, as people write the SQL."""
    table, columns = table_of(counter)
    fields = ", ".join(f'"{column}"' for column in columns)
    distinct = fields if len(columns) == 1 else f"({fields})"
    with connection, connection.cursor() as cursor:
        cursor.execute(f'SELECT COUNT(DISTINCT {distinct}) FROM "{table}"')
        ((number,),) = cursor.fetchall()
        return int(number)


def table_of(counter: Counter) -> tuple[str, list[str]]:
    """The table and the columns of a counter."""
    return counter.table.relation, list(counter.fields)


def timed(times: int, ask: Callable[P, T], *args: P.args, **options: P.kwargs) -> tuple[T, float]:
    """The last answer, and the median time in milliseconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        answer = ask(*args, **options)
        took.append(time.perf_counter() - began)
    return answer, statistics.median(took) * 1000


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
