"""The trial from its beginning to its end, and the table of what held."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from pathlib import Path

from compose.containers import standins
from compose.containers.engine import Engine, EngineError
from compose.containers.trial import Trial


def free_port() -> int:
    """A port that is free, and so is the next one. They are below those that the system gives to clients, so they stay free."""
    for port in range(20_000, 30_000, 2):
        with socket.socket() as one, socket.socket() as next_one:
            try:
                one.bind(("127.0.0.1", port))
                next_one.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise EngineError("no two ports between 20000 and 30000 are free")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with tempfile.TemporaryDirectory(prefix="rollcall-containers-") as folder:
        standins.copy_checkout(Path(folder))
        try:
            trial = Trial(Engine(Path(folder) / "compose"), free_port())
        except EngineError as error:
            print(error, file=sys.stderr)
            return 2
        held = False
        try:
            trial.engine.down()  # what a trial that was killed has left
            held = trial.run()
        except KeyboardInterrupt:
            print("Interrupted; removing the containers …", file=sys.stderr)
        finally:
            trial.engine.down()
        width = max((len(name) for name, *_ in trial.held), default=0)
        print()
        for name, result, said in trial.held:
            print(f"{name:<{width}}  {result:>7}  {said}")
        print(f"\n{'All of it held.' if held else 'It did not hold.'}")
        return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
