"""Ports of servers: a free one for each start, and whether anything listens at one."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from pathlib import Path
from typing import Final

from pytest_chaos.explore.target import CheckError

_PORTS: Final = range(10_240, 32_000)
"""Free ports are taken from here: below those that the kernel gives to clients."""
_SOCK_DIAG, _BY_FAMILY, _REQUEST_DUMP, _LISTEN = 4, 20, 0x301, 10
_ERROR, _DONE = 2, 3
"""Numbers of sock_diag(7), netlink(7) and tcp(7)."""
_ANSWER_BYTES: Final = 32 * 1024
_starts: Final = itertools.count()


def free_port() -> tuple[int, socket.socket]:
    """Return a port that is free, and a socket that keeps other starts from it until it is closed.

    Names of abstract sockets are unique on a machine, and end with their process.
    """
    first = os.getpid() * 61 + next(_starts) * 7
    for place in range(len(_PORTS)):
        port = _PORTS[(first + place) % len(_PORTS)]
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0pytest-chaos-port-{port}")
        except OSError:
            reserved.close()
            continue
        if not is_in_use(port):
            return port, reserved
        reserved.close()
    msg = "this machine has no free port for a server"
    raise CheckError(msg)


def is_in_use(port: int) -> bool:
    """Whether a port cannot be bound, be it for connections that were closed a moment ago."""
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return True
    return False


def is_listened_at(port: int) -> bool:
    """Whether a TCP socket listens at a port. It gets no connection: a server may count those."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            return any(_has_listening(kernel, family, port) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError:  # a sandbox without it: its list of all sockets takes longer
        return any(_is_listed(name, port) for name in ("tcp", "tcp6"))


def _has_listening(kernel: socket.socket, family: int, port: int) -> bool:
    """Ask for the listening sockets of a port; see sock_diag(7)."""
    request = struct.pack("=BBxxIH46x", family, socket.IPPROTO_TCP, 1 << _LISTEN, socket.htons(port))
    kernel.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
    has_one = False
    while True:
        answer = kernel.recv(_ANSWER_BYTES)
        while answer:
            length, kind = struct.unpack_from("=IH", answer)
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", answer, 16)[0], "sock_diag")
            if kind == _DONE:
                return has_one
            has_one |= struct.unpack_from("!H", answer, 16 + 4)[0] == port
            answer = answer[(length + 3) & ~3 :]


def _is_listed(name: str, port: int) -> bool:
    """Whether a file of ``/proc/net`` has a listening socket at a port."""
    try:
        lines = Path(f"/proc/net/{name}").read_bytes().splitlines()[1:]
    except OSError:
        return False
    return any(fields[3] == b"0A" and fields[1].endswith(b":%04X" % port) for fields in map(bytes.split, lines))
