"""The journal: requests and their outcomes, one JSON object a line, in a file outside the stack.

Every event has `t` (seconds of the monotonic clock, the same for all threads) and `wall` (seconds since 1970; the primary's
clock is the same machine's). An operation is an `invoke` and, with the same `n`, a `complete`: it took place in
between, or, if its outcome is unknown, later or never.

    invoke    service: the service of an HTTP request, if it is one
              op = post     request, table (default: message), rows: [[token, username, state, city, day], …] of
                            message, [[token, email, branch, deleted, day], …] of orders
              op = erase    table (the same), where = {field: value, or a list of values}; {} is all rows
              op = counts   fresh: whether the answer has to be read from Redis after the request
              op = members  counter: what was asked, see `history.question_of`; asked = [[value, …], …]
    complete  outcome = ok | refused (it has not taken place, and will not) | unknown, and the answer
    loss      Redis may have lost something between `from` and `t`: it was killed, or a replica took the place of a primary that
              may have had more; or somebody has deleted what the derived `counter` holds that it names, and at `t` it was
              complete again. `parts`: only of the parts with these numbers, of so many (`of`)
    stale     between `from` and `t` a server of Redis may have answered reads although another one had taken its place; `parts`
              and `of` as above
    fault     number, kind, target, how: the start of a fault …
    mended    number: … and its end (`skipped`: it was not possible)
    table     the rows of the primary at rest: rows = {table: [[token, …], …]}
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Journal:
    """Appends to the file. For any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._last = 0

    def invoke(self, client: str, op: str, **details: Any) -> int:
        """Note an operation before it begins; returns the number for its end."""
        with self._lock:
            self._last += 1
            number = self._last
        self.write("invoke", n=number, client=client, op=op, **details)
        return number

    def complete(self, number: int, outcome: str, **details: Any) -> None:
        """Note its outcome."""
        self.write("complete", n=number, outcome=outcome, **details)

    def write(self, event: str, **details: Any) -> None:
        """Note any event."""
        with self._lock:
            # The time is taken inside the lock, so that the order of the lines is the order of the times. An invocation is
            # noted before it is made, a completion after it was seen: the operation took place within.
            line = json.dumps({"event": event, "t": time.monotonic(), "wall": time.time(), **details})
            self._file.write(line + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
