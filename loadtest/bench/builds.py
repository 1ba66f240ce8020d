"""Builds one counter, as the keeper would; prints the seconds.

`python -m loadtest.bench.builds users`, with manage's variables.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")


def main() -> None:
    import django

    django.setup()

    from manage_service import stores
    from manage_service.protocol.build import build
    from manage_service.protocol.in_step import in_step
    from shared_models.declarations import get_counter
    from shared_models.protocol import keys, states

    def failed(name: str, error: Exception) -> None:
        raise error

    counter = get_counter(sys.argv[1])
    replica, nodes = stores.connect_replica(), stores.nodes_for_passes()
    began = time.perf_counter()
    builds = {part.name: build(part, replica, nodes.of(keys.home_of(part))) for part in counter.parts}
    for progress in in_step(builds, replica, failed):
        if progress.waiting:
            time.sleep(0.01)
    for part in counter.parts:
        if states.read_state(nodes.of(keys.home_of(part)), part.name).cold:
            raise SystemExit(f"{part.name} is still cold")
    print(time.perf_counter() - began)
    replica.close()
    for client in nodes.forget_all():
        client.close()


if __name__ == "__main__":
    main()
