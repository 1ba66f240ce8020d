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

    replica, redis = stores.connect_replica(), stores.connect_for_passes()
    began = time.perf_counter()
    for counter in COUNTERS:
        while not (done := catch_up(counter, replica, redis)).finished:
            pass
        if done.behind:
            raise SystemExit(f"{counter.name}: {done.behind}")
    print(time.perf_counter() - began)
    replica.close()
    redis.close()


if __name__ == "__main__":
    main()
