"""Faults of a cluster of Redis: servers that die, stand still or are cut off, failovers, slots that move, an emptied primary.

What a promoted replica may lack is noted by `promotions`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import redis

from compose.local.redis_cluster import Node
from loadtest.chaos.harm import Harm, Impossible, Undo, nothing, suspended
from loadtest.chaos.redis_servers import PARTS, SeveralServers, Shard, parts_at, slots_at, source_of
from loadtest.chaos.schedule import SHARDS, Fault
from loadtest.chaos.stack import family

# How long a primary that hands over in order has for it: Valkey gives up after 5 s. And slots that move.
HANDED_OVER_SECONDS, MOVED_SECONDS = 5.5, 5.0
POLL_SECONDS = 0.02


class FailingOver(Harm):
    """The target of each is a shard; which of its servers is the primary is known when the fault begins."""

    @property
    def cluster(self) -> SeveralServers:
        """The cluster. There is one wherever these faults are drawn."""
        assert isinstance(self.stack.redis, SeveralServers)
        return self.stack.redis

    def kill_node(self, fault: Fault) -> Undo:
        """If the primary is back before its replica is promoted, its latest writes may be missing, as after every kill."""
        shard = self.cluster.shards[fault.target]
        primary, replica = shard.primary, shard.replica
        killed = {"primary": [primary], "replica": [replica], "both": [replica, primary]}[fault.how]
        parts = parts_at(primary)
        began = time.monotonic()
        for node in killed:
            node.kill()
        if primary in killed:
            self.lose(began, parts=parts)

        def begin() -> None:
            for node in killed:
                node.begin()

        return begin

    def stop_node(self, fault: Fault) -> Undo:
        """A stopped primary does not know that it was replaced, until it goes on."""
        shard = self.cluster.shards[fault.target]
        stopped = family(shard.primary if fault.how == "primary" else shard.replica)
        return suspended(stopped)

    def cut_off(self, fault: Fault) -> Undo:
        """Cut a primary off from all other servers, and from its replica. Clients still reach all of them."""
        cluster, alone = self.cluster, self.cluster.shards[fault.target].primary
        others = {source_of(node) for node in cluster.servers.nodes if node is not alone}
        wires = {cluster.bus_of(node): {source_of(alone)} for node in cluster.servers.nodes if node is not alone}
        wires |= {cluster.bus_of(alone): others, cluster.wires[alone.name]: others}
        for wire, addresses in wires.items():
            wire.shut_out(addresses)

        def join() -> None:
            for wire in wires:
                wire.shut_out(())

        return join

    def failover(self, fault: Fault) -> Undo:
        """In order, once or twice in a row; or by force: then the replica does not wait until it has everything."""
        shard = self.cluster.shards[fault.target]

        def fail_over(over: threading.Event) -> None:
            for _ in range(2 if fault.how == "twice" else 1):
                new = shard.replica
                shard.handed_over_to = None if fault.how == "by force" else new
                new.ask("CLUSTER", "FAILOVER", *(["FORCE"] if fault.how == "by force" else []))
                wait(partial(has_handed_over, shard, new), HANDED_OVER_SECONDS)
                shard.handed_over_to = None

        return self.in_the_background(fault, fail_over)

    def slots_moved(self, fault: Fault) -> Undo:
        """Move the slots of a part to another shard, and in some cases back, while rows come in."""
        place, cluster = SHARDS.index(fault.target), self.cluster
        here = cluster.shards[fault.target]
        there = cluster.shards[SHARDS[(place + (1 if "next" in fault.how else 2)) % len(SHARDS)]]
        parts = sorted(parts_at(here.primary))
        if len(parts) < 2:
            raise Impossible("it has one part, and would have no slots")
        part = parts[fault.number % len(parts)]

        def move_both_ways(over: threading.Event) -> None:
            moved = self.move(part, here, there)
            over.wait()
            if moved and fault.how.endswith("back"):
                self.move(part, there, here)

        return self.in_the_background(fault, move_both_ways)

    def move(self, part: int, here: Shard, there: Shard) -> bool:
        """Move the slots of a part, and wait until they are there; whether they are. Raises redis.RedisError.

        The old server answers reads until it hears that they are gone.
        """
        source, target = here.primary, there.primary.ask("CLUSTER", "MYID")
        slots = [slot for some in slots_at(source, part) for slot in some]
        if not slots:
            return False  # it has failed over meanwhile, and this server does not know that it holds them
        began = time.monotonic()
        with suppress(redis.TimeoutError):  # it may be stopped, and do it later
            source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *slots, "NODE", target)
        moved = wait(lambda: not slots_at(source, part), MOVED_SECONDS)
        if not moved:
            with suppress(redis.RedisError):
                source.ask("CLUSTER", "CANCELSLOTMIGRATIONS")
        self.journal.write("stale", **{"from": began}, parts=[part], of=PARTS)
        self.say(f"          part {part} has {'' if moved else 'not '}moved from {here.name} to {there.name}")
        return moved

    def flushed(self, fault: Fault) -> Undo:
        """Everything that a primary holds is gone, and its replica forgets it, too."""
        primary = self.cluster.shards[fault.target].primary
        parts, began = parts_at(primary), time.monotonic()
        try:
            primary.ask("FLUSHALL")
        finally:
            self.lose(began, parts=parts)
        return nothing


def has_handed_over(shard: Shard, new: Node) -> bool:
    """Whether this server is the primary, and the other one knows it. Raises redis.RedisError."""
    return shard.primary is new and not shard.replica.is_primary


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(redis.RedisError):
            if condition():
                return True
        time.sleep(POLL_SECONDS)
    return False
