"""Load on any deployment, by URL and token: producers, dashboards, streams, an operator.

    INGEST_URL=… INGEST_TOKEN=… QUERY_URL=… locust -f loadtest/locustfile.py --headless -u 50 -t 60s

Without a service's URL its clients do not run, and a line says so. `make loadtest` runs this on a stack of its own and
then checks every message (`loadtest.load`); for that it passes --ledger.
"""

from __future__ import annotations

import itertools
import random
import secrets
import time
from gzip import compress
from pathlib import Path
from typing import Any, ClassVar

import gevent
import msgspec
from locust import FastHttpUser, between, constant, events, task

from loadtest.load.ledger import Entry, Ledger
from loadtest.load.rows import CITIES, STATES, USERS, row_of, token_of

PROFILES = {
    "ingest": {"Producer", "BatchProducer"},
    "query": {"Dashboard", "Watcher"},
    "mixed": {"Producer", "BatchProducer", "Dashboard", "Watcher", "Operator"},
}
ROLES = ("ingest", "manage", "query")

BATCH_ROWS = 500
# Clients repeat a request after a 503 with Retry-After, producers with the same key; after so many answers it has failed.
ATTEMPTS, RETRY_SECONDS = 8, 2.0
READ_BACK_EVERY = 20
STREAM_SECONDS = 5.0
RUN_SECONDS = 120.0

# One process of locust is one run: its producers have numbers, and so have their rows.
RUN = secrets.token_hex(4)
_producers = itertools.count()
_uncounted = _refused = 0
_ledger: Ledger | None = None


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """URLs and tokens, as options or variables."""
    for role in ROLES:
        parser.add_argument(f"--{role}-url", env_var=f"{role.upper()}_URL", default="", help=f"where {role} listens")
        parser.add_argument(
            f"--{role}-token",
            env_var=f"{role.upper()}_TOKEN",
            default="",
            is_secret=True,
            help=f"what lets us into {role}",
        )
    parser.add_argument("--mix", env_var="PROFILE", choices=list(PROFILES), default="mixed", help="who takes part")
    parser.add_argument(
        "--ledger", default="", help="a file for the acknowledged requests; then nobody else may delete rows"
    )


@events.init.add_listener
def choose_roles(environment: Any, **_: Any) -> None:
    """Leave out clients without a URL, and those that are not in the profile."""
    global _ledger
    options = environment.parsed_options
    chosen: list[Any] = []
    absent: list[Any] = []
    for user in environment.user_classes:
        if user.__name__ in PROFILES[options.mix]:
            user.host = getattr(options, f"{user.role}_url").rstrip("/") or None
            (chosen if user.host else absent).append(user)
    for role in sorted({user.role for user in absent}):
        names = ", ".join(user.__name__ for user in absent if user.role == role)
        print(f"{role.upper()}_URL is not given: there will be no {names}.")
    if not chosen:
        raise SystemExit("There are no clients: give INGEST_URL, MANAGE_URL or QUERY_URL.")
    environment.user_classes = chosen
    if options.ledger:
        _ledger = Ledger(Path(options.ledger), RUN)


@events.quitting.add_listener
def finish(environment: Any, **_: Any) -> None:
    """Print the figures of this process."""
    if _ledger is not None:
        _ledger.close()
    if _refused:
        print(f"{_refused:,} requests were answered with 503 and Retry-After, and asked again.")
    if _uncounted:
        print(f'{_uncounted:,} requests were acknowledged with "counted": false; catch-up counts them.')


class Client(FastHttpUser):
    """A client of one service."""

    abstract = True
    insecure = False
    role: ClassVar[str]

    def ask(self, method: str, path: str, *, role: str = "", body: Any = None, **options: Any) -> Any:
        """One request; use it in a `with`, to judge the answer."""
        role, settings = role or self.role, self.environment.parsed_options
        token = getattr(settings, f"{role}_token")
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            options["data"] = body if isinstance(body, bytes) else msgspec.json.encode(body)
        url = getattr(settings, f"{role}_url").rstrip("/") + path
        name = options.pop("name", path)
        for _ in range(ATTEMPTS - 1):
            response = self.client.request(method, url, headers=headers, name=name, catch_response=True, **options)
            retry_after = response.headers.get("Retry-After") if response.headers else None
            if response.status_code != 503 or retry_after is None:
                return response
            self.note_refusal(response, name)
            gevent.sleep(min(float(str(retry_after)), RETRY_SECONDS))
        return self.client.request(method, url, headers=headers, name=name, catch_response=True, **options)

    def note_refusal(self, response: Any, name: str) -> None:
        """Note a 503 with Retry-After in a line of its own. Only a request that gets no other answer fails."""
        global _refused
        _refused += 1
        with response:
            response.request_meta["name"] = f"{name} (503, asked again)"
            response.success()


class Producer(Client):
    """Sends single messages, each with a key, and again with the same key until it is acknowledged."""

    role = "ingest"
    weight = 10
    wait_time = constant(0)
    rows = 1
    path = "/v1/messages"

    def on_start(self) -> None:
        self.producer, self.number = next(_producers), 0

    @task
    def send(self) -> None:
        first, self.number = self.number, self.number + self.rows
        sent = [row_of(RUN, self.producer, number) for number in range(first, self.number)]
        body, headers = self.packed(sent)
        headers["Idempotency-Key"] = token_of(RUN, self.producer, first)
        entry = Entry(self.producer, first, self.rows, False, 0)
        try:
            for _ in range(ATTEMPTS):
                answer = self.attempt(body, headers)
                if answer is not None:
                    entry = entry._replace(acknowledged=True, row_id=answer.get("id", 0))
                    self.note(answer["counted"], sent)
                    return
                gevent.sleep(RETRY_SECONDS)
        finally:  # also if the load ends in between
            if _ledger is not None:
                _ledger.note(entry)

    def packed(self, sent: list[dict[str, str]]) -> tuple[bytes, dict[str, str]]:
        """The body, and the headers that say how to read it."""
        return msgspec.json.encode(sent[0]), {}

    def attempt(self, body: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
        """The answer of an acknowledged request; None if it is open."""
        with self.ask("POST", self.path, body=body, headers=headers) as response:
            if response.status_code not in (200, 201):
                return None  # locust counts it as a failure
            answer = msgspec.json.decode(response.content, type=dict[str, Any])
            if answer.get("rejected"):
                response.failure(f"rows were rejected: {answer['errors'][:1]}")
            return answer

    def note(self, counted: bool, sent: list[dict[str, str]]) -> None:
        """Sometimes check that an acknowledged member is counted."""
        global _uncounted
        _uncounted += not counted
        query = self.environment.parsed_options.query_url
        if not (counted and query and random.random() < 1 / READ_BACK_EVERY):
            return
        asked = {"members": [{"username": row["username"]} for row in sent]}
        name = "/v1/counts/users/members (read back)"
        with self.ask("POST", "/v1/counts/users/members", role="query", body=asked, name=name) as response:
            if response.status_code == 200 and not all(response.json()["members"]):
                response.failure("acknowledged as counted, and not counted")


class BatchProducer(Producer):
    """Sends batches, some of them gzipped."""

    weight = 2
    rows = BATCH_ROWS
    path = "/v1/messages/batch"

    def packed(self, sent: list[dict[str, str]]) -> tuple[bytes, dict[str, str]]:
        body, headers = msgspec.json.Encoder().encode_lines(sent), {"Content-Type": "application/x-ndjson"}
        if self.number // self.rows % 4 == 0:
            return compress(body, 1), {**headers, "Content-Encoding": "gzip"}
        return body, headers


class Dashboard(Client):
    """Reads counts and memberships, as pages and frontends do."""

    role = "query"
    weight = 8
    wait_time = between(0.01, 0.05)

    def on_start(self) -> None:
        self.etag = ""
        self.seen: dict[str, int] = {}

    @task(8)
    def counts(self) -> None:
        headers = {"If-None-Match": self.etag} if self.etag else {}
        with self.ask("GET", "/v1/counts", headers=headers) as response:
            if response.status_code == 304:
                response.success()
            elif response.status_code == 200:
                self.etag = response.headers.get("ETag", "")
                for name, counter in response.json()["counters"].items():
                    self.judge(response, name, counter)

    @task(3)
    def fresh_count(self) -> None:
        """A count that is read from Redis after the request: if nobody deletes, it never falls."""
        name = random.choice(("users", "cities"))
        with self.ask("GET", f"/v1/counts/{name}", headers={"Cache-Control": "no-cache"}) as response:
            if response.status_code == 200:
                counter = response.json()
                self.judge(response, name, counter)
                if _ledger is not None and counter["count"] < self.seen.get(name, 0):
                    response.failure(f"{name} fell from {self.seen[name]} to {counter['count']}")
                self.seen[name] = counter["count"]

    def judge(self, response: Any, name: str, counter: dict[str, Any]) -> None:
        """Check that a count says how good it is, and that a cold counter has none."""
        if (counter["count"] is None) != (counter["state"] == "cold"):
            response.failure(f"{name} is {counter['state']}, and its count is {counter['count']}")
        elif counter["count"] is not None and not counter["complete_through"]:
            response.failure(f"{name} does not say how complete it is")

    @task(3)
    def member(self) -> None:
        path = f"/v1/counts/users/member?username=user{random.randrange(USERS):05d}"
        with self.ask("GET", path, name="/v1/counts/users/member"):
            pass

    @task(1)
    def members(self) -> None:
        cities = random.sample(range(CITIES), 100)
        asked = {"members": [{"state": STATES[c % len(STATES)], "city": f"City {c}"} for c in cities]}
        with self.ask("POST", "/v1/counts/cities/members", body=asked):
            pass

    @task(1)
    def totals(self) -> None:
        with self.ask("GET", "/stats/get/"):
            pass


class Watcher(Client):
    """Listens to the stream for a while, and connects again. The time of an event is the time since the last one."""

    role = "query"
    weight = 3
    wait_time = between(0.1, 1)

    @task
    def listen(self) -> None:
        before = time.perf_counter()
        # Its connection is never used again: unread events would be the next answer.
        with self.ask("GET", "/v1/stream", stream=True, headers={"Connection": "close"}) as response:
            stream = response._response
            if response.status_code != 200:
                return
            try:
                with gevent.Timeout(STREAM_SECONDS, False):
                    while line := stream.readline(b"\n"):
                        if line.startswith(b"data:"):
                            now = time.perf_counter()
                            self.note_event(now - before, line)
                            before = now
            finally:
                stream.release()

    def note_event(self, seconds: float, line: bytes) -> None:
        complaint = None
        try:
            msgspec.json.decode(line.removeprefix(b"data:"), type=dict[str, Any])["counters"]
        except (msgspec.MsgspecError, KeyError) as error:
            complaint = error
        self.environment.events.request.fire(
            request_type="SSE",
            name="/v1/stream (event)",
            response_time=seconds * 1000,
            response_length=len(line),
            exception=complaint,
            context={},
        )


class Operator(Client):
    """Asks for runs, cancels some, and waits until they end."""

    role = "manage"
    fixed_count = 1
    wait_time = between(0.5, 2)

    def on_start(self) -> None:
        """Ask for a run at the start, so that even a short load has one."""
        self.ask_for_a_run()

    @task
    def ask_for_a_run(self) -> None:
        asked = {
            "mode": random.choice(("check", "repair")),
            "counters": random.choice((["users"], ["cities"], ["users", "cities"])),
        }
        with self.ask("POST", "/v1/runs", body=asked) as response:
            if response.status_code != 202:
                return
            path = f"/v1/runs/{response.json()['id']}"
        cancelled = random.random() < 0.25
        if cancelled:
            with self.ask("POST", f"{path}/cancel", name="/v1/runs/{id}/cancel"):
                pass
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            with self.ask("GET", path, name="/v1/runs/{id}") as response:
                run = response.json() if response.status_code == 200 else {"status": "unknown"}
                if run["status"] == "failed":
                    response.failure(f"the run failed: {run['detail']}")
                elif run["status"] == "cancelled" and not cancelled:
                    response.failure("the run was cancelled, but nobody asked for that")
            if run["status"] in ("done", "failed", "cancelled"):
                return
            gevent.sleep(0.5)

    @task
    def look(self) -> None:
        with self.ask("GET", "/v1/status"):
            pass
