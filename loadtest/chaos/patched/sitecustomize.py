"""Python imports this at the start of every process of a chaos run, because its folder is on PYTHONPATH there, and only there.

A process may be given a wrong clock, may be made to doubt what it was told after seconds instead of minutes, and, to test
the checker, may be robbed of one rule of the protocol.
"""

import os
import time

_seconds = int(os.environ.get("CHAOS_CLOCK_SECONDS", "0"))
if _seconds:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _seconds
    time.time_ns = lambda: _time_ns() + _seconds * 1_000_000_000

_doubt_seconds = os.environ.get("CHAOS_DOUBT_SECONDS")
if _doubt_seconds:
    from datetime import timedelta

    from manage_service.keeper import loop, schedule
    from manage_service.protocol import plausibility, sweep

    # Too early is harmless, which a run may prove: what is mended for no reason is right as well.
    plausibility.IMPOSSIBLE_AFTER = timedelta(seconds=float(_doubt_seconds))
    sweep.RESET_SLACK = timedelta(seconds=0)  # all clocks but ingest's are the same
    schedule.RETRY_RUN_SECONDS = float(_doubt_seconds)  # a run that has failed because of a fault
    loop.RETRY_BUILD_SECONDS = float(_doubt_seconds)  # what Postgres refuses, while rows are hidden, it soon does not

if os.environ.get("CHAOS_WITHOUT_RULE"):
    from loadtest.chaos.rules import leave_out

    leave_out(os.environ["CHAOS_WITHOUT_RULE"])
