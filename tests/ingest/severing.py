"""A connection between ingest and the primary that breaks at a chosen moment."""

from __future__ import annotations

import contextlib
import socket
import threading

COMMIT = b"COMMIT\0"


class Severing:
    """Passes bytes both ways until the client says COMMIT; then, once, what `when` says.

    "before": the client's COMMIT never arrives, and both ends lose the connection. "after": it arrives and is carried
    out, but the answer is lost.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.when: str | None = None
        self.opened = 0
        self._muted: set[socket.socket] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Severing:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Wakes `accept`, which a mere close would leave waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection now."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._pairs.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target_port))
                self.opened += 1
                self._pairs.append((client, server))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.when and COMMIT in data:
                    when, self.when = self.when, None
                    if when == "after":
                        self._muted.add(server)
                        server.sendall(data)
                        return  # `_down` cuts the wire at the answer: by then the commit has taken place
                    break
                server.sendall(data)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(65536)) and server not in self._muted:
                client.sendall(data)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)
