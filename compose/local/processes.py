"""A background process that outlives the command that started it, and that later commands find again.

Its folder has a file `pid` with the process id and the time of its creation. So if another process gets the same id
later, it is not mistaken for this one, and not killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import psutil

from compose.local import logs
from compose.local.ordinary_user import die_with_parent, ordinary_user, own

# The kernel gives the start of a process in ticks since boot; psutil adds the time of boot, in whole seconds, which
# corrections of the clock move a little. The kernel does not give out a process id twice within this time.
SAME_BIRTH_SECONDS = 2.0

POLL_SECONDS = 0.05
PORT_SECONDS = 2.0  # for a port to be free after its holder was killed a moment ago
KILLED_SECONDS = 10.0  # for the kernel to end a killed process; it takes longer only if a disk hangs

# Variables that must not come from the caller's environment: they say where a process listens and connects, and as whom.
NOT_INHERITED = {
    *("BIND", "PORT", "GUNICORN_CMD_ARGS", "DATABASE_URL", "REDIS_URL", "AUTH", "TOKENS"),
    *("ADMIN_DATABASE_URL", "ADMIN_ORIGIN", "SECRET_KEY"),
    *("DJANGO_SETTINGS_MODULE", "PROMETHEUS_MULTIPROC_DIR", "TMPDIR"),
}

# Every process of the stack, and its children, have this variable, with the process's folder.
MARK = "ROLLCALL_PROCESS"


class StackError(Exception):
    """An error for the user of the command line; they read the message."""


class PortTaken(StackError):
    """Another process listens on a port that the stack needs."""


class DoesNotStart(StackError):
    """A process ended, or did not answer, before its deadline."""


class Options(TypedDict, total=False):
    """The options of any process, in addition to its folder and its port."""

    name: str
    log: Path | None
    dies_with_parent: bool


class Process:
    """One process. Subclasses say what to run and when it is ready."""

    stop_signal = signal.SIGTERM
    start_seconds = 60.0
    stop_seconds = 20.0
    port_variable = ""  # the environment variable that moves it to another port

    def __init__(
        self, folder: Path, port: int | None, *, name: str = "", log: Path | None = None, dies_with_parent: bool = False
    ) -> None:
        self.folder = folder.resolve()
        self.port = port
        self.name = name or folder.name
        self.log = log or self.folder / "log"
        self.dies_with_parent = dies_with_parent
        self._child: subprocess.Popen[bytes] | None = None
        self.was_found = False  # running, by the last `begin`
        self._log_began_bytes = 0
        self.launched_at = 0.0  # seconds since 1970; 0 if an earlier command did it

    def command(self) -> list[str]:
        """The command to run."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Variables in addition to the inherited ones."""
        return {}

    def working_folder(self) -> Path:
        return self.folder

    def why_not_ready(self) -> str | None:
        """None if it is ready, otherwise the reason in a few words. Called while the process runs; must be quick."""
        raise NotImplementedError

    def is_ending(self, reason: str) -> bool:
        """Whether this reason for not being ready means that it was told to end, and would wait longer than the caller."""
        return False

    def create(self) -> None:
        """Make its files; keeps complete ones."""
        make_folder(self.folder)
        make_folder(self.log.parent)

    def running(self) -> psutil.Process | None:
        """The process, if it is alive."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None  # a child of this process, and reaped now
        try:
            pid, born = (self.folder / "pid").read_text().split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(born)) > SAME_BIRTH_SECONDS:
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None

    @property
    def pid(self) -> int | None:
        process = self.running()
        return None if process is None else process.pid

    def health(self) -> str:
        """`ok`, or what is wrong, in a few words."""
        return "not running" if self.running() is None else self.why_not_ready() or "ok"

    def start(self) -> None:
        """Start it if it does not run, and wait until it is ready."""
        self.begin()
        self.wait_until_ready()

    def begin(self) -> None:
        """Start it if it does not run. It may not be ready yet."""
        self.was_found = self.running() is not None
        if not self.was_found:
            self.end_leftovers()
            self.check_port()
            self.create()
            logs.rotate(self.log)
            self._log_began_bytes = self.log.stat().st_size if self.log.exists() else 0
            self._launch()

    def wait_until_ready(self, needs: Sequence[Process] = ()) -> None:
        """Return when it is ready; raises DoesNotStart, with the end of its log, if it ends or its deadline passes.

        A process that `begin` has found running may have been told to end a moment before: this waits for its end, and
        starts it again. The same for those that it needs: they may have looked ready until now.
        """
        deadline = time.monotonic() + self.start_seconds
        while True:
            alive = self.running() is not None
            reason = self.why_not_ready() if alive else "it ended"
            if reason is None:
                return
            if self.was_found and (not alive or self.is_ending(reason)):
                self.stop()
                self.begin()
                deadline = time.monotonic() + self.start_seconds
                continue
            if not alive or time.monotonic() > deadline:
                where = "" if self.port is None else f" on port {self.port}"
                said = "\n".join("    " + line for line in self._last_lines())
                raise DoesNotStart(f"{self.name} did not come up{where}: {reason}. The end of {self.log}:\n{said}")
            for each in needs:
                if each.was_found and each.running() is None:
                    each.stop()
                    each.begin()
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask it to end; kill it after its deadline. Returns when no process of it is left."""
        process = self.running()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(self.stop_signal)
            has_ended(process, self.stop_seconds)
        self.kill()

    def kill(self) -> None:
        """End it as a crash would: it and its children, without cleanup."""
        process = self.running()
        if process is not None:
            kill(process)
        self.end_leftovers()
        (self.folder / "pid").unlink(missing_ok=True)

    def check_port(self) -> None:
        """Raise PortTaken if another process listens on its port."""
        deadline = time.monotonic() + PORT_SECONDS
        while self.port is not None and not is_free(self.port):
            if time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            advice = f"; set {self.port_variable} to another one" if self.port_variable else ""
            raise PortTaken(f"Port {self.port}, needed by {self.name}, is in use by {holder_of(self.port)}{advice}.")

    def leftovers(self) -> Iterator[psutil.Process]:
        """Processes of an earlier start, such as workers that keep the port of a killed parent."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    yield process
            except psutil.Error:  # ended, or of another user
                continue

    def end_leftovers(self) -> None:
        """Kill the processes of an earlier start. Called when the process itself has ended."""
        for process in list(self.leftovers()):
            kill(process)
        if self._child is not None:
            # A child of this process, to be reaped: a process counts as a zombie just before its last thread ends.
            self._child.wait(KILLED_SECONDS)
            self._child = None

    def full_environment(self) -> dict[str, str]:
        """Its environment."""
        own_variables = self.environment()
        dropped = {*NOT_INHERITED, *(f"{name}_FILE" for name in (*NOT_INHERITED, *own_variables))}
        inherited = {n: v for n, v in os.environ.items() if n not in dropped and not n.startswith("PG")}
        # HOME: libpq looks for certificates there, and fails if the user may not look (root's home, after become).
        return inherited | {"HOME": str(self.folder), MARK: str(self.folder)} | own_variables

    def run(self, command: list[str], variables: Mapping[str, str] | None = None, **options: object) -> str:
        """Run a command to its end, as the user and in the environment of the process, with these variables.

        Returns its output.
        """
        user = ordinary_user()
        done = subprocess.run(
            command,
            cwd=self.working_folder(),
            env=self.full_environment() | dict(variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=None if user is None else user.become,
            **options,  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            said = "\n".join("    " + line for line in done.stdout.strip().splitlines()[-10:])
            raise DoesNotStart(f"{self.name}: {Path(command[0]).name} ended with status {done.returncode}:\n{said}")
        return str(done.stdout)

    def _launch(self) -> None:
        user, starter, pid_file = ordinary_user(), os.getpid(), self.folder / "pid"

        # A Ctrl-C while Python forks would be lost: its own hooks swallow it. So it is delayed until the fork is done.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

        def before_exec() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
            # The child writes its pid file itself, so that there is never a process without one: the starter may be
            # killed at any moment.
            new = pid_file.with_suffix(".new")
            new.write_text(f"{os.getpid()} {psutil.Process().create_time()}\n")
            own(new)
            new.replace(pid_file)
            if user is not None:
                user.become()
            if self.dies_with_parent:
                die_with_parent(self.stop_signal, starter)

        self.launched_at = time.time()
        try:
            with self.log.open("ab") as log:
                own(self.log)
                self._child = subprocess.Popen(
                    self.command(),
                    cwd=self.working_folder(),
                    env=self.full_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C in the terminal is only for the starter
                    preexec_fn=before_exec,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)

    def _last_lines(self, lines: int = 10) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(self._log_began_bytes)
            return log.read().decode(errors="replace").strip().splitlines()[-lines:]


def has_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for its end; returns whether it ended. A zombie has ended: in a container nobody may reap it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(POLL_SECONDS / 5)
    return False


def kill(process: psutil.Process) -> None:
    """Kill it, and return when it has ended: then its port and its files are free."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    if not has_ended(process, KILLED_SECONDS):
        raise StackError(f"{process} does not end, although it was killed: the system still holds it.")


def make_folder(folder: Path) -> None:
    """Make a folder that only the stack's user may enter, and its parents."""
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        own(folder)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's TIME_WAIT is no listener
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """The process that listens on this port, as far as we may know."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another process"
