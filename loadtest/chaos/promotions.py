"""Watches a cluster: notes when a replica was promoted, and what may have been lost with it.

A primary answers before its replica has the write. So a row that was counted may be missing after a promotion, until the next
pass has counted it again: a `loss` in the journal, of the parts that the promoted server holds. A primary that hands over in order
loses nothing, so that is no loss. But each old primary answers reads until it hears that it was replaced: `stale` in the journal.
Both last from when the promoted server was last seen as a replica until the old primary was seen as one, or was gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis

from compose.local.redis_cluster import Node
from loadtest.chaos.journal import Journal
from loadtest.chaos.redis_servers import PARTS, Shard, parts_at
from shared_models.nodes import ask_server

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Promotion:
    """One whose old primary may still answer."""

    began: float
    old: Node
    parts: frozenset[int]
    in_order: bool


class Promotions(threading.Thread):
    """Watches one shard, and keeps its `primary` up to date."""

    def __init__(self, shard: Shard, journal: Journal, say: Callable[[str], None]) -> None:
        super().__init__(name=f"promotions of {shard.name}", daemon=True)
        self.shard, self.journal, self.say = shard, journal, say
        self.count = 0
        self.over = threading.Event()
        self._followed_at = time.monotonic()  # when the replica was last seen as one
        self._unheard: list[Promotion] = []  # the old primaries have not heard of them
        self._clients = {node: ask_server(node.url) for node in shard.nodes}
        self.look()  # before the first fault

    def run(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            self.look()
        for client in self._clients.values():
            client.close()

    def stop(self) -> None:
        """End, with everything noted: an old primary that is no replica by now is not waited for."""
        self.over.set()
        self.join()
        for promotion in self._unheard:
            self.note(promotion)

    def look(self) -> None:
        """Look at both servers once."""
        at = time.monotonic()
        shard = self.shard
        said = {node: self.ask(node) for node in shard.nodes}
        role, epoch = said[shard.replica]
        if role == "slave":
            self._followed_at = at
        elif role == "master" and epoch > shard.epoch >= 0:
            try:
                self.promoted(frozenset(parts_at(shard.replica)))
            except redis.RedisError:
                return  # look again
        role, epoch = said[shard.primary]
        if role == "master":
            shard.epoch = max(shard.epoch, epoch)
        for each in list(self._unheard):
            if each.old is shard.primary or said[each.old][0] in ("slave", "gone"):
                self.note(each)
                self._unheard.remove(each)

    def promoted(self, parts: frozenset[int]) -> None:
        """The replica is the primary now, of these parts."""
        shard, old = self.shard, self.shard.primary
        shard.primary = shard.replica
        self.count += 1
        in_order = shard.handed_over_to is shard.primary
        if in_order:
            shard.handed_over_to = None
        self._unheard.append(Promotion(self._followed_at, old, parts, in_order))
        self.say(f"          {shard.name}: {shard.primary.name} was promoted{', in order' if in_order else ''}")

    def note(self, promotion: Promotion) -> None:
        """Write what it means for answers: it ends now."""
        for event in ("stale",) if promotion.in_order else ("stale", "loss"):
            self.journal.write(event, **{"from": promotion.began}, parts=sorted(promotion.parts), of=PARTS)

    def ask(self, node: Node) -> tuple[str, int]:
        """Its role ("gone" if it does not run, "" if it does not answer), and its epoch."""
        try:
            client = self._clients[node]
            role = client.execute_command("ROLE")[0].decode()
            return role, int(client.execute_command("CLUSTER INFO")["cluster_my_epoch"])
        except redis.RedisError:
            return ("gone" if node.running() is None else ""), -1
