"""uvicorn's HTTP protocol with bounds on the head of a request. Importing it needs uvicorn and httptools.

Serving an application over HTTP: uvicorn, on a socket of our own, with a patience that ends.

uvicorn bounds how long a connection may rest between two requests, but neither how long the head of
a request may take nor how large it may be; a sender of one byte a second would keep a connection
for ever, and one of endless headers the memory (what slowloris was named for).
``durable_agents.pipeline.serving`` adds the two bounds; the body's are the receiver's own.

Requests that are still under way when the server's patience at its end is over are cancelled, which
uvicorn logs as an error of the application, with a traceback. It is none: their senders are told to
come again, and that is all.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from durable_agents.errors import InvalidSetting

HEAD_TIMEOUT_S: Final = 10.0
"""How long the head of a request may take, the first one counted from when its connection was made."""

HEAD_BYTES_MAX: Final = 64 * 1024


class Impatient(HttpToolsProtocol):
    """Answers 408 to a head that does not come, 431 to one that does not end, and hangs up."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the head of a request that is not the first on its connection."""
        super().on_message_begin()
        if self._timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Go on without hurry: the rest has bounds of its own."""
        self._stop_waiting()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(b"431 Request Header Fields Too Large")

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


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Send = Callable[[Message], Awaitable[None]]

SHUTDOWN_TIMEOUT_S: Final = 5
"""How long requests that are under way may take when the server is told to end."""

_CONNECTIONS_MAX: Final = 1000
_BACKLOG: Final = 512


def require_server() -> None:
    """Raise InvalidSetting where what serves HTTP is not installed."""
    missing = [name for name in ("uvicorn", "httptools") if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"Expected {' and '.join(missing)} to be installed, to serve HTTP; pip install 'pytest-chaos[server]'."
        )
        raise InvalidSetting(message)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is one that is free. Raises InvalidSetting."""
    require_server()
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_place(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _no_place(host, port, error) from error
    return listener


def serve(application: Callable[..., Awaitable[None]], listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then let requests end, and the application with them, and return.

    Raises InvalidSetting where what serves HTTP is not installed, or the application does not
    start.
    """
    require_server()
    import uvicorn  # only servers need it

    # SELFIMPORT

    config = uvicorn.Config(
        _ends_quietly(application),
        log_config=None,
        access_log=False,
        http=Impatient,
        lifespan="on",
        limit_concurrency=_CONNECTIONS_MAX,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt), _signals_end_quietly():
        server.run(sockets=[listener])
    if not server.started:
        message = "Expected the application to start but it did not; the log says why."
        raise InvalidSetting(message)


def _ends_quietly(application: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return the application for a server that cancels what is under way when it ends, and at no other time."""

    async def answer(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        has_begun = scope["type"] != "http"

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await application(scope, receive, send_and_see)
        except asyncio.CancelledError:
            if not has_begun:
                await _send_later(send)

    return answer


async def _send_later(send: Send) -> None:
    """Have it sent again, in the form of all other answers; what was kept all the same is known by then."""
    body = b'{"error":"The server is ending; send it again."}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(b"connection", b"close"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _signals_end_quietly() -> Any:
    """Ignore what uvicorn raises again when it has ended: it was told to end by that signal, and has."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _no_place(host: str, port: int, error: Exception) -> InvalidSetting:
    message = f"Expected to listen on {host} port {port} but {error}; name an address of this machine and a free port."
    return InvalidSetting(message)
