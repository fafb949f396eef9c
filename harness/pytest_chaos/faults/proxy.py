"""HTTP messages, taken whole and passed on: from a sender, to a server, and back. Parsing and framing are h11's.

The courier: a real HTTP proxy on loopback that carries requests, and does to some of them what the
plan says.

It runs as an agent of its own. A client sends to the courier's address in place of the server's,
or, unchanged, through ``http_proxy``: a request for a whole address is carried there, as long as
that is on loopback. The courier knows nothing of what it carries. Every delivery goes over a
connection of its own, since a connection that is used again may turn out to be closed, and whoever
then tries once more has doubled the delivery.

A request, and an answer, is taken whole before it is passed on (``pytest_chaos.faults.proxy``):
what arrives, or is cut, is then decided by the plan and not by the size of a buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import h11
import msgspec

from pytest_chaos.faults.toxics import DELIVERY_NOTE, READY_NOTE, Delivery
from pytest_chaos.runtime.child import FAULT_NOTE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pytest_chaos.model.values import Json
    from pytest_chaos.runtime.marks import Marks

BODY_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger body of a request is refused with 413; a server that answers with a larger one is unreachable."""

_READ_BYTES: Final = 1 << 16
_ANSWER_TIMEOUT_S: Final = 300.0
_READ_TO_THE_END_S: Final = 1.0
_WITHOUT_BODY: Final = frozenset({204, 304})
_OF_ONE_CONNECTION: Final = frozenset(
    b"connection proxy-connection keep-alive transfer-encoding te trailer upgrade content-length expect".split()
)
_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
_Headers = list[tuple[bytes, bytes]]


class Message(NamedTuple):
    """A request, whole. ``has_length`` says that it came with a body, though it may be empty."""

    method: bytes
    target: bytes
    headers: _Headers
    body: bytes
    has_length: bool


class Answer(NamedTuple):
    """What a server answered, whole, or what the courier tells in its place.

    ``length`` is what it says of the body that it does not have: the answer to a HEAD is about that
    to a GET.
    """

    status: int
    headers: _Headers
    body: bytes
    reason: bytes = b""
    length: bytes | None = None


class Unreachable(Exception):  # noqa: N818 - an answer about the server, which becomes the sender's 502
    """Nobody took the delivery, or nobody answered it."""


async def take_request(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Message | None:
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
            return Message(
                request.method, request.target, _end_to_end(request.headers), bytes(body), _has_length(request.headers)
            )
        else:
            return None


async def tell(
    connection: h11.Connection, writer: asyncio.StreamWriter, answer: Answer, *, method: bytes = b""
) -> None:
    """Send an answer to the sender, unless it was answered already; ``method`` is that of its request."""
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


async def exchange(address: tuple[str, int, bytes], message: Message) -> Answer:
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
    with contextlib.suppress(OSError):  # whoever reads the answer sees it, too
        writer.write(content)
        await writer.drain()


def _encoded(connection: h11.Connection, target: bytes, message: Message) -> bytes:
    length = [(b"content-length", b"%d" % len(message.body))] if message.body or message.has_length else []
    headers = [*message.headers, *length, (b"connection", b"close")]
    request = h11.Request(method=message.method, target=target, headers=headers)
    parts = [connection.send(request) or b""]
    if message.body:
        parts.append(connection.send(h11.Data(data=message.body)) or b"")
    return b"".join([*parts, connection.send(h11.EndOfMessage()) or b""])


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> Answer:
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
            return Answer(response.status_code, headers, bytes(body), bytes(response.reason), length)
        elif not isinstance(event, h11.InformationalResponse):
            msg = "it hung up before it had answered"
            raise Unreachable(msg)


async def send_part(address: tuple[str, int, bytes], message: Message, kept: int) -> None:
    """Send a request whose header promises the whole body, and only the first bytes of that; then hang up."""
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
        await asyncio.wait_for(reader.read(_READ_BYTES), _READ_TO_THE_END_S)  # so that it has been read before it ends
    writer.close()


def _end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> _Headers:
    return [(name, value) for name, value in headers if name.lower() not in _OF_ONE_CONNECTION]


def plain(status: int, text: str) -> Answer:
    """Return an answer of the courier's own."""
    return Answer(status, [(b"content-type", b"text/plain; charset=utf-8")], text.encode())


def _has_length(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in _LENGTHS for name, _ in headers)


_RESET: Final = struct.pack("ii", 1, 0)


class _PlannedFate(msgspec.Struct, frozen=True):
    fault: int
    kind: str
    number: int
    count: int | None
    path: str
    parameters: dict[str, Any]


class _Cut(Exception):  # noqa: N818 - it is not an error
    """The sender's connection ends now: closed, or reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


def carry(marks: Marks, upstream: str, port: int, fates: Sequence[Json]) -> None:
    """Carry deliveries to ``upstream`` (``http://127.0.0.1:PORT``, or nothing) until the process is ended.

    ``port`` is where to take them, 0 for any; the first note says which it is.
    """
    planned = [msgspec.convert(each, _PlannedFate) for each in fates]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(marks, upstream, port, planned))


async def _serve(marks: Marks, upstream: str, port: int, fates: list[_PlannedFate]) -> None:
    courier = _Courier(marks, upstream, fates)
    server = await asyncio.start_server(courier.take, "127.0.0.1", port, backlog=512)
    marks.note(READY_NOTE, value=server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


class _Courier:
    """Counts deliveries and does to each what befalls it."""

    def __init__(self, marks: Marks, upstream: str, fates: list[_PlannedFate]) -> None:
        self._marks = marks
        self._upstream = upstream
        self._fates = fates
        self._count = 0
        self._count_by_path: Counter[str] = Counter()
        self._carried = asyncio.Condition()
        self._carried_count = 0
        self._later: set[asyncio.Task[None]] = set()
        self._doings: dict[str, Callable[[_Passing], Awaitable[Answer]]] = {
            "lose-delivery": self._lose,
            "delay-delivery": self._delay,
            "duplicate-delivery": self._duplicate,
            "reorder-delivery": self._reorder,
            "truncate-delivery": self._truncate,
            "refuse-delivery": self._refuse,
            "stall-delivery": self._stall,
            "cut-delivery": self._cut,
        }

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take deliveries from one sender until it hangs up."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        with contextlib.suppress(ConnectionError):
            try:
                while await self._take_one(connection, reader, writer):
                    connection.start_next_cycle()
            except _Cut as cut:
                if cut.reset:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    writer.transport.abort()
            finally:
                writer.close()

    async def _take_one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Take one delivery; return whether the connection can be used for another."""
        try:
            message = await take_request(connection, reader, writer)
        except h11.RemoteProtocolError as error:
            await tell(connection, writer, plain(error.error_status_hint, f"no HTTP request: {error}"))
            return False
        if message is None:
            return False
        answer = await self._answer(message)
        await tell(connection, writer, answer, method=message.method)
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _answer(self, message: Message) -> Answer:
        """Carry the delivery, or do to it what befalls it, and return what its sender is told."""
        passing = self._next(message)
        try:
            answer = await (self._doings[passing.fate.kind](passing) if passing.fate else self._carry(passing))
        except Unreachable as error:
            answer = plain(502, f"the courier could not carry this: {error}")
            self._note(passing, answer.status, is_unreachable=True)
        except _Cut:
            self._note(passing, None)
            raise
        else:
            if not passing.is_on_its_way:
                self._note(passing, answer.status)
        return answer

    def _next(self, message: Message) -> _Passing:
        """Give the delivery its number, and find out what is planned for it: the first fate that names it."""
        path = _path(message.target)
        self._count += 1
        for prefix in {fate.path for fate in self._fates}:
            if path.startswith(prefix):
                self._count_by_path[prefix] += 1
        for fate in self._fates:
            place = self._count_by_path[fate.path] - fate.number
            if path.startswith(fate.path) and place >= 0 and (fate.count is None or place < fate.count):
                return _Passing(self._count, path, message, fate)
        return _Passing(self._count, path, message, None)

    async def _carry(self, passing: _Passing) -> Answer:
        answer = await exchange(self._address(passing.message), passing.message)
        passing.arrivals += 1
        async with self._carried:
            self._carried_count += 1
            self._carried.notify_all()
        return answer

    def _address(self, message: Message) -> tuple[str, int, bytes]:
        """Return where to carry it, and the target to ask for there."""
        if b"://" in message.target and not message.target.startswith(b"/"):
            try:
                whole = urlsplit(message.target.decode("latin-1"))
                place = _loopback(whole.hostname, whole.port)
            except ValueError as error:
                msg = f"{message.target!r:.200} is no address: {error}"
                raise Unreachable(msg) from error
            target = whole.path or "/"
            target += f"?{whole.query}" if whole.query else ""
            return (*place, target.encode("latin-1"))
        if not self._upstream:
            msg = "it has no server: give one, or ask for a whole address"
            raise Unreachable(msg)
        base = urlsplit(self._upstream)
        return (*_loopback(base.hostname, base.port), message.target)

    async def _lose(self, passing: _Passing) -> Answer:
        status = passing.parameter("status")
        told = "told nothing" if status is None else f"told {status}"
        self._fired(passing, f"was not carried; its sender was {told}")
        if status is None:
            raise _Cut(reset=False)
        return plain(status, "")

    async def _delay(self, passing: _Passing) -> Answer:
        delay_s = passing.parameter("delay_s")
        await asyncio.sleep(delay_s)  # to be late by that is the fault
        answer = await self._carry(passing)
        self._fired(passing, f"was carried {delay_s:g} s late")
        return answer

    async def _duplicate(self, passing: _Passing) -> Answer:
        copies = passing.parameter("copies")
        if passing.parameter("at_once"):
            answers = await asyncio.gather(*(self._carry(passing) for _ in range(copies)))
        else:
            answers = [await self._carry(passing) for _ in range(copies)]
        statuses = ", ".join(str(answer.status) for answer in answers)
        self._fired(passing, f"was carried {copies} times and answered {statuses}")
        return answers[0]

    async def _reorder(self, passing: _Passing) -> Answer:
        status = passing.parameter("status")
        if status is None:
            return await self._carry_behind(passing, self._carried_count)
        passing.is_on_its_way = True
        task = asyncio.create_task(self._carry_later(passing, self._carried_count, status))
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return plain(status, "")

    async def _carry_later(self, passing: _Passing, before: int, status: int) -> None:
        try:
            await self._carry_behind(passing, before)
        except Unreachable:
            self._note(passing, status, is_unreachable=True)
        else:
            self._note(passing, status)

    async def _carry_behind(self, passing: _Passing, before: int) -> Answer:
        behind, hold_s = passing.parameter("behind"), passing.parameter("hold_s")
        overtaken = True
        async with self._carried:
            try:
                reached = self._carried.wait_for(lambda: self._carried_count >= before + behind)
                await asyncio.wait_for(reached, hold_s)
            except TimeoutError:
                overtaken = False
        answer = await self._carry(passing)
        if overtaken:
            self._fired(passing, f"was carried after {behind} later one(s)")
        return answer

    async def _truncate(self, passing: _Passing) -> Answer:
        body = passing.message.body
        kept = passing.parameter("bytes_kept")
        kept = len(body) // 2 if kept is None else min(kept, len(body))
        if kept == len(body):
            return await self._carry(passing)
        await send_part(self._address(passing.message), passing.message, kept)
        self._fired(passing, f"arrived with {kept} of {len(body)} bytes of its body")
        raise _Cut(reset=False)

    async def _refuse(self, passing: _Passing) -> Answer:
        status = passing.parameter("status")
        carried = await self._carried_first(passing)
        self._fired(passing, f"{carried}; its sender was told {status}")
        return plain(status, "refused on its way by the courier\n")

    async def _stall(self, passing: _Passing) -> Answer:
        carried = await self._carried_first(passing)
        self._fired(passing, f"{carried}; its sender gets no answer")
        self._note(passing, None)
        await asyncio.sleep(passing.parameter("hold_s"))  # to keep the sender waiting is the fault
        raise _Cut(reset=False)

    async def _cut(self, passing: _Passing) -> Answer:
        carried = await self._carried_first(passing)
        self._fired(passing, f"{carried}; its sender's connection was reset")
        raise _Cut(reset=True)

    async def _carried_first(self, passing: _Passing) -> str:
        if not passing.parameter("carried"):
            return "was not carried"
        answer = await self._carry(passing)
        return f"was carried and answered {answer.status}"

    def _fired(self, passing: _Passing, what: str) -> None:
        assert passing.fate is not None  # noqa: S101 - a fate brought us here
        passing.is_struck = True
        where = f"delivery {passing.number} ({passing.message.method.decode('latin-1')} {passing.path}) {what}"
        self._marks.note(FAULT_NOTE, passing.fate.fault, {"kind": passing.fate.kind, "at": where})

    def _note(self, passing: _Passing, status: int | None, *, is_unreachable: bool = False) -> None:
        """Say what became of the delivery, once."""
        if passing.is_noted:
            return
        passing.is_noted = True
        fate = passing.fate.kind if passing.fate is not None and passing.is_struck else "carried"
        delivery = Delivery(
            number=passing.number,
            method=passing.message.method.decode("latin-1"),
            path=passing.path,
            fate="unreachable" if is_unreachable else fate,
            status=status,
            arrivals=passing.arrivals,
            body_bytes=len(passing.message.body),
        )
        self._marks.note(DELIVERY_NOTE, passing.number, msgspec.to_builtins(delivery))


class _Passing:
    """A delivery on its way, with what befalls it and how often it has arrived."""

    def __init__(self, number: int, path: str, message: Message, fate: _PlannedFate | None) -> None:
        self.number = number
        self.path = path
        self.message = message
        self.fate = fate
        self.arrivals = 0
        self.is_struck = False
        self.is_on_its_way = False
        self.is_noted = False

    def parameter(self, name: str) -> Any:
        return self.fate.parameters[name] if self.fate is not None else None


def _path(target: bytes) -> str:
    text = target.decode("latin-1")
    try:
        return urlsplit(text).path or "/"
    except ValueError:  # it will not be carried anywhere
        return text


def _loopback(host: str | None, port: int | None) -> tuple[str, int]:
    """Return host and port, if that is this machine: nothing of a test goes further."""
    name = "127.0.0.1" if host in {None, "localhost"} else str(host)
    try:
        is_here = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        msg = f"{host} is not on loopback, and a courier goes nowhere else"
        raise Unreachable(msg)
    return name, port or 80
