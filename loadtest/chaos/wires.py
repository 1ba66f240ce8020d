"""Wires between the services and the servers that can be cut, slowed down, or made to drop bytes."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterable

COMMIT = b"COMMIT\0"  # as libpq sends it: a simple query of this one word
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends a reset


class Wire:
    """A TCP proxy in front of one server. Its behaviour may change at any moment, from any thread."""

    def __init__(self, name: str, target_port: int, port: int) -> None:
        self.name, self.target_port, self.port = name, target_port, port
        self.delay_seconds = 0.0
        self.refusing = False
        self.holding = False  # bytes arrive when this ends, as after an outage of the network
        self.swallowing = False  # bytes are lost without an error, as if the machine had vanished
        self.severing = ""  # "before" or "after": when a COMMIT is cut
        self._shut_out: frozenset[str] = frozenset()  # addresses that may not come
        self._pairs: set[Pair] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def listen(self) -> None:
        """Start to pass bytes on."""
        self._loop = asyncio.get_running_loop()
        await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def mend(self) -> None:
        """Pass bytes on again. Connections that have lost some are reset."""
        lossy = self.swallowing
        self.delay_seconds, self.severing = 0.0, ""
        self.refusing = self.holding = self.swallowing = False
        if lossy:
            self.cut()

    def shut_out(self, addresses: Iterable[str]) -> None:
        """Reset the connections from these addresses, and accept none from them; `mend` does not change that."""
        self._shut_out = frozenset(addresses)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reset_shut_out)

    def _reset_shut_out(self) -> None:
        for pair in list(self._pairs):
            if pair.address in self._shut_out:
                pair.reset()

    def cut(self) -> None:
        """Reset every connection now."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = Pair(writer)
        if self.refusing or pair.address in self._shut_out:
            pair.reset()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            pair.reset()
            return
        pair.ends.append(server_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(pair, reader, server_writer, upward=True), self._pump(pair, server_reader, writer)
            )
        except OSError:
            pass  # one end has reset the connection; reset the other one
        finally:
            pair.reset()
            self._pairs.discard(pair)

    async def _pump(
        self, pair: Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool = False
    ) -> None:
        while data := await reader.read(65536):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            while self.holding:
                await asyncio.sleep(0.01)
            if self.swallowing:
                continue
            if upward and self.severing and COMMIT in data:
                if self.severing == "before":
                    pair.reset()
                    return
                pair.loses_the_answer = True
            if not upward and pair.loses_the_answer:
                pair.reset()  # at the answer: by then the commit has taken place
                return
            writer.write(data)
            await writer.drain()
        while self.swallowing:  # do not tell the other end either
            await asyncio.sleep(0.01)
        if writer.can_write_eof():
            writer.write_eof()


class Pair:
    """The two ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.ends = [client]
        self.address: str = client.get_extra_info("peername")[0]
        self.loses_the_answer = False

    def reset(self) -> None:
        """Close both ends at once, with a reset."""
        for end in self.ends:
            own = end.get_extra_info("socket")
            if own is not None and own.fileno() >= 0:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            end.transport.abort()


def serve(wires: Iterable[Wire]) -> None:
    """Begin to pass bytes on, in a thread that ends with the process. Returns when all of them listen."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="wires", daemon=True).start()
    for wire in wires:
        asyncio.run_coroutine_threadsafe(wire.listen(), loop).result()
