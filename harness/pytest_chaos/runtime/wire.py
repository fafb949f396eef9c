"""Messages between controller, guardian and zygotes: JSON over a sequenced-packet socket.

A message may carry file descriptors (``SCM_RIGHTS``): the write end of an agent's output, a pidfd.
JSON instead of pickle: nothing that comes over a socket can run. A sequenced-packet socket instead
of a stream: when one end dies in the middle, no message is half there.
"""

from __future__ import annotations

import array
import json
import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Message: TypeAlias = dict[str, Any]

MESSAGE_BYTES_MAX: Final = 200_000
"""The kernel's default send buffer holds one message of this size (``wmem_default`` is 212,992)."""

_DESCRIPTORS_MAX: Final = 4
_INT: Final = array.array("i")


class MessageTooLarge(ValueError):  # noqa: N818 - the caller turns it into its own error
    """The message does not fit into one packet."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, neither of which survives an exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: Message, descriptors: Iterable[int] = ()) -> None:
    """Send one message. Raises MessageTooLarge, and OSError when the other end is gone."""
    content = json.dumps(message, separators=(",", ":")).encode()
    if (size := len(content)) > MESSAGE_BYTES_MAX:
        text = f"{size} bytes, more than {MESSAGE_BYTES_MAX}"
        del content  # a traceback may show what is in a frame, and this has the values of an environment
        raise MessageTooLarge(text)
    socket.send_fds(end, [content], list(descriptors))


def receive(end: socket.socket, *, wait: bool = True) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors, or ``None`` when the other end is gone.

    With ``wait`` off, raises BlockingIOError when there is no message. (``socket.recv_fds`` drops
    its flags in Python 3.11, so this reads the ancillary data itself.)
    """
    flags = 0 if wait else socket.MSG_DONTWAIT
    try:
        content, ancillary, _, _ = end.recvmsg(
            MESSAGE_BYTES_MAX + 1, socket.CMSG_LEN(_DESCRIPTORS_MAX * _INT.itemsize), flags
        )
    except ConnectionResetError:
        return None
    if not content:
        return None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    message: Message = json.loads(content)
    return message, list(descriptors)
