"""The journal: what was asked and what came of it, one JSON object a line, in a file outside the stack.

Every event has `t` (seconds of the monotonic clock, the same for all threads) and `wall` (seconds since 1970; the primary's
clock is the same machine's). An operation is an `invoke` and, with the same `n`, a `complete`: it took place somewhere in
between, or, where its outcome is unknown, later or never.

    invoke    service: who is asked over HTTP, if anybody
              op = post     request, table (message where it is left out), rows: [[token, username, state, city], …] of
                            message, [[token, email, branch, deleted], …] of orders
              op = erase    table (the same), where = {field: value, or a list of values}; {} is all rows
              op = counts   fresh: whether the answer has to be read from Redis after the question
              op = members  counter, asked = [[value, …], …]
    complete  outcome = ok | refused (it has not taken place, and will not) | unknown, and what was answered
    loss      Valkey was killed between `from` and `t`; or somebody has deleted the set of the `counter` that it names
    fault     number, kind, target, how: what is being done to the stack …
    mended    number: … and that it is over (`skipped`: that it could not be done)
    table     what the primary holds when nothing moves: rows = {table: [[token, …], …]}
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
        """Note what is about to be asked; the number by which its end is noted."""
        with self._lock:
            self._last += 1
            number = self._last
        self.write("invoke", n=number, client=client, op=op, **details)
        return number

    def complete(self, number: int, outcome: str, **details: Any) -> None:
        """Note what came of it."""
        self.write("complete", n=number, outcome=outcome, **details)

    def write(self, event: str, **details: Any) -> None:
        """Note anything."""
        with self._lock:
            # The time is taken inside the lock, so that the order of the lines is the order of the times. An invocation is
            # noted before it is made, a completion after it was seen: the operation took place within.
            line = json.dumps({"event": event, "t": time.monotonic(), "wall": time.time(), **details})
            self._file.write(line + "\n")

    def close(self) -> None:
        """No more."""
        self._file.close()
