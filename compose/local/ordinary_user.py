"""The user of the stack: Postgres refuses root, and no other process of the stack needs root.

Started by root, every process of the stack switches to an ordinary user: the one who called sudo, or the owner of the
checkout, or `nobody`. That user may be unable to enter the checkout, or Python's folder (`mktemp -d`
and /root are closed to others). Only then the processes keep one capability of root's: to read closed folders.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# From linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG = 1
PR_CAPBSET_READ = 23
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 1 << 2
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


class CannotBecomeOrdinary(Exception):
    """Postgres does not run as root, and there is no other user that could run it here."""


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilitySet(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@dataclass(frozen=True)
class OrdinaryUser:
    """The user of the processes, and the capability that they keep (None if they need none)."""

    uid: int
    gid: int
    capability: int | None = None

    def become(self) -> None:
        """Switch to the user, between fork and exec. This cannot be undone."""
        if self.capability is not None:
            # Capabilities stay when the user changes. Only with this bit access(2) respects those of a user other
            # than root; initdb uses access(2) to find postgres next to itself.
            _call("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        if self.capability is not None:
            bit = 1 << self.capability
            wanted = (_CapabilitySet * 2)(_CapabilitySet(bit, bit, bit))  # 64 bits as two sets of 32
            _call("capset", ctypes.byref(_CapabilityHeader(CAPABILITY_VERSION_3, 0)), ctypes.byref(wanted))
            # Without this, exec would remove the capability again.
            _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, self.capability, 0, 0)


def _call(name: str, *args: object) -> None:
    """Call libc; OSError if it refuses."""
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def die_with_parent(signal: int, parent: int) -> None:
    """Let the kernel send this signal when the thread that forked us ends, however it ends. Linux only.

    Called between fork and exec, after `become`: changing the user clears it.
    """
    if sys.platform == "linux":
        _call("prctl", PR_SET_PDEATHSIG, signal, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


@functools.cache
def ordinary_user() -> OrdinaryUser | None:
    """The user to switch to; None if this process already belongs to an ordinary user."""
    if os.geteuid() != 0:
        return None
    user = next(_candidates(), None)
    if user is None:
        raise CannotBecomeOrdinary(
            "Postgres refuses to run as root, and there is no user `nobody`; run as another user."
        )
    if _can_read_everything(user):
        return user
    if sys.platform == "linux":
        for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
            if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
                return OrdinaryUser(user.uid, user.gid, capability)
    raise CannotBecomeOrdinary(
        f"Postgres refuses to run as root, and user id {user.uid} cannot read {CHECKOUT} or {sys.executable}; "
        "run as another user, or from a folder that others can enter."
    )


def _candidates() -> Iterator[OrdinaryUser]:
    """Users other than root, best first. initdb wants a user that has a name."""
    for uid in (int(os.environ.get("SUDO_UID") or 0), CHECKOUT.stat().st_uid):
        try:
            found = pwd.getpwuid(uid)
        except KeyError:
            continue
        if uid != 0:
            yield OrdinaryUser(uid, found.pw_gid)
    try:
        found = pwd.getpwnam("nobody")
    except KeyError:
        return
    yield OrdinaryUser(found.pw_uid, found.pw_gid)


def _can_read_everything(user: OrdinaryUser) -> bool:
    """Whether this user can run this Python with these packages and read the checkout. This tries it."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import compose.local.servers"],
            cwd=CHECKOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            capture_output=True,
        )
    except PermissionError:
        return False
    return tried.returncode == 0


def own(path: Path) -> None:
    """Give a file or folder of the stack to the stack's user."""
    user = ordinary_user()
    if user is not None:
        os.chown(path, user.uid, user.gid)
