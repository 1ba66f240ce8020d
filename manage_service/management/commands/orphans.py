"""`python -m manage_service orphans [--remove]`: the keys that no declaration names any longer."""

import sys
from collections import defaultdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from redis import Redis
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.management.terminal import fields, one_line
from shared_models.protocol import keys

SCANNED_AT_ONCE = 1_000


class Command(BaseCommand):
    help = (
        "List the keys in Redis that no declaration names any longer: a line for each counter, "
        "with its keys and how many members it has."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        codes = (
            "A service that still has the older file uses these keys: restart all services before you remove any. "
            "The user in REDIS_URL must be allowed to SCAN. The services' own users are not: name an administrator."
        )
        return super().create_parser(prog_name, subcommand, epilog=codes, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--remove", action="store_true", help="remove them (UNLINK)")

    def handle(self, **options: Any) -> None:
        redis = stores.connect_redis()
        try:
            for tag, found in sorted(orphans(redis).items()):
                size = sum(redis.scard(key) for key in found if redis.type(key) == b"set")
                said = "removed" if options["remove"] and redis.unlink(*found) else "left"
                self.stdout.write(f"{tag} {fields({'members': size, 'keys': len(found), 'done': said})}")
        except RedisError as error:
            self.stderr.write(f"Redis failed: {one_line(str(error))}")
            sys.exit(2)


def orphans(redis: Redis) -> dict[str, list[str]]:
    """The keys of counters that are not declared here and now, by their tag. Raises redis.RedisError."""
    declared, found = keys.declared_tags(), defaultdict(set)
    for key in redis.scan_iter(match=keys.COUNTERS, count=SCANNED_AT_ONCE):
        name = key.decode(errors="surrogateescape")
        tag = keys.tag_of(name)
        if tag is not None and tag not in declared:
            found[tag].add(name)
    return {tag: sorted(names) for tag, names in found.items()}
