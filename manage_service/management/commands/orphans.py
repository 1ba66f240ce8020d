"""`python -m manage_service orphans [--remove]`: the keys that no declaration names any longer."""

import shlex
import sys
from collections import defaultdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from redis import Redis
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.management.terminal import fields, one_line
from shared_models.protocol import keys, steps

SCANNED_AT_ONCE = 1_000


class Command(BaseCommand):
    help = (
        "List the keys in Redis that no declaration names any longer: a line for each counter, "
        "with its keys and how many members it has."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        codes = (
            "A service that still has the older file counts by these keys: restart all of them before you remove any."
        )
        return super().create_parser(prog_name, subcommand, epilog=codes, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--remove", action="store_true", help="remove them (UNLINK)")

    def handle(self, **options: Any) -> None:
        try:
            servers = [(redis, orphans(redis)) for redis in stores.connect_nodes().each()]
            for what in sorted({what for _, found in servers for what in found}):
                held = [(redis, found[what]) for redis, found in servers if what in found]
                size, said = sum(count_members(redis, names) for redis, names in held), "left"
                if options["remove"]:
                    said = "removed"
                    for redis, names in held:
                        remove(redis, names)
                many = sum(len(names) for _, names in held)
                self.stdout.write(f"{shlex.quote(what)} {fields({'members': size, 'keys': many, 'done': said})}")
        except RedisError as error:
            self.stderr.write(f"Redis failed: {one_line(str(error))}")
            sys.exit(2)


def remove(redis: Redis, names: list[str]) -> None:
    """Remove keys. A server of a cluster takes them one by one, because they are in several slots."""
    for some in steps.chunks(names):
        pipe = redis.pipeline(transaction=False)
        for name in some:
            pipe.unlink(name)
        pipe.execute()


def count_members(redis: Redis, found: list[str]) -> int:
    """How many members these keys have: sets, also those of groups; and the members with their last days."""
    size = 0
    for some in steps.chunks(found):  # a counter may have 100,000 groups
        pipe = redis.pipeline(transaction=False)
        for key in some:
            pipe.type(key)
        for key, kind in zip(some, pipe.execute(), strict=True):
            if kind == b"set":
                pipe.scard(key)
            elif kind == b"hash" and key.endswith(":members"):
                pipe.hlen(key)
        size += sum(pipe.execute())
    return size


def orphans(redis: Redis) -> dict[str, list[str]]:
    """The keys of counters that are not declared here and now, by what they name. Raises redis.RedisError."""
    known, found = (*keys.declared_prefixes(), keys.RUNS), defaultdict(set)
    for key in redis.scan_iter(match=keys.COUNTERS, count=SCANNED_AT_ONCE):
        name = key.decode(errors="surrogateescape")
        what = keys.what_in(name)
        if what is not None and not name.startswith(known):
            found[what].add(name)
    return {what: sorted(names) for what, names in found.items()}
