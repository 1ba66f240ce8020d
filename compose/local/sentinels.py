"""A primary of Redis with a replica, and three sentinels that promote the replica if the primary fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compose.local.processes import Process
from compose.local.servers import HOST, Valkey, redis_program, write_private

SERVICE = "rollcall"
DOWN_AFTER_MILLISECONDS = 1_000


class Sentinel(Valkey):
    """One of the sentinels. It writes what it knows into its own configuration."""

    def __init__(self, folder: Path, port: int, watched: Valkey, **options: Any) -> None:
        super().__init__(folder, port, **options)
        self.watched = watched

    @property
    def configuration(self) -> Path:
        return self.folder / "sentinel.conf"

    def create(self) -> None:
        super().create()
        if not self.configuration.exists():
            lines = [
                f"port {self.port}",
                f"bind {HOST}",
                f"sentinel monitor {SERVICE} {HOST} {self.watched.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MILLISECONDS}",
                f"sentinel failover-timeout {SERVICE} 10000",
            ]
            write_private(self.configuration, "\n".join(lines))

    def command(self) -> list[str]:
        return [redis_program(), str(self.configuration), "--sentinel"]


class Watched:
    """The servers: `ports` are those of the primary at first, of the replica, and of the sentinels."""

    def __init__(self, folder: Path, ports: list[int], start: Callable[[Process], None], **options: Any) -> None:
        first, second, *others = ports
        self.primary = Valkey(folder / "primary", first, **options)
        self.replica = Valkey(
            folder / "replica", second, replicaof=f"{HOST} {first}", repl_diskless_sync_delay="0", **options
        )
        of_process = {name: options[name] for name in ("dies_with_parent",) if name in options}
        self.sentinels = [
            Sentinel(folder / f"sentinel-{number}", port, self.primary, **of_process)
            for number, port in enumerate(others, 1)
        ]
        for each in (self.primary, self.replica, *self.sentinels):
            start(each)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'{HOST}:{each.port}' for each in self.sentinels)}/{SERVICE}/0"

    def know_each_other(self) -> bool:
        """Whether each sentinel knows the other ones and the replica."""
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                found = client.execute_command("SENTINEL MASTER", SERVICE)
            if int(found["num-other-sentinels"]) < len(self.sentinels) - 1 or int(found["num-slaves"]) < 1:
                return False
        return True
