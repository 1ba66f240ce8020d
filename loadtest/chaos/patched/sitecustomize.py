"""Python imports this at the start of every process of a chaos run, because its folder is on PYTHONPATH there, and only there.

A process may be given a wrong clock, and, to test the checker, may be robbed of one rule of the protocol.
"""

import os
import time

_seconds = int(os.environ.get("CHAOS_CLOCK_SECONDS", "0"))
if _seconds:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _seconds
    time.time_ns = lambda: _time_ns() + _seconds * 1_000_000_000

if os.environ.get("CHAOS_WITHOUT_RULE"):
    from loadtest.chaos.rules import leave_out

    leave_out(os.environ["CHAOS_WITHOUT_RULE"])
