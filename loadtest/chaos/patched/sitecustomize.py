"""Python imports this at the start of every process of a chaos run, because its folder is on PYTHONPATH there, and only there.

It can give a process a wrong clock, shorten its minutes of patience to seconds, and, to test the checker, remove one rule
of the protocol from it.
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

    # Too early is harmless, and a run may prove it: an unnecessary repair gives the same result.
    plausibility.IMPOSSIBLE_AFTER = timedelta(seconds=float(_doubt_seconds))
    sweep.RESET_SLACK = timedelta(seconds=0)  # all clocks except ingest's are the same
    schedule.RETRY_RUN_SECONDS = float(_doubt_seconds)  # a run that has failed because of a fault
    loop.RETRY_BUILD_SECONDS = float(_doubt_seconds)  # Postgres refuses builds only while rows are hidden

if os.environ.get("CHAOS_WITHOUT_RULE"):
    from loadtest.chaos.rules import leave_out

    leave_out(os.environ["CHAOS_WITHOUT_RULE"])
