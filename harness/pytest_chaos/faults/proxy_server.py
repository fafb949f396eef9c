"""The process of a fault proxy: it carries HTTP requests, and applies a plan's toxics to some.

It runs as an agent of its own. A client sends to the proxy's address in place of the server's, or,
unchanged, through ``http_proxy``: a request for a whole address is carried there, as long as that
is on loopback. The proxy knows nothing of what it carries. Every delivery gets a connection of its
own: a connection that is used again may turn out to be closed, and a client that then tries once
more has doubled the delivery.

A request, and an answer, is read whole before it is passed on (``messages.py``): what arrives, or
is cut, is then decided by the plan and not by the size of a buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import pkgutil
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import h11
import msgspec

from pytest_chaos.faults import messages
from pytest_chaos.faults.messages import HttpResponse, Unreachable
from pytest_chaos.faults.proxy import DELIVERY_NOTE, READY_NOTE, Delivery
from pytest_chaos.faults.toxics import Toxic
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from pytest_chaos.faults.messages import HttpRequest
    from pytest_chaos.model.values import Json
    from pytest_chaos.runtime.marks import Marks

_RESET: Final = struct.pack("ii", 1, 0)
"""``struct linger`` with a time of 0: closing then sends RST in place of FIN."""


class _PlannedToxic(msgspec.Struct, frozen=True):
    fault: int
    toxic: str
    number: int
    count: int | None
    path: str
    parameters: dict[str, Any]

    def load(self) -> Toxic:
        toxic = pkgutil.resolve_name(self.toxic)
        assert isinstance(toxic, Toxic)  # noqa: S101 - the plan was checked
        return toxic


class _HangUp(Exception):  # noqa: N818 - not an error
    """The sender's connection ends now: closed, or reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


def carry(marks: Marks, upstream: str, port: int, toxics: Sequence[Json]) -> None:
    """Carry deliveries to ``upstream`` (``http://HOST:PORT``, or empty) until the process ends.

    ``port`` is where to take them, 0 for any; the first note says which it is.
    """
    planned = [msgspec.convert(each, _PlannedToxic) for each in toxics]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(marks, upstream, port, planned))


async def _serve(marks: Marks, upstream: str, port: int, planned: list[_PlannedToxic]) -> None:
    proxy = _Proxy(marks, upstream, planned)
    server = await asyncio.start_server(proxy.take, "127.0.0.1", port, backlog=512)
    marks.note(READY_NOTE, value=server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


class _Proxy:
    """Counts deliveries and applies to each the toxic that is planned for it."""

    def __init__(self, marks: Marks, upstream: str, planned: list[_PlannedToxic]) -> None:
        self.marks = marks
        self.carried = asyncio.Condition()
        self.carried_count = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._upstream = upstream
        self._planned = [(each, each.load()) for each in planned]
        self._count = 0
        self._count_by_path: Counter[str] = Counter()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take deliveries from one sender until it hangs up."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        with contextlib.suppress(ConnectionError):
            try:
                while await self._take_one(connection, reader, writer):
                    connection.start_next_cycle()
            except _HangUp as end:
                if end.reset:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    writer.transport.abort()
            finally:
                writer.close()

    async def _take_one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Take one delivery; return whether the connection can be used for another."""
        try:
            request = await messages.take_request(connection, reader, writer)
        except h11.RemoteProtocolError as error:
            answer = messages.plain(error.error_status_hint, f"no HTTP request: {error}")
            await messages.tell(connection, writer, answer)
            return False
        if request is None:
            return False
        answer = await self._next(request, writer).pass_on()
        await messages.tell(connection, writer, answer, method=request.method)
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    def _next(self, request: HttpRequest, writer: asyncio.StreamWriter) -> PassingDelivery:
        """Give the delivery its number and the first planned toxic that names it."""
        path = _path(request.target)
        self._count += 1
        for prefix in {planned.path for planned, _ in self._planned}:
            if path.startswith(prefix):
                self._count_by_path[prefix] += 1
        for planned, toxic in self._planned:
            place = self._count_by_path[planned.path] - planned.number
            if path.startswith(planned.path) and place >= 0 and (planned.count is None or place < planned.count):
                return PassingDelivery(self, self._count, path, request, writer, planned, toxic)
        return PassingDelivery(self, self._count, path, request, writer)

    def address(self, request: HttpRequest) -> tuple[str, int, bytes]:
        """Return host and port for a request, and its target there. Raises Unreachable."""
        if b"://" in request.target and not request.target.startswith(b"/"):
            try:
                whole = urlsplit(request.target.decode("latin-1"))
                place = _loopback(whole.hostname, whole.port)
            except ValueError as error:
                msg = f"{request.target!r:.200} is no address: {error}"
                raise Unreachable(msg) from error
            target = whole.path or "/"
            target += f"?{whole.query}" if whole.query else ""
            return (*place, target.encode("latin-1"))
        if not self._upstream:
            msg = "it has no server: give one, or ask for a whole address"
            raise Unreachable(msg)
        base = urlsplit(self._upstream)
        return (*_loopback(base.hostname, base.port), request.target)


class PassingDelivery:
    """A delivery on its way, with the actions that a toxic is made of."""

    def __init__(
        self,
        proxy: _Proxy,
        number: int,
        path: str,
        request: HttpRequest,
        writer: asyncio.StreamWriter,
        planned: _PlannedToxic | None = None,
        toxic: Toxic | None = None,
    ) -> None:
        self.request = request
        self._proxy = proxy
        self._writer = writer
        self._number = number
        self._path = path
        self._method = request.method.decode("latin-1")
        self._planned = planned
        self._toxic = toxic
        self._carried_before = proxy.carried_count
        self._arrivals = 0
        self._outcome = "carried"
        self._is_on_its_way = False
        self._is_noted = False

    async def pass_on(self) -> HttpResponse:
        """Carry the delivery, or apply its toxic, and return the answer to its sender."""
        try:
            if self._toxic is not None and self._planned is not None:
                answer = await self._toxic.apply(self, **self._planned.parameters)
            else:
                answer = await self.carry()
        except Unreachable as error:
            answer = messages.plain(502, f"the fault proxy could not carry this: {error}")
            self._note_unreachable(answer.status)
        except _HangUp:
            self.note(None)
            raise
        else:
            if not self._is_on_its_way:
                self.note(answer.status)
        return answer

    async def carry(self) -> HttpResponse:
        """Carry it to its server and return the answer. Raises Unreachable."""
        answer = await messages.exchange(self._proxy.address(self.request), self.request)
        self._arrivals += 1
        async with self._proxy.carried:
            self._proxy.carried_count += 1
            self._proxy.carried.notify_all()
        return answer

    async def carry_at_once(self, copies: int) -> list[HttpResponse]:
        """Carry so many copies of it at the same time."""
        return await asyncio.gather(*(self.carry() for _ in range(copies)))

    async def carry_part(self, bytes_kept: int) -> None:
        """Carry only the first bytes of its body, under a header that promises all of them."""
        await messages.send_part(self._proxy.address(self.request), self.request, bytes_kept)

    async def stream(
        self, answer: HttpResponse, pieces: Sequence[bytes], pause_s: float, *, is_framed: bool, is_whole: bool
    ) -> int:
        """Hand out an answer in pieces; return how many its sender took. Hang up afterwards.

        With ``is_framed`` they are chunks, whose missing last one tells of a cut; else the body
        ends with the connection, whole or not.
        """
        self.note(answer.status)
        return await messages.tell_in_pieces(
            self._writer, answer, pieces, pause_s, is_framed=is_framed, is_whole=is_whole
        )

    async def sleep(self, delay_s: float) -> None:
        """Wait: the delay is the fault."""
        await asyncio.sleep(delay_s)

    async def wait_until_overtaken(self, behind: int, hold_s: float) -> bool:
        """Wait at most ``hold_s`` seconds until ``behind`` others were carried; return whether."""
        async with self._proxy.carried:
            try:
                reached = self._proxy.carried.wait_for(
                    lambda: self._proxy.carried_count >= self._carried_before + behind
                )
                await asyncio.wait_for(reached, hold_s)
            except TimeoutError:
                return False
        return True

    def answer(self, status: int, text: str = "") -> HttpResponse:
        """Return an answer of the proxy's own."""
        return messages.plain(status, text)

    def answer_before(self, carrying: Coroutine[None, None, HttpResponse], status: int) -> HttpResponse:
        """Return an answer of the proxy's own while the delivery is still being carried."""
        self._is_on_its_way = True
        task = asyncio.create_task(self._carry_later(carrying, status))
        self._proxy.tasks.add(task)
        task.add_done_callback(self._proxy.tasks.discard)
        return self.answer(status)

    def hang_up(self, *, reset: bool = False) -> NoReturn:
        """End the sender's connection without an answer: closed, or reset."""
        raise _HangUp(reset=reset)

    def fired(self, what: str) -> None:
        """Note the effect of the toxic, its receipt; ``what`` is a sentence without its subject."""
        assert self._planned is not None  # noqa: S101 - a toxic brought us here
        assert self._toxic is not None  # noqa: S101 - likewise
        self._outcome = self._toxic.kind
        where = f"delivery {self._number} ({self._method} {self._path}) {what}"
        self._proxy.marks.note(Note.FAULT, self._planned.fault, {"kind": self._toxic.kind, "at": where})

    def note(self, status: int | None, *, outcome: str = "") -> None:
        """Note the outcome and what the sender was told; only the first call counts."""
        if self._is_noted:
            return
        self._is_noted = True
        delivery = Delivery(
            number=self._number,
            method=self._method,
            path=self._path,
            outcome=outcome or self._outcome,
            status=status,
            arrivals=self._arrivals,
            body_bytes=len(self.request.body),
        )
        self._proxy.marks.note(DELIVERY_NOTE, self._number, msgspec.to_builtins(delivery))

    async def _carry_later(self, carrying: Coroutine[None, None, HttpResponse], status: int) -> None:
        try:
            await carrying
        except Unreachable:
            self._note_unreachable(status)
        else:
            self.note(status)

    def _note_unreachable(self, status: int) -> None:
        self.note(status, outcome="unreachable")


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
        msg = f"the server of a fault proxy must be on loopback; got {host}"
        raise Unreachable(msg)
    return name, port or 80
