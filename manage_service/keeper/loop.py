"""The keeper: one process that catches up several times a second, builds what is cold, and reconciles on schedule or when asked.

It does one thing at a time, in steps that take milliseconds. Between two steps of a long job it catches up when that is
due. It keeps everything that it has to remember in Redis, so it may be killed anywhere: the next keeper continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from threading import Event
from typing import NamedTuple, TypeAlias

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
from manage_service.protocol.groups import MOST_PIECES, mend, watch
from manage_service.protocol.plausibility import Plausibility
from manage_service.protocol.progress import Steps
from manage_service.replica.snapshots import Snapshot, is_away
from manage_service.runs import registry, totals
from manage_service.runs.execution import execute, first_line
from shared_models import declarations
from shared_models.declarations import Counter, Storage
from shared_models.protocol import keys, moments, samples, states, steps
from shared_models.protocol.states import State, read_states
from shared_models.protocol.steps import TooManyGroups

log = structlog.get_logger()

# The fields of the keeper's hash in Redis.
Note: TypeAlias = dict[FieldT, EncodableT]

# The pause while a store does not answer: short enough to be back in a second, long enough not to fill the log.
PAUSE_AFTER_FAILURE_SECONDS = 1.0
# The pause while a job waits for the replica, or another keeper holds the lease.
PAUSE_WAITING_SECONDS = 0.1
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


class Keeper:
    """`run` works until it is told to stop; tests call one `tick` after the other."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.replica = stores.connect_replica()
        self.redis: Redis = stores.connect_for_passes()
        self.control: Redis = stores.connect_redis()  # leases outlive a broken pass
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
        self.looks_at_all = False
        # The rows above the cursors that passes over this connection to Redis have added.
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
        return self.step_job()

    def look_at_groups(self) -> None:
        """Look at one piece of one counter (`watch`); the next tick looks at the next counter. After an error that says that
        a key has a wrong type, look at all pieces of all counters."""
        watched = [counter for counter in declarations.derived() if counter.storage is not Storage.SET]
        if self.looks_at_all:
            self.looks_at_all = False
            for counter in watched:
                self.look_at(counter, MOST_PIECES)
        elif watched:
            self.turn = (self.turn + 1) % len(watched)
            self.look_at(watched[self.turn], 1)

    def look_at(self, counter: Counter, pieces: int) -> None:
        """Look at this many pieces of one counter."""
        looks = self.looks.setdefault(counter.name, watch(counter, self.redis))
        try:
            for broken in islice(looks, pieces):
                self.broken[counter.name] = broken
        except ResponseError as error:
            if not is_of_another_type(error):
                raise
            # Only the look at this counter begins again; the others continue.
            removed = states.remove_misfits(self.redis, counter.name)
            log.error("counter.removed_misfits", counter=counter.name, keys=removed)
            del self.looks[counter.name]

    def begin_departures(self) -> None:
        """Begin a batch for each counter that has departures, and is not resolving some."""
        waiting = [each for each in declarations.derived() if each.name not in self.departures]
        if not self.has_departures or not waiting:
            return
        try:
            waiting = departing(waiting, self.replica, self.redis)
        except psycopg2.Error:
            pass  # each batch says why by itself
        for counter in waiting:
            swept = partial(self.tell_filter, counter.name)
            self.departures[counter.name] = resolve_departures(counter, self.replica, self.redis, swept)

    def resolve_departures(self) -> None:
        """One step of each batch. A batch that Postgres refuses begins again at the next tick."""
        for name, batch in list(self.departures.items()):
            self.renew()
            reason = ""
            try:
                while (progress := next(batch, None)) is not None and not progress.waiting:
                    self.renew()
            except psycopg2.Error as error:
                progress, reason = None, reason_of(error)
            if reason != self.unresolved.get(name, ""):
                self.unresolved[name] = reason
                log.warning(
                    "keeper.departures_wait" if reason else "keeper.departures_go_on", counter=name, reason=reason
                )
            if progress is None:
                del self.departures[name]

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

    def note_failure(self, store: str, error: Exception) -> None:
        """Log an error once, not every second; and write it for operators, if Redis can be written."""
        reason = reason_of(error)
        if reason != self.failure:
            log.warning("keeper.failed", store=store, reason=reason)
            self.failure = reason
            if store != "redis":
                self.redis.hset(keys.KEEPER, "failure", reason)

    def note_recovery(self) -> None:
        """Note that both stores answer."""
        if self.failure:
            log.info("keeper.recovered", after=self.failure)
            self.failure = ""

    def catch_up_all(self) -> bool:
        """One pass over each counter that has a cursor; returns whether all passes are complete."""
        steps.load_scripts(self.redis)
        found = read_states(self.redis, [counter.name for counter in declarations.derived()])
        with self.replica.snapshot() as snapshot:
            self.source = snapshot.source
            self.has_departures = snapshot.has_departures()
            shown = self.describe(snapshot)
            for name, state in found.items():
                self.plausibility.mend(name, state, snapshot, self.redis)
        finished, failing = True, []
        rested = self.catch_up_resting(found)
        for counter in declarations.derived():
            did = rested.get(counter.name) or self.catch_up_one(counter)
            finished = finished and did.finished
            if did.failed:
                failing.append(f"{counter.name} cannot be caught up: {did.behind}")
            if did.behind != self.behind.get(counter.name, ""):
                self.behind[counter.name] = did.behind
                log.info("keeper.behind" if did.behind else "keeper.abreast", counter=counter.name, reason=did.behind)
            if did.added:
                log.info("keeper.caught_up", counter=counter.name, read=did.read_members, added=did.added)
            if did.read_members:
                totals.note_pass(self.redis, counter.name, read=did.read_members, added=did.added)
        refused = [f"{name} cannot be built: {reason}" for name, (reason, _) in self.refused.items()]
        self.note_tick({**shown, "failure": "; ".join(refused + failing)})
        return finished

    def catch_up_resting(self, found: Mapping[str, State]) -> dict[str, Pass]:
        """One pass over each counter whose table has nothing new, with one snapshot for each table."""
        rested: dict[str, Pass] = {}
        tables = dict.fromkeys(counter.table for counter in declarations.COUNTERS)
        for table in tables:
            counters = [counter for counter in declarations.derived() if counter.table == table]
            try:
                rested |= catch_up_at_rest(counters, found, self.memories, self.replica, self.redis)
            except psycopg2.Error as error:
                if is_away(error):
                    raise
                # The passes one by one say which of the counters Postgres refuses.
            self.renew()
        return rested

    def catch_up_one(self, counter: Counter) -> Pass:
        """One pass over one counter. If Postgres refuses it (no such table, no right, too slow), only this counter
        fails. If the replica does not answer, that affects all counters, and the error is raised."""
        memory = self.memories.pop(counter.name, None)
        try:
            did = catch_up(counter, self.replica, self.redis, memory, self.renew)
        except psycopg2.Error as error:
            if is_away(error):
                raise
            return Pass(behind=reason_of(error), failed=True)
        except ResponseError as error:
            if not is_of_another_type(error):
                raise
            # A key with a wrong type is not Rollcall's. If it is the set of a group, `watch` drops the group.
            removed = states.remove_misfits(self.redis, counter.name)
            return Pass(behind=f"keys of another type were found, and removed: {removed or 'of a group'}", failed=True)
        if did.memory is not None:
            self.memories[counter.name] = did.memory
        return did

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
            "held_microseconds": round((now - self.held_since) * 1e6),
        }

    def note_tick(self, shown: Note) -> None:
        """Write to Redis that the keeper works, and what the replica shows; empty figures if it cannot be read."""
        ticked_at = moments.to_microseconds(datetime.now(UTC))
        job = self.job.name if self.job else ""
        noted: Note = {"ticked_at": ticked_at, "job": job, "source": self.source, **shown}
        self.redis.hset(keys.KEEPER, mapping=noted)

    def step_job(self) -> float:
        """One step of the current job, or of the next one; returns for how many seconds there is nothing to do."""
        if self.job is None:
            self.job = self.next_job()
            if self.job is not None:
                self.redis.hset(keys.KEEPER, "job", self.job.name)
        if self.job is None:
            return max(0.0, min(PAUSE_WAITING_SECONDS, self.catch_up_at - time.monotonic()))
        self.job.lease.renew()
        try:
            progress = next(self.job.steps)
        except StopIteration:
            log.info("job.ended", job=self.job.name)
            self.drop_job()
            self.redis.hset(keys.KEEPER, "job", "")
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
        found = read_states(self.redis, [counter.name for counter in declarations.derived()])
        for counter in declarations.derived():
            if not needs_building(found[counter.name], self.source):
                self.refused.pop(counter.name, None)
                continue
            _, again_at = self.refused.get(counter.name, ("", 0.0))
            if self.source and time.monotonic() >= again_at:
                lease = Lease(self.control, f"build:{counter.name}")
                if lease.acquire():
                    log.info("job.started", job=f"build {counter.name}")
                    steps = build(counter, self.replica, self.redis)
                    return Job(f"build {counter.name}", steps, lease, counter.name)
        for counter in declarations.derived():
            while broken := self.broken.get(counter.name):
                group, token = broken.popitem()
                lease = Lease(self.control, f"mend:{counter.name}")
                if lease.acquire():
                    name = f"mend {counter.name}"
                    return Job(name, mend(counter, group, token, self.replica, self.redis), lease, counter.name)
        self.schedule.ask_for_what_is_due(found, self.refused, self.control)
        for run in registry.still_open(self.redis):
            lease = Lease(self.control, f"run:{run.id}")
            if lease.acquire():
                # Read again, now that this process has the lease: another process may just have ended it.
                unended = registry.get_open(self.redis, run.id)
                if unended is not None:
                    steps = execute(
                        unended,
                        self.replica,
                        self.redis,
                        wait_seconds=self.timing.wait_seconds,
                        filters=self.filters,
                    )
                    return Job(f"run {run.id}", steps, lease)
                lease.release()
        return None

    def put_off(self, name: str, error: Exception) -> None:
        """Postpone a counter that cannot be built, and say why."""
        # A lock on the table is released soon, or its holder is killed; an operator grants a missing right.
        seconds = PAUSE_AFTER_FAILURE_SECONDS if isinstance(error, LockNotAvailable) else RETRY_BUILD_SECONDS
        reason = reason_of(error)
        self.refused[name] = reason, time.monotonic() + seconds
        self.redis.hset(keys.of_counter(name).state, "refused", reason)  # until it is built
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
        self.replica.close()
        self.redis.close()
        self.redis.connection_pool.disconnect()
        self.redis = stores.connect_for_passes()
        self.catch_up_at = 0.0

    def close(self) -> None:
        """End cleanly, so that the next keeper does not have to wait until the leases expire."""
        self.start_over()
        release_quietly(self.lease)
        self.redis.close()
        self.control.close()


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
