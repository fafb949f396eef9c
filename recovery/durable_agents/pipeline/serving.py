"""Serving over HTTP: uvicorn on a socket of our own, with bounds on the head of a request.

uvicorn bounds how long a connection may rest between two requests, but neither the time nor the
size of a request's head: a sender of one byte a second would keep a connection for ever, and one of
endless headers would fill the memory (slowloris). ``HeaderTimeoutProtocol`` adds the two bounds;
those on the body are the receiver's.

uvicorn counts every connection against its limit, so that connections without a request would keep
others out. Here those that have no complete request have places of their own. When these are taken,
the oldest gives its place to the newest: a sender that sends its request at once is always
answered.

uvicorn cancels the requests that are still under way when its time to end is over, and logs each as
an error of the application, with a traceback. Here their senders are told to send again instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from durable_agents.errors import InvalidSetting
from durable_agents.extras import optional_import

with optional_import("server"):
    import uvicorn
    from starlette.responses import JSONResponse
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.server import ServerState

HEAD_TIMEOUT_S: Final = 2.0
"""The bound on receiving the head of a request; for the first one it runs from the connection."""

HEAD_BYTES_MAX: Final = 64 * 1024
SHUTDOWN_TIMEOUT_S: Final = 5
"""The bound on requests that are under way when the server is told to end."""

INCOMPLETE_MAX: Final = 400
"""Connections without a complete request: between requests, in a head, or in a body."""

REQUESTS_MAX: Final = 400
"""Complete requests under way. With the other bound it stays below the usual 1,024 descriptors."""

_BACKLOG: Final = 512


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with 408 for a head that comes too slowly and 431 for one too large.

    A connection without a complete request is answered 408, too, when its place is needed.
    """

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _incomplete: dict[HeaderTimeoutProtocol, None]
    """The connections of this server without a complete request, the oldest first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._incomplete = _INCOMPLETE.setdefault(self.server_state, {})
        self._take_place()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer and leave the place."""
        self._stop_waiting()
        self._incomplete.pop(self, None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the head of a request that is not the first on its connection."""
        super().on_message_begin()
        if self._timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Stop the timer: the body has bounds of its own."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Leave the place: the request is complete, unless it was answered before."""
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._incomplete.pop(self, None)

    def on_response_complete(self) -> None:
        """Take a place until the next request is complete.

        A pipelined request may be complete already.
        """
        super().on_response_complete()
        if self.cycle.response_complete or self.cycle.more_body:
            self._take_place()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head."""
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(b"431 Request Header Fields Too Large")

    def _take_place(self) -> None:
        """Give this connection the newest place; end the oldest one when there are too many."""
        self._incomplete.pop(self, None)
        if len(self._incomplete) >= INCOMPLETE_MAX:
            next(iter(self._incomplete))._give_place()  # noqa: SLF001 - one of this class
        if not self.transport.is_closing():
            self._incomplete[self] = None

    def _give_place(self) -> None:
        """End this connection to free its place.

        It gets no answer between two requests, or after the beginning of one.
        """
        self._incomplete.pop(self, None)
        is_in_body = self.cycle is not None and not self.cycle.response_started
        if self._timer is not None or is_in_body:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _wait_for_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, b"408 Request Timeout")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()


_INCOMPLETE: Final[WeakKeyDictionary[ServerState, dict[HeaderTimeoutProtocol, None]]] = WeakKeyDictionary()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is a free one. Raises InvalidSetting."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # With the protocol number, unlike socket.create_server: asyncio sets TCP_NODELAY only then.
        family, kind, protocol, _, address = found[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            undo.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        message = f"{host} port {port} must be free and on this machine, to listen on it; got {error}. Name another."
        raise InvalidSetting(message) from error
    return listener


def serve(application: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then end the requests and the application.

    Raises InvalidSetting if the application does not start.
    """
    config = uvicorn.Config(
        _ends_quietly(application),
        log_config=None,
        access_log=False,
        http=HeaderTimeoutProtocol,
        lifespan="on",
        limit_concurrency=REQUESTS_MAX + INCOMPLETE_MAX,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt), _ignored_afterwards():
        server.run(sockets=[listener])
    if not server.started:
        message = "The application must start; got an error, which is in the log. Correct its cause."
        raise InvalidSetting(message)


def _ends_quietly(application: ASGIApp) -> ASGIApp:
    """Wrap the application: a request that the ending server cancels is answered 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = scope["type"] != "http"

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await application(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if not has_begun:
                content = {"error": "The server is ending; send it again."}
                response = JSONResponse(content, 503, {"connection": "close", "retry-after": "1"})
                await response(scope, receive, send)

    return answer


@contextlib.contextmanager
def _ignored_afterwards() -> Iterator[None]:
    """Ignore the signals that uvicorn raises again after it has ended by them."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
