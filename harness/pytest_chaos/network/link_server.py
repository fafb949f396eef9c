"""The process of a link: it carries TCP connections to one server, and disturbs them when told.

One loop over epoll(7), no thread. What is not disturbed goes from one socket to the other through
one buffer, without a queue. What is delayed waits in a queue with a bound: beyond that nothing more
is read, so the sender feels the back-pressure that a slow network gives.

The controller says over a socket of its own what is to be done (``link.ask``). A fault is noted as
felt when a connection met it: bytes that were held, an end that the kernel has as no longer
established. (Toxiproxy, which has most of these toxics, answers that a toxic was added.)
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.model import seed as seeds
from pytest_chaos.network import sockets
from pytest_chaos.network.link import CONNECTION_NOTE, FELT_NOTE, READY_NOTE, UNFELT_NOTE
from pytest_chaos.runtime import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_chaos.model.seed import Stream
    from pytest_chaos.runtime.marks import Marks

BUFFER_BYTES: Final = 1 << 18
QUEUE_BYTES_MAX: Final = 1 << 20
"""The bytes of one direction that wait in the link; beyond that nothing more is read."""
_ROUNDS_MAX: Final = 8
"""Reads of one direction before the others have their turn."""
_RATE_SLICE_S: Final = 0.01
_BACKLOG: Final = 512
_RESET: Final = struct.pack("ii", 1, 0)
"""``struct linger`` with a time of 0: closing then sends RST in place of FIN."""
_CREDENTIALS: Final = struct.Struct("3i")
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
TO_SERVER: Final = "to-server"
TO_CLIENT: Final = "to-client"
BOTH: Final = "both"


def carry(marks: Marks, host: str, server_port: int, port: int, control: str, seed: str) -> None:
    """Carry connections to ``host``:``server_port`` until the process ends.

    ``port`` is where to take them, 0 for any; the first note says which it is. ``control`` is the
    abstract socket on which the controller says what is to be done. ``seed`` is that of the jitter.
    """
    with socket.socket() as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orders:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
        orders.bind(control)
        orders.listen(_BACKLOG)
        link = _Link(marks, (host, server_port), listener, orders, seeds.stream(seed, "link"))
        marks.note(READY_NOTE, value=listener.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):
            link.work()


class _Disturbance:
    """A fault that is in force on a link."""

    def __init__(self, identity: str, kind: str, parameters: dict[str, Any]) -> None:
        self.identity = identity
        self.kind = kind
        self.parameters = parameters
        self.was_felt = False
        self.is_over = False
        self.seen: dict[_Flow, int] = {}
        """The bytes of each direction that came since it is in force, for a cut."""
        self.free_s: dict[_Flow, float] = {}
        """When the next byte may be carried, for a rate."""

    def strikes(self, connection: _Connection) -> bool:
        """Whether it is meant for this connection."""
        return not self.is_over and self.parameters.get("connection") in {None, connection.number}

    def strikes_flow(self, flow: _Flow) -> bool:
        """Whether it is meant for this direction of this connection."""
        return self.strikes(flow.connection) and self.parameters.get("direction", BOTH) in {BOTH, flow.direction}


class _WaitingBytes:
    """Bytes that wait, or (without data) the end of a direction; ``cut`` ends the connection."""

    __slots__ = ("added_s", "by", "cut", "data", "due_s")

    def __init__(
        self, data: bytes, added_s: float, due_s: float, by: list[_Disturbance], cut: _Disturbance | None = None
    ) -> None:
        self.data = memoryview(data)
        self.added_s = added_s
        self.due_s = due_s
        self.by = by
        self.cut = cut


class _Flow:
    """One direction of a connection."""

    def __init__(self, connection: _Connection, direction: str) -> None:
        self.connection = connection
        self.direction = direction
        self.words = direction.replace("-", " the ")
        self.queue: deque[_WaitingBytes] = deque()
        self.queued = 0
        self.carried = 0
        self.lost = 0
        self.last_due_s = 0.0
        self.has_ended = False
        """Whether nothing more is read."""
        self.is_shut = False
        """Whether its end was passed on."""
        self.is_full = False
        self.is_noted = False
        """Whether bytes that wait in the kernel were seen, while nothing is carried."""

    @property
    def source(self) -> socket.socket | None:
        """The socket that its bytes come from."""
        return self.connection.client if self.direction == TO_SERVER else self.connection.server

    @property
    def sink(self) -> socket.socket | None:
        """The socket that its bytes go to."""
        return self.connection.server if self.direction == TO_SERVER else self.connection.client


class _Connection:
    """A client's connection, and the one to the server that was made for it."""

    def __init__(self, number: int, client: socket.socket) -> None:
        self.number = number
        self.client: socket.socket | None = client
        self.server: socket.socket | None = None
        self.is_half_open = False
        self.flows = {TO_SERVER: _Flow(self, TO_SERVER), TO_CLIENT: _Flow(self, TO_CLIENT)}

    def ends(self) -> Iterator[tuple[str, socket.socket]]:
        """Yield the ends that are open, with their names."""
        if self.client is not None:
            yield "client", self.client
        if self.server is not None:
            yield "server", self.server


class _Link:
    """The loop over the listener, the orders, and the ends of all connections."""

    def __init__(
        self, marks: Marks, upstream: tuple[str, int], listener: socket.socket, orders: socket.socket, random: Stream
    ) -> None:
        self._marks = marks
        self._upstream = upstream
        self._random = random
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._count = 0
        self._connections: dict[int, _Connection] = {}
        self._disturbances: list[_Disturbance] = []
        for each, handler in ((listener, self._accept), (orders, self._obey)):
            each.settimeout(0)
            self._handlers[each.fileno()] = handler
            self._epoll.register(each.fileno(), _IN)
        self._listener, self._orders = listener, orders

    def work(self) -> None:
        """Work until the process ends."""
        while True:
            for descriptor, event in self._epoll.poll(self._pause_s()):
                if (handler := self._handlers.get(descriptor)) is not None:
                    handler(event)
            for connection in [each for each in self._connections.values() if self._is_due(each)]:
                self._flush_all(connection)

    def _pause_s(self) -> float:
        due_s = [
            flow.queue[0].due_s
            for connection in self._connections.values()
            for flow in connection.flows.values()
            if flow.queue and not flow.is_full and not self._is_blocked(flow)
        ]
        return max(0.0, min(due_s) - time.monotonic()) if due_s else -1

    def _is_due(self, connection: _Connection) -> bool:
        now_s = time.monotonic()
        return any(
            flow.queue and not flow.is_full and flow.queue[0].due_s <= now_s for flow in connection.flows.values()
        )

    # Connections

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:  # it was reset before it was taken
            return
        self._count += 1
        connection = _Connection(self._count, client)
        self._connections[connection.number] = connection
        client.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if blocked := self._blocking(connection.flows[TO_SERVER]):
            self._felt(blocked, f"connection {connection.number} was accepted, and is not carried to the server")
        else:
            self._connect(connection)
        for disturbance in list(self._disturbances):
            if disturbance.strikes(connection):
                self._strike_at_once(disturbance, connection)
        self._drop_what_is_over()
        self._follow(connection)

    def _connect(self, connection: _Connection) -> None:
        connection.server = server = socket.socket()
        server.settimeout(0)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.connect_ex(self._upstream) not in {0, errno.EINPROGRESS}:
            self._end(connection, "unreachable", reset=True)

    def _follow(self, connection: _Connection) -> None:
        """Have the kernel tell what can be done with a connection now, and nothing else."""
        if connection.number not in self._connections:
            return
        sending, receiving = connection.flows[TO_SERVER], connection.flows[TO_CLIENT]
        for name, end in connection.ends():
            comes, goes = (sending, receiving) if name == "client" else (receiving, sending)
            mask = (_IN if self._is_read(comes) else 0) | (_OUT if goes.is_full else 0)
            if self._masks.get(end.fileno(), 0) == mask:
                continue
            if not mask:  # or the kernel would tell of a peer that has gone, again and again
                self._epoll.unregister(end.fileno())
            elif end.fileno() in self._masks:
                self._epoll.modify(end.fileno(), mask)
            else:
                self._epoll.register(end.fileno(), mask)
            self._masks.pop(end.fileno(), None)
            if mask:
                self._masks[end.fileno()] = mask
                self._handlers[end.fileno()] = self._handler(connection, comes, goes)

    def _is_read(self, flow: _Flow) -> bool:
        if flow.has_ended or flow.queued >= QUEUE_BYTES_MAX or (flow.is_full and flow.queue):
            return False
        return not (flow.is_noted and self._is_blocked(flow))

    def _handler(self, connection: _Connection, comes: _Flow, goes: _Flow) -> Callable[[int], None]:
        def handle(event: int) -> None:
            if event & _OUT:
                goes.is_full = False
                self._flush(goes)
            if connection.number in self._connections and event & (_IN | _GONE):
                self._take(comes)
            self._follow(connection)

        return handle

    def _take(self, flow: _Flow) -> None:
        """Read what has come from one side, and carry it, or queue it."""
        for _ in range(_ROUNDS_MAX):
            source = flow.source
            if source is None or not self._is_read(flow) or flow.connection.number not in self._connections:
                return
            if blocked := self._blocking(flow):
                self._note_held(flow, source, blocked)
                return
            try:
                count = source.recv_into(self._buffer[: self._slice(flow)])
            except BlockingIOError:
                return
            except OSError as error:
                ending = "unreachable" if error.errno == errno.ECONNREFUSED else "reset"
                self._end(flow.connection, ending, reset=True)
                return
            if count == 0:
                flow.has_ended = True
                self._queue(flow, b"", [])
                self._flush(flow)
                return
            self._carry(flow, count)

    def _slice(self, flow: _Flow) -> int:
        rates = [each.parameters["bytes_per_s"] for each in self._of(flow, "rate")]
        return max(1, min(BUFFER_BYTES, int(min(rates) * _RATE_SLICE_S))) if rates else BUFFER_BYTES

    def _carry(self, flow: _Flow, count: int) -> None:
        sink, data = flow.sink, self._buffer[:count]
        if flow.connection.is_half_open:
            flow.lost += count
            return
        if self._disturbances and (cut := self._cut_within(flow, count)) is not None:
            kept = cut.parameters["after_bytes"] - cut.seen[flow]
            flow.has_ended = True
            flow.lost += count - kept
            if kept:
                self._queue(flow, bytes(data[:kept]), self._delaying(flow))
            self._queue(flow, b"", [], cut=cut)
            self._flush(flow)
            return
        delaying = self._delaying(flow) if self._disturbances else []
        if not delaying and not flow.queue and sink is not None:
            try:
                sent = sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._end(flow.connection, "reset", reset=True)
                return
            flow.carried += sent
            if sent == count:
                return
            flow.is_full = True
            data = data[sent:]
        self._queue(flow, bytes(data), delaying)
        if not flow.is_full:
            self._flush(flow)

    def _of(self, flow: _Flow, kind: str) -> list[_Disturbance]:
        return [each for each in self._disturbances if each.kind == kind and each.strikes_flow(flow)]

    def _delaying(self, flow: _Flow) -> list[_Disturbance]:
        return [each for each in self._disturbances if each.kind in {"latency", "rate"} and each.strikes_flow(flow)]

    def _cut_within(self, flow: _Flow, count: int) -> _Disturbance | None:
        """Return the cut that comes within the next bytes of a direction; else count them."""
        for cut in self._of(flow, "cut"):
            before = cut.seen.setdefault(flow, 0)
            if before + count >= cut.parameters["after_bytes"]:
                cut.is_over = True
                return cut
            cut.seen[flow] = before + count
        return None

    def _queue(self, flow: _Flow, data: bytes, by: list[_Disturbance], *, cut: _Disturbance | None = None) -> None:
        now_s = time.monotonic()
        due_s = now_s
        for each in by:
            if each.kind == "latency":
                due_s += each.parameters["delay_s"] + each.parameters["jitter_s"] * self._random.random()
        for each in by:
            if each.kind == "rate":
                begins_s = max(now_s, each.free_s.get(flow, 0.0))
                each.free_s[flow] = begins_s + len(data) / each.parameters["bytes_per_s"]
                due_s = max(due_s, each.free_s[flow])
        flow.last_due_s = max(flow.last_due_s, due_s)  # TCP keeps the order
        flow.queue.append(_WaitingBytes(data, now_s, flow.last_due_s, by, cut))
        flow.queued += len(data)

    def _flush_all(self, connection: _Connection) -> None:
        for flow in connection.flows.values():
            if connection.number in self._connections:
                self._flush(flow)
        self._follow(connection)

    def _flush(self, flow: _Flow) -> None:
        """Carry what is due."""
        while flow.queue and flow.queue[0].due_s <= time.monotonic() and not self._is_blocked(flow):
            piece = flow.queue[0]
            if piece.cut is not None:
                self._cut(flow, piece.cut)
                return
            if not piece.data:
                flow.queue.popleft()
                self._pass_end(flow)
                return
            if flow.sink is None:
                return
            try:
                sent = flow.sink.send(piece.data)
            except BlockingIOError:
                flow.is_full = True
                return
            except OSError:
                self._end(flow.connection, "reset", reset=True)
                return
            flow.carried += sent
            flow.queued -= sent
            self._note_delayed(flow, piece, sent)
            if sent < len(piece.data):
                piece.data = piece.data[sent:]
            else:
                flow.queue.popleft()

    def _pass_end(self, flow: _Flow) -> None:
        flow.is_shut = True
        if flow.sink is not None and not flow.connection.is_half_open:
            with contextlib.suppress(OSError):
                flow.sink.shutdown(socket.SHUT_WR)
        if all(each.is_shut for each in flow.connection.flows.values()):
            self._end(flow.connection, "half-open" if flow.connection.is_half_open else "closed")

    def _end(self, connection: _Connection, how: str, *, reset: bool = False) -> None:
        """Close both ends, and note what was carried."""
        if self._connections.pop(connection.number, None) is None:
            return
        for name, _ in list(connection.ends()):
            self._close(connection, name, reset=reset)
        flows = connection.flows
        lost = sum(flow.lost + flow.queued for flow in flows.values())
        value = {"number": connection.number, "end": how, "lost": lost}
        value |= {"to_server": flows[TO_SERVER].carried, "to_client": flows[TO_CLIENT].carried}
        self._marks.note(CONNECTION_NOTE, connection.number, value)

    def _close(self, connection: _Connection, name: str, *, reset: bool) -> None:
        end: socket.socket | None = getattr(connection, name)
        if end is None:
            return
        setattr(connection, name, None)
        if self._masks.pop(end.fileno(), None):
            self._epoll.unregister(end.fileno())
        self._handlers.pop(end.fileno(), None)
        if reset:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.close()

    # Faults

    def _obey(self, _: int) -> None:
        """Do what the controller says, and answer."""
        with contextlib.suppress(OSError):
            end, _address = self._orders.accept()
            with end:
                end.settimeout(None)
                credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
                    return
                received = wire.receive(end)
                if received is not None:
                    wire.send(end, self._obeyed(received[0]))

    def _obeyed(self, order: wire.Message) -> wire.Message:
        if order["do"] == "heal":
            return self._heal()
        if any((each.kind, each.parameters) == (order["kind"], order["parameters"]) for each in self._disturbances):
            return {"problem": "it changes nothing: the same is in force already"}
        disturbance = _Disturbance(order["id"], order["kind"], order["parameters"])
        self._disturbances.append(disturbance)
        for connection in [each for each in self._connections.values() if disturbance.strikes(each)]:
            self._strike_at_once(disturbance, connection)
            self._follow(connection)
        self._drop_what_is_over()
        return {"problem": ""}

    def _drop_what_is_over(self) -> None:
        self._disturbances = [each for each in self._disturbances if not each.is_over]

    def _strike_at_once(self, disturbance: _Disturbance, connection: _Connection) -> None:
        """Do what needs no bytes: a reset, or one end that goes without a word."""
        if disturbance.kind == "reset":
            self._break(connection, disturbance, ("client", "server"), "reset", reset=True)
        elif disturbance.kind == "half-open" and not connection.is_half_open:
            self._half_open(connection, disturbance)

    def _cut(self, flow: _Flow, cut: _Disturbance) -> None:
        what = f"was cut after {cut.parameters['after_bytes']:,} bytes {flow.words}"
        self._break(flow.connection, cut, ("client", "server"), "cut", what, reset=cut.parameters["reset"])
        self._drop_what_is_over()

    def _break(
        self,
        connection: _Connection,
        disturbance: _Disturbance,
        names: tuple[str, ...],
        how: str,
        what: str = "was reset",
        *,
        reset: bool,
    ) -> None:
        """Close the ends, and see by the kernel's table that the other sides have felt it."""
        peers = {name: sockets.pair_of(end) for name, end in connection.ends() if name in names}
        open_before = {name: pair for name, pair in peers.items() if pair and sockets.is_open(pair)}
        self._end(connection, how, reset=reset)
        felt = [f"the {name}'s end is {state}" for name, pair in open_before.items() if (state := sockets.left(pair))]
        if felt:
            disturbance.is_over = True
            self._felt(disturbance, f"connection {connection.number} {what}; {', '.join(felt)}")

    def _half_open(self, connection: _Connection, disturbance: _Disturbance) -> None:
        believes = disturbance.parameters["believes"]
        other = "server" if believes == "client" else "client"
        ends = dict(connection.ends())
        near, far = ends.get(believes), ends.get(other)
        pair = sockets.pair_of(far) if far is not None else None
        held = sockets.pair_of(near) if near is not None else None
        if pair is None or held is None or not sockets.is_open(pair):
            return
        connection.is_half_open = True
        self._close(connection, other, reset=True)
        dead = connection.flows[TO_CLIENT if believes == "client" else TO_SERVER]
        dead.has_ended = dead.is_shut = True
        dead.lost += dead.queued
        dead.queue.clear()
        dead.queued = 0
        state = sockets.left(pair)
        if state and sockets.is_open(held):
            disturbance.is_over = True
            text = f"connection {connection.number}: the {other}'s end is {state}, and the {believes}'s is ESTABLISHED"
            self._felt(disturbance, text)

    def _blocking(self, flow: _Flow) -> _Disturbance | None:
        return next(iter(self._of(flow, "black-hole")), None) if self._disturbances else None

    def _is_blocked(self, flow: _Flow) -> bool:
        return self._blocking(flow) is not None

    def _note_held(self, flow: _Flow, source: socket.socket, blocked: _Disturbance) -> None:
        waiting = array.array("i", [0])
        fcntl.ioctl(source.fileno(), termios.FIONREAD, waiting)
        flow.is_noted = True
        what = f"{waiting[0]:,} bytes" if waiting[0] else "the end of it"
        self._felt(blocked, f"connection {flow.connection.number}: {what} {flow.words} came, and nothing is carried")

    def _note_delayed(self, flow: _Flow, piece: _WaitingBytes, sent: int) -> None:
        held_s = time.monotonic() - piece.added_s
        for each in piece.by:
            if not each.was_felt:
                text = f"{sent:,} bytes {flow.words} were held for {held_s:.3f} s"
                self._felt(each, f"connection {flow.connection.number}: {text}")

    def _felt(self, disturbance: _Disturbance, text: str) -> None:
        if not disturbance.was_felt:
            disturbance.was_felt = True
            self._marks.note(FELT_NOTE, disturbance.identity, text)

    def _heal(self) -> wire.Message:
        """Lift all faults; a half-open end gets the RST that its peer would send."""
        half_open = [each for each in self._connections.values() if each.is_half_open]
        lifted = [each.kind for each in self._disturbances] + ["half-open"] * len(half_open)
        if not lifted:
            return {"problem": "nothing is in force that could be healed"}
        for each in self._disturbances:
            if not each.was_felt:
                self._marks.note(UNFELT_NOTE, each.identity)
        self._disturbances.clear()
        for connection in half_open:
            self._end(connection, "reset", reset=True)
        waiting = 0
        for connection in list(self._connections.values()):
            for flow in connection.flows.values():
                waiting += flow.queued
                flow.is_noted = False
            if connection.server is None:
                self._connect(connection)
            self._flush_all(connection)
        names = ", ".join(dict.fromkeys(lifted))
        return {"problem": "", "text": f"{names} lifted from {len(self._connections)} open connections"}
