"""One HTTP exchange with bounds on its total time and on the bytes of its answer.

It needs httpx, from the extra ``http``. httpx bounds each phase, and its bound on reading starts
anew with every byte: a server that sends one byte a second would hold its client for ever. So a
timer shuts the connection down when the time of the whole exchange is over, from connecting to the
last byte (looking up the host's name aside).

This uses httpx's transport without its client. The client would follow the proxies and the .netrc
of the environment, keep cookies between exchanges, and log each address with its query.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.errors import InvalidSetting
from durable_agents.extras import optional_import

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 10.0
TIMEOUT_S_MAX: Final = 3600.0


class ExchangeFailed(Exception):  # noqa: N818 - caught by the callers of this module, which raise their own errors
    """No whole answer came. ``is_protocol_error``: the other side spoke, but not HTTP."""

    def __init__(self, reason: str, *, is_protocol_error: bool = False) -> None:
        super().__init__(reason)
        self.is_protocol_error = is_protocol_error


class HttpAnswer(msgspec.Struct, frozen=True):
    """An answer. ``headers`` ignore case; ``is_whole``: the body was within the bound."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool


class HttpExchange:
    """Sends requests to the server of ``url``, each on a connection of its own, without redirects.

    May be shared by threads. Raises InvalidSetting and MissingPackage.
    """

    def __init__(self, url: str, *, timeout_s: float, bytes_max: int) -> None:
        """Check the address; nothing is connected yet."""
        with optional_import("http"):
            import httpx
        self.url = _address(url)
        if not 0 < timeout_s <= TIMEOUT_S_MAX:
            message = f"timeout_s must be more than 0 and at most {TIMEOUT_S_MAX:g} s; got {timeout_s!r}. Give seconds."
            raise InvalidSetting(message)
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._transport = httpx.HTTPTransport(
            verify=_certificates(self.url.scheme),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    @property
    def place(self) -> str:
        """Host and port, for messages: without user and password."""
        return self.url.netloc.decode()

    def send(self, method: str, url: httpx.URL | str, headers: Mapping[str, str], content: bytes = b"") -> HttpAnswer:
        """Return the answer, with at most ``bytes_max`` bytes of body. Raises ExchangeFailed."""
        import httpx

        deadline = _Deadline(self._timeout_s)
        timeout = httpx.Timeout(self._timeout_s).as_dict()
        extensions = {"timeout": timeout, "trace": deadline.trace}
        request = httpx.Request(method, url, headers=headers, content=content, extensions=extensions)
        response: httpx.Response | None = None
        try:
            with deadline:
                response = self._transport.handle_request(request)
                body, is_whole = self._body(response)
        except (httpx.TransportError, OSError, ValueError) as error:  # ValueError: a host name that IDNA refuses
            if not deadline.is_over:
                raise _failure(error, self._timeout_s, has_head=response is not None) from error
        if response is None or deadline.is_over:  # a body that ends with its stream looks whole then
            raise ExchangeFailed(_too_late(self._timeout_s))
        return HttpAnswer(response.status_code, response.headers, body, is_whole)

    def _body(self, response: httpx.Response) -> tuple[bytes, bool]:
        """Return the body as it was sent, up to the bound, and whether that is all of it."""
        body = bytearray()
        with contextlib.closing(response):
            for piece in response.iter_raw():
                body += piece
                if len(body) > self._bytes_max:
                    return bytes(body[: self._bytes_max]), False
        return bytes(body), True


class _Deadline:
    """Shuts the connection of one exchange down when its time is over, whatever phase it is in.

    The thread that waits sees the end of the stream or an error; ``is_over`` tells it why.
    """

    def __init__(self, timeout_s: float) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()  # so that it does not shut down a descriptor that was reused
        if self._socket is not None:
            self._socket.close()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of the connection: httpcore reports each of its phases here."""
        if event == "connection.connect_tcp.complete":
            # A duplicate: TLS takes the descriptor of the original, and shutdown() acts on all
            # duplicates.
            self._socket = info["return_value"].get_extra_info("socket").dup()
            if self.is_over:  # there was nothing to shut down yet
                self._end()

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the other side has ended it already
                self._socket.shutdown(socket.SHUT_RDWR)


def _address(url: str) -> httpx.URL:
    """Return the parsed address. Raises InvalidSetting."""
    import httpx

    with contextlib.suppress(httpx.InvalidURL):
        found = httpx.URL(url)
        is_port = found.port is None or 0 < found.port < 65536
        is_plain = url.isascii() and url.isprintable() and " " not in url
        if is_port and is_plain and found.host and found.scheme in {"http", "https"}:
            return found
    message = (
        f"The address must be an http or https URL in printable ASCII; got {url!r}. Give one such as "
        "http://127.0.0.1:8000/api."
    )
    raise InvalidSetting(message)


def _certificates(scheme: str) -> ssl.SSLContext:
    """Return the system's certificates, not those of certifi.

    An address without TLS gets none: to read them takes longer than an exchange.
    """
    return ssl.create_default_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _too_late(timeout_s: float) -> str:
    return f"no whole answer within {timeout_s:g} s"


def _failure(error: Exception, timeout_s: float, *, has_head: bool) -> ExchangeFailed:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return ExchangeFailed(_too_late(timeout_s))
    text = str(error).rstrip(".")
    if has_head:
        return ExchangeFailed(f"an answer that was cut short ({text})")
    # httpx reports a connection that was closed before an answer as a protocol error, too.
    is_protocol_error = isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in text
    return ExchangeFailed(f"{type(error).__name__}: {text}", is_protocol_error=is_protocol_error)
