"""A client of Rollcall's query: counts, members, and a stream of counts. It needs Python 3.11 and its standard library.

python client.py http://127.0.0.1:8003 users    # prints the count of users, and each change of it
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

# The values of a member's fields by their names: {"state": "NY", "city": "Ithaca"}.
Member = Mapping[str, str | int]
# A stream sends something every 5 seconds (HEARTBEAT_SECONDS), so a silence of this length means that it is broken.
TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Count:
    """A number, and how good it is. `count` is None if the state is cold or unavailable."""

    count: int | None
    state: Literal["live", "stale", "cold", "unavailable"]
    complete_through: datetime | None  # every row that was committed before is counted
    verified_at: datetime | None  # when the set was last compared with the table


class Refused(Exception):
    """Query answered with a problem. `type` is a stable name, such as urn:rollcall:unknown-counter; `detail` is for people."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(problem.get("detail", f"status {status}"))
        self.status, self.type = status, str(problem.get("type", "about:blank"))


class Query:
    """Query at an address such as http://127.0.0.1:8003. `patience_seconds`: how long to go on asking if it says 503.

    Methods raise Refused, and OSError if query cannot be reached.
    """

    def __init__(self, url: str, token: str | None = None, patience_seconds: float = 30.0) -> None:
        self.url, self.patience_seconds = url.rstrip("/"), patience_seconds
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def count(self, counter: str) -> Count:
        """One counter. While it is cold query says 503: this waits, and raises Refused when the patience has ended."""
        return read_count(self._ask(f"/v1/counts/{counter}"))

    def counts(self, *counters: str) -> dict[str, Count]:
        """These counters by name, or all of them. A cold one has no number."""
        return read_counts(self._ask("/v1/counts" + choice(counters)))

    def count_group(self, counter: str, by: str, *group: str) -> Count:
        """One group: `count_group("customers", "state,day", "NY", "2026-11-23")`."""
        return read_count(self._ask(f"/v1/counts/{counter}?{urlencode({'by': by, 'group': group}, doseq=True)}"))

    def count_window(self, counter: str, days: int) -> Count:
        """The members that have a row of the last days; 1 is today."""
        return read_count(self._ask(f"/v1/counts/{counter}?window={days}d"))

    def is_member(self, counter: str, **member: str | int) -> bool:
        """Whether one member is counted: `is_member("users", username="ann")`."""
        return bool(self._ask(f"/v1/counts/{counter}/member?{urlencode(member)}")["member"])

    def are_members(self, counter: str, members: Sequence[Member]) -> list[bool]:
        """Whether each is counted, in the order of the question; 1,000 at most."""
        return list(self._ask(f"/v1/counts/{counter}/members", {"members": members})["members"])

    def stream(self, *counters: str) -> Iterator[dict[str, Count]]:
        """What `counts` returns: at once, and after each change, without end. Connects again if the connection breaks."""
        while True:
            wait_seconds = 1.0
            try:
                with self._open("/v1/stream" + choice(counters)) as events:
                    for line in events:
                        field, _, value = line.decode().rstrip("\n").partition(": ")
                        if field == "data":
                            yield read_counts(json.loads(value))
                        elif field == "retry":
                            wait_seconds = int(value) / 1000
            except (OSError, http.client.HTTPException):
                pass  # query was restarted, or the network failed
            time.sleep(wait_seconds)

    def _ask(self, path: str, body: object = None) -> dict[str, Any]:
        with self._open(path, body) as answer:
            return dict(json.load(answer))

    def _open(self, path: str, body: object = None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        ends_at = time.monotonic() + self.patience_seconds
        while True:
            try:
                answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    text, retry_after = error.read(), error.headers.get("Retry-After", "")
                    is_problem = error.headers.get_content_type() == "application/problem+json"
                refused = Refused(error.code, json.loads(text) if is_problem else {})
            # 503: not now (a cold counter, a restart of Redis). 429: too much of one client. Both say when to ask again.
            if refused.status not in (429, 503) or not retry_after.isdecimal():
                raise refused
            if time.monotonic() + int(retry_after) > ends_at:
                raise refused
            time.sleep(int(retry_after))


def choice(counters: Sequence[str]) -> str:
    return f"?{urlencode({'counters': ','.join(counters)})}" if counters else ""


def read_counts(document: Mapping[str, Any]) -> dict[str, Count]:
    return {name: read_count(counter) for name, counter in document["counters"].items()}


def read_count(document: Mapping[str, Any]) -> Count:
    through, verified = (
        datetime.fromisoformat(document[name]) if document[name] else None
        for name in ("complete_through", "verified_at")
    )
    return Count(document["count"], document["state"], through, verified)


if __name__ == "__main__":
    for seen in Query(sys.argv[1]).stream(*sys.argv[2:]):
        print(*(f"{name} {counter.count} {counter.state}" for name, counter in seen.items()), sep=", ", flush=True)
