"""A deadline of one HTTP exchange: from connecting to the last byte, whatever the other side does meanwhile.

A timeout of a socket starts anew with each byte that arrives, so a server that sends one byte a second could hold its
client for ever; here a timer shuts the connection down.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client


class Deadline:
    """Shuts a connection down when its time is over, whatever it waits for then. Use it as a block.

    The thread that reads sees the end of the stream or an error; ``is_over`` tells it why.
    """

    def __init__(self, connection: http.client.HTTPConnection, timeout_s: float) -> None:
        """Prepare; the time runs from the beginning of the block."""
        self._connection = connection
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True
        self.is_over = False

    def __enter__(self) -> None:
        """Begin."""
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        """End in time."""
        self._timer.cancel()

    def check(self) -> None:
        """Raise TimeoutError if the time is over."""
        if self.is_over:
            raise TimeoutError

    def _end(self) -> None:
        self.is_over = True
        if (connected := self._connection.sock) is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not SSLSocket's, which takes TLS from its reader
