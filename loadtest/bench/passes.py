"""Catches up with all new rows, as the keeper would; prints the seconds.

`python -m loadtest.bench.passes`, with manage's variables.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")


def main() -> None:
    import django

    django.setup()

    from manage_service import stores
    from manage_service.protocol.catch_up import catch_up
    from shared_models.declarations import COUNTERS

    replica, nodes = stores.connect_replica(), stores.nodes_for_passes()
    began = time.perf_counter()
    for counter in COUNTERS:
        finished = False
        while not finished:
            done = catch_up(counter.parts, replica, nodes)
            finished = all(each.finished for each in done.values())
        for name, each in done.items():
            if each.behind:
                raise SystemExit(f"{name}: {each.behind}")
    print(time.perf_counter() - began)
    replica.close()
    for client in nodes.forget_all():
        client.close()


if __name__ == "__main__":
    main()
