"""Names of containers for the edge, where the engine is Podman 4: `python3 -m compose.containers.names ADDRESS`, on the host.

The name server of Podman 4 (aardvark-dns) closes its sockets and opens new ones each time that a container comes or goes. It loses
the questions of that moment, does not answer a socket that it knows from before, and sometimes stays silent until the next change.
nginx keeps its socket, asks once, and goes on with old addresses. So the edge asks here. From here each question goes on by a new
socket, and again until there is an answer; a server that stays silent is told to begin anew. Docker's needs none of this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

PORT = 5353

TRIES = 8
SECONDS_PER_TRY = 0.25
PID_FILE = Path("/run/containers/networks/aardvark-dns/aardvark.pid")
LONGEST = 4096  # bytes of a datagram


class Names(threading.Thread):
    """Passes questions on to the name server at port 53 of an address, and its answers back. It listens at the same address.

    `address`: the gateway of the containers' network, which exists while a container runs there. `port`: 0 takes a free one.
    """

    def __init__(self, address: str, port: int = 0) -> None:
        super().__init__(daemon=True)
        self._server = (address, 53)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self.address = f"{address}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            question, client = self._socket.recvfrom(LONGEST)
            threading.Thread(target=self._answer, args=(question, client), daemon=True).start()

    def _answer(self, question: bytes, client: tuple[str, int]) -> None:
        for _ in range(TRIES):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(SECONDS_PER_TRY)
                try:
                    asking.connect(self._server)
                    asking.send(question)
                    self._socket.sendto(asking.recv(LONGEST), client)
                    return
                except TimeoutError:  # lost
                    continue
                except OSError:  # nobody listens at this moment
                    time.sleep(SECONDS_PER_TRY)
        begin_anew()


def begin_anew() -> None:
    """Let Podman's name server read what it knows, and open its sockets, once more."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(PID_FILE.read_text()), signal.SIGHUP)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python3 -m compose.containers.names ADDRESS, the gateway of the network `front`", file=sys.stderr)
        return 2
    try:
        names = Names(sys.argv[1], PORT)
    except OSError as error:
        print(
            f"{sys.argv[1]}:{PORT}: {error}. It has to be an address of this host; no containers, no gateway",
            file=sys.stderr,
        )
        return 1
    print(f"EDGE_RESOLVER={names.address}", flush=True)
    try:
        names.run()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
