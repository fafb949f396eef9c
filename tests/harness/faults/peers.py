"""Programs that talk to each other over TCP and UDP: agents of the tests of partitions."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks


def serve(marks: Marks) -> None:
    """Echo over TCP, and over UDP at the same port; mark the port."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(server.getsockname())

        def echo_datagrams() -> None:
            while True:
                data, sender = datagrams.recvfrom(100)
                with contextlib.suppress(OSError):
                    datagrams.sendto(data, sender)

        def echo(end: socket.socket) -> None:
            with end:
                while True:
                    try:
                        data = end.recv(100)
                        if not data:
                            return
                        end.sendall(data)
                    except OSError as error:
                        marks.note("server-error", value=name_of(error))

        threading.Thread(target=echo_datagrams, daemon=True).start()
        marks.note("port", value=server.getsockname()[1])
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()


def name_of(error: OSError) -> str:
    """Return the name of an errno."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def outcome(end: socket.socket, data: bytes) -> str:
    """Send and receive; return what came, or where which error came."""
    try:
        end.sendall(data)
    except OSError as error:
        return f"send {name_of(error)}"
    try:
        return end.recv(100).decode()
    except OSError as error:
        return f"recv {name_of(error)}"


def talk(marks: Marks, port: int) -> None:
    """Ask over an old connection, a new one and UDP: before, then each time that a file comes."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=None) as old,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        for number in range(3):
            if number:
                wait_for(f"go-{number}")
            marks.note("old", number, outcome(old, b"a"))
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=None) as new:
                    marks.note("new", number, outcome(new, b"b"))
            except OSError as error:
                marks.note("new", number, f"connect {name_of(error)}")
            try:
                datagrams.sendto(b"c", ("127.0.0.1", port))
                marks.note("datagram", number, datagrams.recv(100).decode())
            except OSError as error:
                marks.note("datagram", number, name_of(error))
            marks.ack("round", number)


def wait_for(name: str) -> None:
    """Wait for a file in the folder of the run."""
    while not Path(name).exists():
        time.sleep(0.002)  # sleeps because the test makes the file when it has seen enough


def keep_asking(port: int) -> None:
    """Ask over a new connection each time, whatever comes of it."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as end:
            outcome(end, b"a")
