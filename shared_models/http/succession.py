"""Which workers of an instance are ready: so that on a reload the old ones go on until the new ones can answer.

gunicorn starts the new workers, which take a second or two until they answer, and tells the old ones at once to end. Meanwhile
clients would wait. A worker that is told to end asks here first. Where the whole instance ends, nobody has been started
after it who is not ready, and it goes at once.

The master notes a start before it forks, and a reload's starts before it tells the old workers: they see all that are to
come. One that dies before it is ready is noted as gone by the master (`hooks.child_exit`); if even that is missed, nobody
waits for longer than SUCCESSION_SECONDS.
"""

from __future__ import annotations

import mmap
import struct

# The longest that a worker waits for those that follow it: they may never come, with a new version that does not start.
SUCCESSION_SECONDS = 10.0

# Workers are numbered by gunicorn, in the order of their start. This many of them in a row can be told apart.
SLOTS = 4096
NEWEST = struct.Struct("Q")
# Shared by all processes that are forked from the one that has imported this. Each byte has one writer at a time.
_shared = mmap.mmap(-1, NEWEST.size + SLOTS)


def note_started(age: int) -> None:
    """A worker is about to be forked. For gunicorn's master."""
    _shared[NEWEST.size + age % SLOTS] = 0
    NEWEST.pack_into(_shared, 0, age)


def note_ready(age: int) -> None:
    """It answers from now on; or it is gone, and nobody has to wait for it."""
    _shared[NEWEST.size + age % SLOTS] = 1


def is_succeeded(age: int) -> bool:
    """Whether every worker that was started after this one is ready, or gone."""
    (newest,) = NEWEST.unpack_from(_shared, 0)
    return all(_shared[NEWEST.size + each % SLOTS] for each in range(age + 1, newest + 1))
