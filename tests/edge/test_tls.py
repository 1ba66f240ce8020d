"""TLS to both stores, by URL. The servers that come as wheels are built without it, so it ends in front of them here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from compose.local.ordinary_user import CHECKOUT
from compose.local.stack import Stack
from tests.servers import free_port

# What a client of Postgres sends first where it wants TLS (SSLRequest), and what a server says that has it.
SSL_REQUEST, HAS_TLS = b"\0\0\0\x08\x04\xd2\x16\x2f", b"S"


class Terminating:
    """TLS on a port of its own, in front of a server that has none. `greets`: in the way of Postgres."""

    def __init__(self, context: ssl.SSLContext, target_port: int, *, greets: bool = False) -> None:
        self.context, self.target_port, self.greets = context, target_port, greets
        self.listener = socket.create_server(("127.0.0.1", free_port()))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target_port)) as server:
            if self.greets:
                assert client.recv(8) == SSL_REQUEST
                client.sendall(HAS_TLS)
            with self.context.wrap_socket(client, server_side=True) as secure:
                back = threading.Thread(target=relay, args=(server, secure), daemon=True)
                back.start()
                relay(secure, server)
                back.join()


def relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Who signed the servers' certificate."""
    return tmp_path / "ca.pem"


@pytest.fixture
def tls(live: Stack, authority: Path) -> Iterator[tuple[int, int]]:
    """The ports of Postgres and Redis behind TLS."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    postgres, valkey = Terminating(context, live.primary.port, greets=True), Terminating(context, live.valkey.port)
    yield postgres.port, valkey.port
    postgres.listener.close()
    valkey.listener.close()


def run(
    live: Stack, tls: tuple[int, int], authority: Path, role: str, *command: str, said: str = ""
) -> tuple[int, str]:
    """A command of a service whose URLs ask for TLS, and for a certificate of this authority."""
    postgres, valkey = tls
    variables = {
        "DATABASE_URL": live.primary.url_of(role).replace(f":{live.primary.port}/", f":{postgres}/")
        + f"?sslmode=verify-full&sslrootcert={authority}",
        "REDIS_URL": live.valkey.url_of(role)
        .replace("redis://", "rediss://")
        .replace(f":{live.valkey.port}/", f":{valkey}/")
        + f"?ssl_ca_certs={authority}",
    }
    done = subprocess.run(
        [sys.executable, "-m", f"{role}_service", *command],
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], **variables},
        input=said,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_both_stores_are_reached_over_tls(live: Stack, tls: tuple[int, int], authority: Path) -> None:
    row = json.dumps({"state": "NY", "city": "Ithaca", "username": "over-tls", "message": ""})
    status, output = run(live, tls, authority, "ingest", "load", "-", said=row)
    assert status == 0 and "1 rows stored, 0 rejected, 0 skipped; 0 of them are counted by the keeper" in output, output
    status, output = run(live, tls, authority, "manage", "reconcile", "users", "--json")
    assert status == 0 and json.loads(output.splitlines()[-1])["status"] == "done", output


def test_a_certificate_of_somebody_else_is_refused(live: Stack, tls: tuple[int, int], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    status, output = run(live, tls, other, "ingest", "load", "-", said="{}")
    assert status != 0 and "certificate verify failed" in output, output
