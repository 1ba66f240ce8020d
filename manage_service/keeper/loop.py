"""The keeper: one process that catches up several times a second, builds what is cold, and reconciles on schedule or when asked.

It does one thing at a time, in steps that take milliseconds. Between two steps of a long job it catches up when that is
due. It keeps everything that it has to remember in Redis, so it may be killed anywhere: the next keeper continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from threading import Event
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import psycopg2
import structlog
from psycopg2.errors import LockNotAvailable
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from redis.typing import EncodableT, FieldT

from manage_service import stores
from manage_service.keeper.sampling import take_samples
from manage_service.keeper.schedule import Schedule
from manage_service.leases import Lease, LeaseLost
from manage_service.protocol.bucket_filter import BucketFilter
from manage_service.protocol.build import build, needs_building
from manage_service.protocol.catch_up import Memory, Pass, catch_up, catch_up_at_rest
from manage_service.protocol.departures import departing, resolve_departures
from manage_service.protocol.groups import look_once, mend, watch
from manage_service.protocol.in_step import in_step
from manage_service.protocol.plausibility import Plausibility
from manage_service.protocol.progress import Steps
from manage_service.replica.snapshots import Snapshot, is_away
from manage_service.runs import registry, totals
from manage_service.runs.execution import execute, first_line
from shared_models import declarations
from shared_models.declarations import Counter, Storage, get_counter, get_part
from shared_models.protocol import keys, moments, samples, states, steps
from shared_models.protocol.states import State
from shared_models.protocol.steps import TooManyGroups

log = structlog.get_logger()

# The fields of the keeper's hash in Redis.
Note: TypeAlias = dict[FieldT, EncodableT]

# The pause while a store does not answer: short enough to be back in a second, long enough not to fill the log.
PAUSE_AFTER_FAILURE_SECONDS = 1.0
# The pause while a job waits for the replica, or another keeper holds the lease.
PAUSE_WAITING_SECONDS = 0.1
# A server of a cluster that has failed is left alone for so many times as long as it took to fail.
LEAVE_ALONE = 5
# The pause before the keeper tries a build again that Postgres refused (no such table, no right to read it), or that took
# too long; the other counters go on.
RETRY_BUILD_SECONDS = 60.0


class Timing(NamedTuple):
    """The keeper's settings, in seconds."""

    catch_up_seconds: float
    reconcile_seconds: float
    wait_seconds: float


class Job(NamedTuple):
    """The current build or run."""

    name: str
    steps: Steps
    lease: Lease
    counter: str = ""  # the counter that is built


# The pass over a part whose server is left alone.
AWAY = Pass(behind="its server does not answer")


class Keeper:
    """`run` works until it is told to stop; tests call one `tick` after the other."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.replica = stores.connect_replica()
        self.nodes = stores.nodes_for_passes()
        self.control = stores.connect_nodes()  # leases outlive a broken pass
        # Servers of a cluster that have failed: their URL, and until when the keeper leaves them alone.
        self.left_alone: dict[str, float] = {}
        self.failed_server = ""  # the reason of the last one in this round of passes
        self.lease = Lease(self.control, "keeper")
        self.leading = False
        self.job: Job | None = None
        self.catch_up_at = 0.0
        self.sample_at = 0.0
        self.unresolved: dict[str, str] = {}  # why departures cannot be read
        self.unsampled = ""  # why no sample could be taken
        self.source = ""  # the source that the replica showed last; empty while it does not answer
        # The xact at which an open transaction holds the horizon, and since when; for status and metrics.
        self.held_at, self.held_since = 0, 0.0
        self.schedule = Schedule(timing.reconcile_seconds)
        self.failure = ""
        self.refused: dict[str, tuple[str, float]] = {}  # why a counter cannot be built, and when to try again
        self.behind: dict[str, str] = {}
        self.plausibility = Plausibility()
        # Whether there are departures; the present batches, by counter; and the filters of the present run.
        self.has_departures = False
        self.departures: dict[str, Steps] = {}
        self.filters: dict[str, BucketFilter] = {}
        # The looks of `watch` by counter, and the groups that have to be read again.
        self.looks: dict[str, Iterator[dict[bytes, str]]] = {}
        self.turn = 0
        self.broken: dict[str, dict[bytes, str]] = {}
        self.mending: dict[str, Steps] = {}  # by part
        self.unmended: dict[str, str] = {}  # why a group cannot be read again
        self.looks_at_all = False
        # By derived counter: the rows above the cursors that passes over these connections to Redis have added.
        self.memories: dict[str, Memory] = {}

    def run(self, stop: Event) -> None:
        """Tick until `stop` is set, also after errors."""
        log.info("keeper.started", **self.timing._asdict())
        while not stop.is_set():
            stop.wait(self.tick())
        self.close()
        log.info("keeper.stopped")

    def tick(self) -> float:
        """One step of what is due; returns for how many seconds there is nothing to do."""
        try:
            return self.step()
        except (RedisError, LeaseLost) as error:
            # A pass over a broken connection is void. Its work stays, and its notes are in Redis.
            self.note_failure("redis", error)
            self.start_over()
            # A key has a wrong type; it may be the set of one group among many. The next look goes through everything and finds
            # it. Otherwise each step might fail at this key before a look reaches it.
            self.looks_at_all = is_of_another_type(error)
            return PAUSE_AFTER_FAILURE_SECONDS

    def step(self) -> float:
        if not self.leading:
            if not self.lease.acquire():
                return PAUSE_WAITING_SECONDS
            self.leading = True
            log.info("keeper.leads")
        try:
            self.lease.renew()
        except LeaseLost:
            self.leading = False
            raise
        now = time.monotonic()
        if now >= self.catch_up_at:
            try:
                finished = self.catch_up_all()
                self.note_recovery()
            except psycopg2.Error as error:
                # The current job continues: a run waits for the replica only for a limited time, then fails with the reason.
                self.note_failure("replica", error)
                self.source, finished = "", True
                self.note_tick({})
            took = time.monotonic() - now
            # Catching up takes at most half of the time: while a transaction stays open for hours, every pass
            # reads the rows above the horizon again.
            self.catch_up_at = now + max(self.timing.catch_up_seconds, 2 * took) if finished else 0.0
            self.begin_departures()
            self.look_at_groups()
        self.resolve_departures()
        if now >= self.sample_at:
            self.sample_at = now + samples.SAMPLE_SECONDS
            self.sample()
        mends = self.mend_groups()
        pause = self.step_job()
        return 0.0 if mends else pause

    def look_at_groups(self) -> None:
        """Look at one piece of each part of one counter (`watch`); the next tick looks at the next counter. So counters with
        many parts are not looked at more seldom. After an error that says that a key has a wrong type, look at all pieces of all
        counters."""
        watched = [counter for counter in declarations.kept() if counter.storage is not Storage.SET]
        if self.looks_at_all:
            self.looks_at_all = False
            for counter in watched:
                for part in counter.parts:
                    self.look_at(part, whole=True)
        elif watched:
            self.turn = (self.turn + 1) % len(watched)
            for part in watched[self.turn].parts:
                self.look_at(part)

    def look_at(self, counter: Counter, *, whole: bool = False) -> None:
        """Look at one piece of one part, or at the whole of it."""
        with self.server_of(counter) as redis:
            if redis is None:
                return
            looks = self.looks.setdefault(counter.name, watch(counter, redis))
            try:
                for broken in look_once(counter, redis) if whole else islice(looks, 1):
                    self.broken[counter.name] = broken
                    self.renew()
            except ResponseError as error:
                if not is_of_another_type(error):
                    raise
                # Only the look at this counter begins again; the others continue.
                removed = states.remove_misfits(redis, counter.name)
                log.error("counter.removed_misfits", counter=counter.name, keys=removed)
                self.looks.pop(counter.name, None)

    def mend_groups(self) -> bool:
        """One step of reading a group again, for each part that has such groups; whether one of them did something. It is no job:
        jobs go on while it waits for the replica."""
        did = False
        for part in declarations.parts():
            broken = self.broken.get(part.name)
            if part.name not in self.mending and not broken:
                continue
            with self.server_of(part) as redis:
                if redis is None:
                    continue
                if part.name not in self.mending and broken:
                    group, token = broken.popitem()
                    self.mending[part.name] = mend(part, group, token, self.replica, redis)
                progress, reason = None, ""
                try:
                    progress = next(self.mending[part.name], None)
                except (psycopg2.Error, TooManyGroups) as error:
                    reason = reason_of(error)
                if progress is None:
                    self.mending.pop(part.name, None)
                if reason != self.unmended.get(part.name, ""):
                    self.unmended[part.name] = reason
                    if reason:
                        log.warning("group.not_mended", counter=part.name, reason=reason)
                did = did or not (reason or (progress and progress.waiting))
                self.renew()
        return did

    def begin_departures(self) -> None:
        """Begin a batch for each part that has departures, and is not resolving some."""
        waiting = [each for each in declarations.parts() if each.name not in self.departures]
        if not self.has_departures or not waiting:
            return
        for url, parts in self.by_server(waiting):
            with self.server(url) as redis:
                try:
                    parts = departing(parts, self.replica, redis)
                except psycopg2.Error:
                    pass  # each batch says why by itself
                for part in parts:
                    swept = partial(self.tell_filter, part.name)
                    self.departures[part.name] = resolve_departures(part, self.replica, redis, swept)

    def resolve_departures(self) -> None:
        """One step of each batch. A batch that Postgres refuses begins again at the next tick."""
        for name, batch in list(self.departures.items()):
            self.renew()
            progress, reason = None, ""
            with self.server_of(get_part(name)) as redis:
                try:
                    while redis and (progress := next(batch, None)) is not None and not progress.waiting:
                        self.renew()
                except psycopg2.Error as error:
                    progress, reason = None, reason_of(error)
            if reason != self.unresolved.get(name, ""):
                self.unresolved[name] = reason
                log.warning(
                    "keeper.departures_wait" if reason else "keeper.departures_go_on", counter=name, reason=reason
                )
            if progress is None:
                self.departures.pop(name, None)

    def tell_filter(self, name: str, members: list[bytes]) -> None:
        """Tell the current run that departures have removed these members."""
        if name in self.filters:
            self.filters[name].take_swept(members)

    def sample(self) -> None:
        """Take the samples that are due. If Redis refuses them (an older users.acl), only the charts are missing."""
        reason = ""
        try:
            take_samples(self.control)
        except ResponseError as error:
            reason = str(error)
        if reason and reason != self.unsampled:
            log.warning("keeper.takes_no_samples", reason=reason)
        self.unsampled = reason

    def by_server(self, parts: Iterable[Counter]) -> list[tuple[str, list[Counter]]]:
        """The parts, by the URL of their server; without those of servers that the keeper leaves alone at present."""
        now = time.monotonic()
        return [
            (url, some)
            for url, some in self.nodes.by_server(parts, keys.home_of).items()
            if self.left_alone.get(url, 0.0) <= now
        ]

    @contextmanager
    def server(self, url: str) -> Iterator[Redis]:
        """What is done with one server. If a server of a cluster fails, this costs its parts: the others go on, and the
        next pass over its parts begins with a new connection."""
        begun = time.monotonic()
        try:
            yield self.nodes.at(url)
        except RedisError as error:
            if self.nodes.is_one:
                raise
            self.leave_alone(url, error, time.monotonic() - begun)

    @contextmanager
    def server_of(self, part: Counter) -> Iterator[Redis | None]:
        """The same for the server of a part; None if the keeper leaves it alone."""
        url = self.nodes.where(keys.home_of(part))
        if self.left_alone.get(url, 0.0) > time.monotonic():
            yield None
            return
        with self.server(url) as redis:
            yield redis

    def leave_alone(self, url: str, error: RedisError, took: float = 0.0) -> None:
        """A server of a cluster has failed: what its parts were doing is void. One that does not answer for seconds takes a
        sixth of the keeper's time at most."""
        self.left_alone[url] = time.monotonic() + max(PAUSE_AFTER_FAILURE_SECONDS, LEAVE_ALONE * took)
        self.failed_server = f"{without_password(url)}: {reason_of(error)}"
        self.looks_at_all = self.looks_at_all or is_of_another_type(error)
        for part in self.nodes.by_server(declarations.parts(), keys.home_of).get(url, []):
            self.departures.pop(part.name, None)
            self.looks.pop(part.name, None)
            self.broken.pop(part.name, None)
            self.mending.pop(part.name, None)
            self.memories.pop(part.whole, None)
        close_quietly(self.nodes.forget(url))
        self.nodes.look_again()

    def note_failure(self, store: str, error: Exception) -> None:
        """Log an error once, not every second; and write it for operators, if Redis can be written."""
        self.note_reason(store, reason_of(error))

    def note_reason(self, store: str, reason: str) -> None:
        if reason != self.failure:
            log.warning("keeper.failed", store=store, reason=reason)
            self.failure = reason
            if store != "redis":
                self.nodes.of(keys.KEEPER).hset(keys.KEEPER, "failure", reason)

    def note_recovery(self) -> None:
        """Note that both stores answer."""
        if self.failed_server:
            self.note_reason("redis", self.failed_server)
        elif self.failure:
            log.info("keeper.recovered", after=self.failure)
            self.failure = ""

    def catch_up_all(self) -> bool:
        """One pass over each part that has a cursor; returns whether all passes are complete."""
        self.failed_server = ""
        found: dict[str, State] = {}
        for url, parts in self.by_server(declarations.parts()):
            with self.server(url) as redis:
                steps.load_scripts(redis)
                found |= states.read_states(redis, [part.name for part in parts])
        with self.replica.snapshot() as snapshot:
            self.source = snapshot.source
            self.has_departures = snapshot.has_departures()
            shown = self.describe(snapshot)
            for name, state in found.items():
                with self.server_of(get_part(name)) as its_redis:
                    if its_redis is not None:
                        self.plausibility.mend(name, state, snapshot, its_redis)
        finished, failing = True, []
        rested = self.catch_up_resting(found)
        for counter in declarations.kept():
            waiting = [part for part in counter.parts if part.name in found and part.name not in rested]
            passes = self.catch_up_one(counter, waiting) if waiting else {}
            for part in counter.parts:
                did = rested.get(part.name) or passes.get(part.name) or AWAY
                finished = finished and did.finished
                if did.failed:
                    failing.append(f"{part.name} cannot be caught up: {did.behind}")
                self.note_pass(part, did)
        refused = [f"{name} cannot be built: {reason}" for name, (reason, _) in self.refused.items()]
        if self.failed_server:
            failing.append(self.failed_server)
        self.note_tick({**shown, "failure": "; ".join(refused + failing)})
        return finished

    def note_pass(self, part: Counter, did: Pass) -> None:
        """Log what a pass did, if it is something new; and count its work."""
        if did.behind != self.behind.get(part.name, ""):
            self.behind[part.name] = did.behind
            log.info("keeper.behind" if did.behind else "keeper.abreast", counter=part.name, reason=did.behind)
        if did.added:
            log.info("keeper.caught_up", counter=part.name, read=did.read_members, added=did.added)
        if did.read_members:
            redis = self.nodes.of(keys.TOTALS)
            totals.note_pass(redis, part.whole, read=did.read_members, added=did.added)

    def catch_up_resting(self, found: Mapping[str, State]) -> dict[str, Pass]:
        """One pass over each part whose table has nothing new, with one snapshot for each table."""
        rested: dict[str, Pass] = {}
        tables = dict.fromkeys(counter.table for counter in declarations.COUNTERS)
        for table in tables:
            parts = [part for part in declarations.parts() if part.table == table]
            try:
                rested |= catch_up_at_rest(parts, found, self.memories, self.replica, self.nodes)
            except psycopg2.Error as error:
                if is_away(error):
                    raise
                # The passes one by one say which of the counters Postgres refuses.
            self.renew()
        return rested

    def catch_up_one(self, counter: Counter, parts: list[Counter]) -> dict[str, Pass]:
        """One pass over each of these parts of a derived counter. If Postgres refuses it (no such table, no right, too slow),
        only this counter fails. If the replica does not answer, that affects all counters, and the error is raised."""
        memory = self.memories.pop(counter.name, None)
        try:
            passes = catch_up(parts, self.replica, self.nodes, memory, self.renew)
        except psycopg2.Error as error:
            if is_away(error):
                raise
            return {part.name: Pass(behind=reason_of(error), failed=True) for part in parts}
        except ResponseError as error:
            if not is_of_another_type(error):
                raise
            # A key with a wrong type is not Rollcall's. If it is the set of a group, `watch` drops the group.
            removed = [states.remove_misfits(self.nodes.of(keys.home_of(part)), part.name) for part in parts]
            behind = f"keys of another type were found, and removed: {[*filter(None, removed)] or 'of a group'}"
            return {part.name: Pass(behind=behind, failed=True) for part in parts}
        for part in parts:
            did = passes[part.name]
            if did.memory is not None:
                self.memories[counter.name] = did.memory
            if did.error is not None:
                self.leave_alone(self.nodes.where(keys.home_of(part)), did.error)
        return passes

    def renew(self) -> None:
        """Renew every lease, if it is time. Called between two statements. Raises LeaseLost."""
        self.lease.renew()
        if self.job is not None:
            self.job.lease.renew()

    def describe(self, snapshot: Snapshot) -> Note:
        """The replica's figures for the metrics, and for how long an open transaction has held back the horizon."""
        now = time.monotonic()
        if not snapshot.held or snapshot.horizon != self.held_at:
            self.held_at, self.held_since = snapshot.horizon, now
        return {
            "committed_through": moments.to_microseconds(snapshot.committed_through),
            "behind_bytes": snapshot.behind_bytes,
            "passed_over": len(self.replica.passed_over),
            "held_microseconds": round((now - self.held_since) * 1e6),
        }

    def note_tick(self, shown: Note) -> None:
        """Write to Redis that the keeper works, and what the replica shows; empty figures if it cannot be read."""
        ticked_at = moments.to_microseconds(datetime.now(UTC))
        job = self.job.name if self.job else ""
        noted: Note = {"ticked_at": ticked_at, "job": job, "source": self.source, **shown}
        self.nodes.of(keys.KEEPER).hset(keys.KEEPER, mapping=noted)

    def note_job(self, name: str) -> None:
        """Write to Redis which job there is; "" if there is none."""
        self.nodes.of(keys.KEEPER).hset(keys.KEEPER, "job", name)

    def step_job(self) -> float:
        """One step of the current job, or of the next one; returns for how many seconds there is nothing to do."""
        if self.job is None:
            self.job = self.next_job()
            if self.job is not None:
                self.note_job(self.job.name)
        if self.job is None:
            return max(0.0, min(PAUSE_WAITING_SECONDS, self.catch_up_at - time.monotonic()))
        self.job.lease.renew()
        try:
            progress = next(self.job.steps)
        except StopIteration:
            log.info("job.ended", job=self.job.name)
            self.drop_job()
            self.note_job("")
            return 0.0
        except (psycopg2.Error, TooManyGroups) as error:
            # A build; runs do their own waiting. It continues from its position: at once if the replica
            # did not answer, and after the others if Postgres refuses it or is too slow.
            if isinstance(error, psycopg2.Error) and is_away(error):
                self.note_failure("replica", error)
                self.drop_job()
                return PAUSE_AFTER_FAILURE_SECONDS
            self.put_off(self.job.counter, error)
            self.drop_job()
            return 0.0
        return PAUSE_WAITING_SECONDS if progress.waiting else 0.0

    def next_job(self) -> Job | None:
        """The next job: first builds, then runs that somebody asked for, then runs of the schedule."""
        found: dict[str, State] = {}
        for url, parts in self.by_server(declarations.parts()):
            with self.server(url) as redis:
                found |= states.read_states(redis, [part.name for part in parts])
        for counter in declarations.kept():
            cold = [
                part for part in counter.parts if part.name in found and needs_building(found[part.name], self.source)
            ]
            if not cold:
                self.refused.pop(counter.name, None)
                continue
            _, again_at = self.refused.get(counter.name, ("", 0.0))
            if self.source and time.monotonic() >= again_at:
                lease = Lease(self.control, f"build:{counter.name}")
                if lease.acquire():
                    log.info("job.started", job=f"build {counter.name}")
                    builds = {part.name: build(part, self.replica, self.nodes.of(keys.home_of(part))) for part in cold}
                    steps = in_step(builds, self.replica, self.part_failed, self.renew)
                    return Job(f"build {counter.name}", steps, lease, counter.name)
        wholes = {
            counter.name: states.combine([found[part.name] for part in counter.parts])
            for counter in declarations.kept()
            if all(part.name in found for part in counter.parts)
        }
        self.schedule.ask_for_what_is_due(wholes, self.refused, self.control.of(keys.RUNS))
        runs = self.nodes.of(keys.RUNS)
        for run in registry.still_open(runs):
            lease = Lease(self.control, f"run:{run.id}")
            if lease.acquire():
                # Read again, now that this process has the lease: another process may just have ended it.
                unended = registry.get_open(runs, run.id)
                if unended is not None:
                    steps = execute(
                        unended,
                        self.replica,
                        self.nodes,
                        wait_seconds=self.timing.wait_seconds,
                        filters=self.filters,
                    )
                    return Job(f"run {run.id}", steps, lease)
                lease.release()
        return None

    def part_failed(self, name: str, error: Exception) -> None:
        """A part of a job has failed. If its server is one of a cluster, this costs the part."""
        if self.nodes.is_one or not isinstance(error, RedisError):
            raise error
        self.leave_alone(self.nodes.where(keys.home_of(get_part(name))), error)

    def put_off(self, name: str, error: Exception) -> None:
        """Postpone a counter that cannot be built, and say why."""
        # A lock on the table is released soon, or its holder is killed; an operator grants a missing right.
        seconds = PAUSE_AFTER_FAILURE_SECONDS if isinstance(error, LockNotAvailable) else RETRY_BUILD_SECONDS
        reason = reason_of(error)
        self.refused[name] = reason, time.monotonic() + seconds
        for part in get_counter(name).parts:
            with self.server_of(part) as redis:
                if redis is not None:
                    redis.hset(keys.home_of(part), "refused", reason)  # until it is built
        log.error("build.refused", counter=name, reason=reason, again_seconds=seconds)

    def drop_job(self) -> None:
        """End this job, or this attempt at it."""
        if self.job is not None:
            self.job.steps.close()
            release_quietly(self.job.lease)
            self.job = None
            self.filters.clear()

    def start_over(self) -> None:
        """Close everything: the next step begins with new connections, and continues from the state in Redis."""
        self.drop_job()
        self.memories.clear()
        self.departures.clear()
        self.looks.clear()
        self.broken.clear()
        self.mending.clear()
        self.replica.close()
        for client in self.nodes.forget_all():
            close_quietly(client)
        self.left_alone.clear()
        self.control.look_again()
        self.catch_up_at = 0.0

    def close(self) -> None:
        """End cleanly, so that the next keeper does not have to wait until the leases expire."""
        self.start_over()
        release_quietly(self.lease)
        for client in self.control.forget_all():
            close_quietly(client)


def reason_of(error: Exception) -> str:
    """The kind of the error, and the first line of its message: later lines may quote rows."""
    return f"{type(error).__name__}: {first_line(error)}"


def is_of_another_type(error: Exception) -> bool:
    """Whether Redis refused a command because a key is of another type. In a pipeline, its words come after the command's."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def release_quietly(lease: Lease) -> None:
    """Release a lease; if Redis does not answer, it expires."""
    try:
        lease.release()
    except RedisError:
        pass


def close_quietly(client: Redis | None) -> None:
    """Close the connections of a client; its server may be gone."""
    if client is not None:
        with suppress(RedisError, OSError):
            client.close()
            client.connection_pool.disconnect()


def without_password(url: str) -> str:
    """The server in a URL, for people."""
    return urlsplit(url).netloc.rpartition("@")[2] or url
