"""HTTP messages, read whole and passed on. Parsing and framing are h11's."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import h11

if TYPE_CHECKING:
    from collections.abc import Sequence

BODY_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger request is refused with 413; a server with a larger answer is unreachable."""

_READ_BYTES: Final = 1 << 16
_ANSWER_TIMEOUT_S: Final = 300.0
_READ_TO_THE_END_S: Final = 1.0
_WITHOUT_BODY: Final = frozenset({204, 304})
_OF_ONE_CONNECTION: Final = frozenset(
    b"connection proxy-connection keep-alive transfer-encoding te trailer upgrade content-length expect".split()
)
_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
Headers = list[tuple[bytes, bytes]]


class HttpRequest(NamedTuple):
    """A whole request. ``has_length`` says that it came with a body, though it may be empty."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    has_length: bool


class HttpResponse(NamedTuple):
    """The whole answer of a server, or the proxy's own in its place.

    ``length`` is the declared length of a body that is not there: the answer to a HEAD describes
    that to a GET.
    """

    status: int
    headers: Headers
    body: bytes
    reason: bytes = b""
    length: bytes | None = None


class Unreachable(Exception):  # noqa: N818 - an answer about the server, which becomes the sender's 502
    """No server took the delivery, or none answered it."""


async def take_request(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> HttpRequest | None:
    """Return the next request, whole; None where the sender hung up."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                msg = f"more than {BODY_BYTES_MAX} bytes of body"
                raise h11.RemoteProtocolError(msg, error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return HttpRequest(
                request.method, request.target, _end_to_end(request.headers), bytes(body), _has_length(request.headers)
            )
        else:
            return None


async def tell(
    connection: h11.Connection, writer: asyncio.StreamWriter, answer: HttpResponse, *, method: bytes = b""
) -> None:
    """Send an answer, unless the sender has one; ``method`` is that of its request."""
    if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return
    has_body = method != b"HEAD" and answer.status not in _WITHOUT_BODY
    length = b"%d" % len(answer.body) if has_body else answer.length
    headers = [*answer.headers, *([] if length is None else [(b"content-length", length)])]
    response = h11.Response(status_code=answer.status, headers=headers, reason=answer.reason)
    parts = [connection.send(response)]
    if has_body and answer.body:
        parts.append(connection.send(h11.Data(data=answer.body)))
    writer.write(b"".join([*(part or b"" for part in parts), connection.send(h11.EndOfMessage()) or b""]))
    await writer.drain()


async def tell_in_pieces(
    writer: asyncio.StreamWriter,
    answer: HttpResponse,
    pieces: Sequence[bytes],
    pause_s: float,
    *,
    is_framed: bool,
    is_whole: bool,
) -> int:
    """Send an answer piece by piece, and return how many pieces were sent before its reader left.

    h11 writes no answer that breaks its framing, so this is written by hand.
    """
    framing = b"transfer-encoding: chunked\r\n" if is_framed else b""
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in answer.headers if name.lower() not in _LENGTHS)
    writer.write(b"HTTP/1.1 %d %s\r\n%s%sconnection: close\r\n\r\n" % (answer.status, answer.reason, fields, framing))
    sent = 0
    with contextlib.suppress(OSError):
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_framed else piece)
            await writer.drain()
            if writer.is_closing():
                break
            sent += 1
            await asyncio.sleep(pause_s)
        if is_framed and is_whole:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    return sent


async def exchange(address: tuple[str, int, bytes], message: HttpRequest) -> HttpResponse:
    """Carry a request to a server, over a connection of its own, and return its answer.

    A server may answer, and hang up, before it has the whole body; so its answer is read while that
    is being sent.
    """
    host, port, target = address
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            connection = h11.Connection(h11.CLIENT)
            sending = asyncio.create_task(_send(writer, _encoded(connection, target, message)))
            try:
                return await _response(connection, reader)
            finally:
                sending.cancel()
                writer.transport.abort()
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        msg = f"{host}:{port}: {type(error).__name__}: {error}"
        raise Unreachable(msg) from error


async def _send(writer: asyncio.StreamWriter, content: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader of the answer meets the same error
        writer.write(content)
        await writer.drain()


def _encoded(connection: h11.Connection, target: bytes, message: HttpRequest) -> bytes:
    length = [(b"content-length", b"%d" % len(message.body))] if message.body or message.has_length else []
    headers = [*message.headers, *length, (b"connection", b"close")]
    request = h11.Request(method=message.method, target=target, headers=headers)
    parts = [connection.send(request) or b""]
    if message.body:
        parts.append(connection.send(h11.Data(data=message.body)) or b"")
    return b"".join([*parts, connection.send(h11.EndOfMessage()) or b""])


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> HttpResponse:
    response: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                msg = f"it answered with more than {BODY_BYTES_MAX} bytes of body"
                raise Unreachable(msg)
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            length = next((value for name, value in response.headers if name == b"content-length"), None)
            headers = _end_to_end(response.headers)
            return HttpResponse(response.status_code, headers, bytes(body), bytes(response.reason), length)
        elif not isinstance(event, h11.InformationalResponse):
            msg = "it hung up before it had answered"
            raise Unreachable(msg)


async def send_part(address: tuple[str, int, bytes], message: HttpRequest, kept: int) -> None:
    """Send a header that promises the whole body, and only its first bytes; then hang up."""
    host, port, target = address
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        msg = f"{host}:{port}: {error}"
        raise Unreachable(msg) from error
    whole = _encoded(h11.Connection(h11.CLIENT), target, message)
    writer.write(whole[: len(whole) - len(message.body) + kept])
    with contextlib.suppress(OSError):
        await writer.drain()
        writer.write_eof()
        await asyncio.wait_for(reader.read(_READ_BYTES), _READ_TO_THE_END_S)  # let the server read it all
    writer.close()


def _end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _OF_ONE_CONNECTION]


def plain(status: int, text: str) -> HttpResponse:
    """Return an answer of the proxy's own."""
    return HttpResponse(status, [(b"content-type", b"text/plain; charset=utf-8")], text.encode())


def _has_length(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in _LENGTHS for name, _ in headers)
