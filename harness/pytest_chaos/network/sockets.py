"""The kernel's table of TCP sockets, as a receipt: the state of an end that another process has.

Source: proc_net_tcp in the kernel's documentation (``networking/proc_net_tcp``).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

_FOLDER: Final = Path("/proc/net")
_STATES: Final = {
    "01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "06": "TIME_WAIT",
    "07": "CLOSE", "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING",
}  # fmt: skip
LISTEN: Final = "LISTEN"
_OPEN: Final = frozenset({"ESTABLISHED", "SYN_SENT", "SYN_RECV"})
_LOOKS_MAX: Final = 400
_LOOK_S: Final = 0.005

Address = tuple[str, int]


class Pair(NamedTuple):
    """An end of a connection: its own address, and its peer's."""

    own: Address
    peer: Address


class SocketEntry(NamedTuple):
    """A line of the table."""

    own: Address
    peer: Address
    state: str
    inode: int


def table(kind: str = "tcp") -> list[SocketEntry]:
    """Return the sockets of this network namespace: ``tcp`` or ``udp``, over IPv4 and IPv6."""
    found = []
    for name in (kind, f"{kind}6"):
        with contextlib.suppress(FileNotFoundError):
            lines = (_FOLDER / name).read_text().splitlines()[1:]
            for _, own, peer, state, *_, inode in (line.split()[:10] for line in lines):
                found.append(SocketEntry(_address(own), _address(peer), _STATES.get(state, state), int(inode)))
    return found


def _address(text: str) -> Address:
    """Return host and port. The host is made of words in the machine's order.

    >>> _address("0100007F:1F90")
    ('127.0.0.1', 8080)
    """
    host, _, port = text.partition(":")
    words = b"".join(struct.pack("=I", int(host[place : place + 8], 16)) for place in range(0, len(host), 8))
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, words).removeprefix("::ffff:"), int(port, 16)


def pair_of(end: socket.socket) -> Pair | None:
    """Return the other end of a connected socket, as its owner has it; None if it is not one."""
    with contextlib.suppress(OSError):
        return Pair(own=end.getpeername(), peer=end.getsockname())
    return None


def state_of(pair: Pair) -> str:
    """Return the state of an end, ``gone`` if the kernel has none."""
    return next((entry.state for entry in table() if (entry.own, entry.peer) == pair), "gone")


def is_open(pair: Pair) -> bool:
    """Whether its owner can still send."""
    return state_of(pair) in _OPEN


def left(pair: Pair) -> str:
    """Return the state of an end once it is not open any more; nothing if it stays open.

    The kernel hands a packet on loopback over at once, but for a busy machine's queue.
    """
    for _ in range(_LOOKS_MAX):
        if (state := state_of(pair)) not in _OPEN:
            return state
        time.sleep(_LOOK_S)
    return ""
