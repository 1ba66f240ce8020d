"""The browser for the tests of the pages: found on this machine, or installed, or downloaded.

`python -m tests.run` does this once, before the tests; `python -m tests.browser.chromium` by hand. Nothing is installed where a
browser is found, nor by pytest itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# In addition to the variable CHROME. The shell comes first: it is the same engine without windows, tabs and menus, which
# cost more in the tests than the pages do, even where nobody sees them.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT_FOLDER = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")

START_SECONDS = 30.0  # for `--version`
INSTALL_SECONDS = 600.0  # for apt, or for Playwright's download: some 100 MB


class NoChromium(Exception):
    """There is none, and none could be installed; the message says what was tried, and what to do."""


def provide() -> str:
    """The path of a chromium that starts. Installs one where this is root with apt, else downloads Playwright's."""
    named = os.environ.get("CHROME")
    if named and not starts(named):
        raise NoChromium(f"CHROME={named} does not start: name one that does, or unset it")
    # Two at once would get into each other's way: the second one waits, and finds what the first one has installed.
    with (Path(tempfile.gettempdir()) / f"rollcall-chromium-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tried: list[str] = []
        for attempt in (None, install, download):
            said = attempt() if attempt else ""
            tried += [said] if said else []
            found = find()
            if found is not None:
                return found
    raise NoChromium(
        f"There is no chromium on this machine that starts, and none could be had ({'; '.join(tried)}). Install one "
        "(Debian: apt install chromium-headless-shell), or name one that there is: CHROME=/path/to/chrome make check"
    )


def find() -> str | None:
    """The first one that starts: a name in PATH may be a stub, and a downloaded one may lack libraries."""
    return next(filter(starts, candidates()), None)


def candidates() -> Iterator[str]:
    """Where one may be. What CHROME names, where it is set, and nothing else."""
    if os.environ.get("CHROME"):
        yield os.environ["CHROME"]
        return
    yield from filter(None, map(shutil.which, NAMES))
    for pattern in ("chromium_headless_shell-*/chrome-*/*headless*shell*", "chromium*/chrome-*/chrome"):
        yield from map(str, sorted(PLAYWRIGHT_FOLDER.glob(pattern), reverse=True))


def starts(program: str) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=START_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> str:
    """By apt, where this is root; why it did not work, in a few words."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "apt: this is not root, or there is no apt"
    print("Installing chromium's headless shell by apt: the tests of the pages drive it …", flush=True)
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    # If the list of packages cannot be updated, the old one may still be good enough.
    run([*apt, "update"])
    return run([*apt, "install", "-y", "--no-install-recommends", "chromium-headless-shell"], "apt")


def download() -> str:
    """Playwright's own, into its folder; where this is root, with the libraries that it needs."""
    print("Downloading Playwright's chromium: the tests of the pages drive it …", flush=True)
    libraries = ["--with-deps"] if os.geteuid() == 0 and shutil.which("apt-get") else []
    return run([sys.executable, "-m", "playwright", "install", *libraries, "--only-shell", "chromium"], "Playwright")


def run(command: list[str], name: str = "") -> str:
    """Empty where it worked; else what it says is wrong."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{name}: not done within {INSTALL_SECONDS:.0f} s"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith(("E:", "Error"))] or lines[-1:]
    return "" if done.returncode == 0 else f"{name}: {faults[0] if faults else f'status {done.returncode}'}"


if __name__ == "__main__":
    try:
        print(provide())
    except NoChromium as error:
        sys.exit(str(error))
