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
    from shared_models.declarations import get_counter
    from shared_models.protocol import states

    counter = get_counter(sys.argv[1])
    replica, redis = stores.connect_replica(), stores.connect_for_passes()
    began = time.perf_counter()
    for progress in build(counter, replica, redis):
        if progress.waiting:
            time.sleep(0.01)
    if states.read_state(redis, counter.name).cold:
        raise SystemExit(f"{counter.name} is still cold")
    print(time.perf_counter() - began)
    replica.close()
    redis.close()


if __name__ == "__main__":
    main()
