"""The test's side of a link: its address, its connections, and what is asked of its process.

A link is a TCP proxy on loopback between any client and any server. Its process is
``link_server.py``. It knows nothing of what it carries. It needs no privilege.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.runtime import wire

if TYPE_CHECKING:
    from pytest_chaos.model.values import Json
    from pytest_chaos.runtime.agent import Agent

TARGET: Final = "pytest_chaos.network.link_server:carry"
READY_NOTE: Final = "link-ready"
"""Operation of the link's first note; its value is the port on which it takes connections."""
FELT_NOTE: Final = "link-felt"
"""Operation of the note that a connection felt a fault; its key is the id of that fault."""
UNFELT_NOTE: Final = "link-unfelt"
"""Operation of the note that a fault was healed before a connection felt it; its key is the id."""
CONNECTION_NOTE: Final = "connection"
"""Operation of the note about a connection that is over; its key is the connection's number."""
_ANSWER_TIMEOUT_S: Final = 10.0
PORT_MAX: Final = 65_535


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One connection that is over, as the link saw it: bytes carried, and how it ended.

    ``end`` is ``closed``, ``reset``, ``cut``, or ``unreachable`` where no server took it. ``lost``
    is the number of bytes that were taken and never carried.
    """

    number: int
    end: str
    to_server: int = 0
    to_client: int = 0
    lost: int = 0


class Link:
    """A running link. Made by ``chaos.link``."""

    def __init__(self, agent: Agent, port: int) -> None:
        self.agent = agent
        self.host = "127.0.0.1"
        self.port = port

    @property
    def address(self) -> str:
        """The address to use in place of the server's: ``127.0.0.1:PORT``."""
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections that are over, by their numbers."""
        notes = [mark for mark in self.agent.marks if mark.operation == CONNECTION_NOTE]
        return tuple(sorted((msgspec.convert(mark.value, Connection) for mark in notes), key=lambda each: each.number))

    def wait_for_connections(self, count: int, *, timeout_s: float = 10.0) -> tuple[Connection, ...]:
        """Wait until ``count`` connections are over and return them all. Raises WaitExpired."""
        self.agent.wait_for(CONNECTION_NOTE, kind="note", count=count, timeout_s=timeout_s)
        return self.connections


def arguments(upstream: str | int, port: int, seed: str) -> dict[str, Json]:
    """Return the arguments of the process of a link.

    Raises UsageError unless ``upstream`` is the address of a server on loopback.
    """
    host, server_port = parsed(upstream)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= PORT_MAX:
        msg = f"the port of a link must be a whole number from 0 to {PORT_MAX}; got {port!r:.200}. 0 takes any"
        raise UsageError(msg)
    control = f"\0chaos-link-{secrets.token_hex(8)}"  # no path: those of sockets are short
    return {"host": host, "server_port": server_port, "port": port, "control": control, "seed": seed}


def parsed(upstream: str | int) -> tuple[str, int]:
    """Return host and port of a server on loopback: ``"127.0.0.1:6379"``, or its port alone.

    >>> parsed("127.0.0.2:6379"), parsed(8000)
    (('127.0.0.2', 6379), ('127.0.0.1', 8000))

    Raises UsageError.
    """
    host, _, port = str(upstream).rpartition(":")
    host = "127.0.0.1" if host in {"", "localhost"} else host
    try:
        is_good = ipaddress.IPv4Address(host).is_loopback and port.isdecimal() and 1 <= int(port) <= PORT_MAX
    except ValueError:
        is_good = False
    if not is_good or isinstance(upstream, bool):
        msg = (
            "the server of a link must be a port, or HOST:PORT with an IPv4 address on loopback; "
            f"got {upstream!r:.200}. Give an address such as 127.0.0.1:6379"
        )
        raise UsageError(msg)
    return host, int(port)


def ask(agent: Agent, message: dict[str, Any]) -> dict[str, Any]:
    """Ask the process of a link to do something and return its answer. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(_ANSWER_TIMEOUT_S)
        control.connect(agent.command.kwargs["control"])
        wire.send(control, message)
        received = wire.receive(control)
    if received is None:
        raise ConnectionResetError(None, "it hung up without an answer")
    return received[0]


def is_link(agent: Agent) -> bool:
    """Whether an agent is a link."""
    return agent.command.target == TARGET
