"""What the watcher of steps does for agents whose network is cut: it answers their calls.

A call to ``connect``, to send or to receive waits for the watcher. If its other end cannot be
reached, the watcher fails it with an errno, at once or after a while; otherwise the kernel does it.
So any unmodified program can be parted from others, without privilege and without a namespace.

Which agent the other end belongs to is the kernel's word: its table of sockets has the socket of
the other end, and ``/proc/PID/fd`` the process that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_chaos.network.cuts import ALL
from pytest_chaos.network.sockets import LISTEN, table
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import Note, write_mark
from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.table import ALWAYS, NAMES, Trap, code_of, filter_code
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE, borrow_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.network.sockets import Address
    from pytest_chaos.runtime import wire
    from pytest_chaos.trace.kernel import Listener, Notification

_OUT, _IN = "out", "in"
TRAPS: Final = {
    "connect": Trap({"x86_64": 42, "aarch64": 203}, ALWAYS),
    "sendto": Trap({"x86_64": 44, "aarch64": 206}, ALWAYS),
    "sendmsg": Trap({"x86_64": 46, "aarch64": 211}, ALWAYS),
    "sendmmsg": Trap({"x86_64": 307, "aarch64": 269}, ALWAYS),
    "sendfile": Trap({"x86_64": 40, "aarch64": 71}, ALWAYS),
    "write": Trap({"x86_64": 1, "aarch64": 64}, ALWAYS),
    "writev": Trap({"x86_64": 20, "aarch64": 66}, ALWAYS),
    "recvfrom": Trap({"x86_64": 45, "aarch64": 207}, ALWAYS),
    "recvmsg": Trap({"x86_64": 47, "aarch64": 212}, ALWAYS),
    "recvmmsg": Trap({"x86_64": 299, "aarch64": 243}, ALWAYS),
    "read": Trap({"x86_64": 0, "aarch64": 63}, ALWAYS),
    "readv": Trap({"x86_64": 19, "aarch64": 65}, ALWAYS),
    "io_uring_setup": Trap({"x86_64": 425, "aarch64": 425}, ALWAYS),
}
"""Requests in a ring are no system calls, so a ring is refused; programs then use plain calls."""
_NAME_OF: Final = {trap.numbers[MACHINE]: name for name, trap in TRAPS.items() if MACHINE in trap.numbers}
_INWARD: Final = frozenset({"recvfrom", "recvmsg", "recvmmsg", "read", "readv"})
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_HEADER: Final = struct.Struct("<QI")
"""The first two fields of ``struct msghdr``: the address, and its length."""
_LOW_HALF: Final = 0xFFFFFFFF
_ADDRESS_BYTES_MAX: Final = 128
_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - nothing is bound, it is recognised


def network_filter(*, steps: bool, closes: bool = False, touches: bool = False) -> bytes:
    """Return the filter for an agent whose network may be cut, with or without its steps."""
    more = list(TRAPS.values())
    if steps:
        from pytest_chaos.trace.calls import decoder  # noqa: F401 - its import fills the table of calls

        return filter_code(closes=closes, touches=touches, more=more)
    return code_of(more)


class CutRule(NamedTuple):
    """What is cut, and what a call that meets it is answered."""

    identity: str
    cuts: tuple[tuple[str, str], ...]
    agent: str
    to: str
    error: str | None
    delay_s: float

    def meets(self, own: str, other: str | None, address: Address, *, ways: set[str]) -> bool:
        """Whether an agent's call to, or from, another one or an address is answered."""
        if self.to:
            return self.agent == own and _is_address(self.to, address)
        if other is None:
            return False
        pairs = [(own, other)] * (_OUT in ways) + [(other, own)] * (_IN in ways)
        return any(_is_cut(pair, self.cuts) for pair in pairs)

    def concerns(self, agent: str) -> bool:
        """Whether calls of this agent may meet it."""
        return agent == self.agent if self.to else any({agent, ALL} & set(pair) for pair in self.cuts)


def _is_cut(pair: tuple[str, str], cuts: Iterable[tuple[str, str]]) -> bool:
    return any(first in {pair[0], ALL} and second in {pair[1], ALL} for first, second in cuts)


def _is_address(pattern: str, address: Address) -> bool:
    """Whether a pattern means an address: ``127.0.0.1:6379``, ``127.0.0.1``, ``:6379`` or ``*``.

    >>> _is_address(":6379", ("127.0.0.1", 6379)), _is_address("127.0.0.2", ("127.0.0.1", 80))
    (True, False)
    """
    host, _, port = pattern.rpartition(":") if ":" in pattern else (pattern, "", "")
    return host in {"", ALL, address[0]} and port in {"", ALL, str(address[1])}


class Network:
    """The rules of one run, and the agents that they are about. It lives in the watcher."""

    def __init__(self, marks: str) -> None:
        self.marks = marks
        self.rules: list[CutRule] = []
        self.felt: set[str] = set()
        self.answers: dict[str, NetworkAnswers] = {}
        self._lock = threading.Lock()

    def told(self, order: wire.Message) -> wire.Message:
        """Do what the controller says; return an answer with a problem, or an empty one."""
        if order["do"] == "heal" and order["agent"] in self.answers:
            return self._heal(order["agent"])
        cuts = tuple((first, second) for first, second in order["cuts"])
        members = {order["agent"]} | {name for pair in cuts for name in pair} - {ALL}
        if strangers := sorted(members - self.answers.keys()):
            return {"problem": "", "waits_for": f"the network calls of agent {strangers[0]!r} must be watched"}
        rule = CutRule(order["id"], cuts, order["agent"], order["to"], order["error"], order["delay_s"])
        for each in self.rules:
            both = set(each.cuts) & set(cuts)
            if both or (each.to and (each.agent, each.to) == (rule.agent, rule.to)):
                what = " > ".join(sorted(both)[0]) if both else f"{rule.agent} > {rule.to}"
                return {"problem": f"what is cut must be whole before; {what} is cut already. Heal it first"}
        self.rules.append(rule)
        return {"problem": ""}

    def _heal(self, agent: str) -> wire.Message:
        lifted = [rule for rule in self.rules if rule.concerns(agent)]
        if not lifted:
            return {"problem": f"nothing is in force at agent {agent!r} that could be healed"}
        self.rules = [rule for rule in self.rules if rule not in lifted]
        for rule in lifted:
            if rule.identity not in self.felt:
                self.note(Note.NETWORK_UNFELT, rule.identity, None, agent)
        going_on = sum(each.let_go_on() for each in self.answers.values())
        return {"problem": "", "text": f"{len(lifted)} lifted; {going_on} calls that were held go on"}

    def note(self, operation: Note, key: str, value: Any, agent: str) -> None:
        """Write a note in the name of an agent."""
        write_mark(
            self.marks, {"kind": "note", "operation": str(operation), "key": key, "value": value, "agent": agent}
        )

    def felt_by(self, rule: CutRule, agent: str, what: str) -> None:
        """Note that a call met a rule: the first time, which is the receipt."""
        with self._lock:
            if rule.identity in self.felt:
                return
            self.felt.add(rule.identity)
        self.note(Note.NETWORK_FELT, rule.identity, what, agent)

    def owner_of(self, inode: int) -> str | None:
        """Return the agent that has a socket open, by its inode."""
        for name, answers in self.answers.items():
            if answers.has_open(inode):
                return name
        return None


class NetworkAnswers:
    """Answers the network calls of one agent, and of all that it starts."""

    def __init__(self, name: str, pid: int, listener: Listener, network: Network) -> None:
        self._name = name
        self._pid = pid
        self._listener = listener
        self._network = network
        self._memory = memory.Memory()
        self._others: dict[int, str] = {}
        """The agent at the other end of a connected socket, by its inode."""
        self._held: dict[int, tuple[threading.Timer, Notification]] = {}
        network.answers[name] = self

    def answer(self, call: Notification) -> bool:
        """Answer a call; return whether it was answered, or none that another part looks at."""
        name = _NAME_OF.get(call.number, "") if call.machine == AUDIT_ARCH[MACHINE] else ""
        if not name:
            return False
        if name == "io_uring_setup":
            self._listener.fail(call, errno.ENOSYS)
            return True
        rules = [rule for rule in self._network.rules if rule.concerns(self._name)]
        if rules and self._is_answered(call, name, rules):
            return True
        if call.number in NAMES:  # a step, perhaps
            return False
        self._listener.let_pass(call)
        return True

    def let_go_on(self) -> int:
        """Let all held calls pass; return how many."""
        held = list(self._held)
        return sum(self._pass_held(identity) for identity in held)

    def has_open(self, inode: int) -> bool:
        """Whether the agent, or a process that it started, has this socket open."""
        wanted = f"socket:[{inode}]"
        for pid in (self._pid, *(each.pid for each in processes.descendants(self._pid))):
            with contextlib.suppress(OSError):
                folder = f"/proc/{pid}/fd"
                for descriptor in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"{folder}/{descriptor}") == wanted:
                            return True
        return False

    def _is_answered(self, call: Notification, name: str, rules: list[CutRule]) -> bool:
        try:
            link = os.readlink(f"/proc/{call.thread}/fd/{call.arguments[0] & _LOW_HALF}")
            if (found := _SOCKET.fullmatch(link)) is None:
                return False
            process = memory.process_of(call.thread)
            descriptor = borrow_descriptor(process, call.arguments[0] & _LOW_HALF)
            with socket.socket(fileno=descriptor) as end:
                return self._is_met(call, name, rules, end, int(found[1]))
        except (memory.Failing, memory.Unreadable, OSError):  # it was killed, or the call is going to fail
            return False

    def _is_met(self, call: Notification, name: str, rules: list[CutRule], end: socket.socket, inode: int) -> bool:
        if end.family not in {socket.AF_INET, socket.AF_INET6}:
            return False
        address, is_given = self._address(call, name, end)
        if address is None:
            return False
        other = None if is_given else self._others.get(inode)
        if other is None and any(not rule.to for rule in rules):
            other = self._owner(end, address)
            if other is not None and not is_given:
                self._others[inode] = other
        # A new connection over TCP needs both ways.
        is_stream = end.type == socket.SOCK_STREAM
        ways = {_OUT, _IN} if name == "connect" and is_stream else {_IN} if name in _INWARD else {_OUT}
        for rule in rules:
            if rule.meets(self._name, other, address, ways=ways):
                is_waiting = not fcntl.fcntl(end.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
                return self._carry_out(call, rule, name, address, other, is_stream=is_stream, is_waiting=is_waiting)
        return False

    def _carry_out(
        self,
        call: Notification,
        rule: CutRule,
        name: str,
        address: Address,
        other: str | None,
        *,
        is_stream: bool,
        is_waiting: bool,
    ) -> bool:
        error = rule.error
        if error == "ECONNREFUSED" and name != "connect" and is_stream:
            error = "ECONNRESET"  # what a closed port answers on a connection
        delay_s = rule.delay_s if is_waiting else 0.0
        if error is None and not delay_s:
            return False
        whose = f" of {other}" if other else ""
        what = f"{name} to" if name not in _INWARD else f"{name} from"
        held = f", after {delay_s:g} s" if delay_s else ""
        text = f"{self._name}'s {what} {address[0]}:{address[1]}{whose} was answered {error or 'late'}{held}"
        number = getattr(errno, error) if error else 0
        if delay_s:
            timer = threading.Timer(delay_s, self._end_held, (call, rule, number, text))
            timer.daemon = True
            self._held[call.id] = (timer, call)
            timer.start()
        elif self._listener.fail(call, number):
            self._network.felt_by(rule, self._name, text)
        return True

    def _end_held(self, call: Notification, rule: CutRule, number: int, text: str) -> None:
        if self._held.pop(call.id, None) is None:
            return
        if self._listener.fail(call, number) if number else self._listener.let_pass(call):
            self._network.felt_by(rule, self._name, text)

    def _pass_held(self, identity: int) -> bool:
        held = self._held.pop(identity, None)
        if held is None:
            return False
        held[0].cancel()
        return self._listener.let_pass(held[1])

    def _address(self, call: Notification, name: str, end: socket.socket) -> tuple[Address | None, bool]:
        """Return the address of the other end, and whether the call itself gives it."""
        place, length = 0, 0
        if name == "connect":
            place, length = call.arguments[1], call.arguments[2]
        elif name == "sendto":
            place, length = call.arguments[4], call.arguments[5]
        elif name in {"sendmsg", "sendmmsg"}:
            place, length = _HEADER.unpack(self._memory.read(call.thread, call.arguments[1], _HEADER.size))
        if place:
            return _parsed(self._memory.read(call.thread, place, min(length & _LOW_HALF, _ADDRESS_BYTES_MAX))), True
        with contextlib.suppress(OSError):
            return _plain(end.getpeername()[:2]), False
        return None, False

    def _owner(self, end: socket.socket, address: Address) -> str | None:
        """Return the agent that has the other end, or listens at its address."""
        own = _plain(end.getsockname()[:2])
        kind = "udp" if end.type == socket.SOCK_DGRAM else "tcp"
        for entry in table(kind):
            is_peer = entry.own == address and entry.peer == own
            is_host = entry.own[0] in _ANY_HOST or entry.own[0] == address[0]
            is_there = is_host and entry.own[1] == address[1] and (entry.state == LISTEN or kind == "udp")
            if (is_peer or is_there) and entry.inode and (name := self._network.owner_of(entry.inode)) is not None:
                return name
        return None


def _parsed(data: bytes) -> Address | None:
    """Return host and port of a ``struct sockaddr`` of the internet; None for any other one."""
    if len(data) < 8:
        return None
    family, port = struct.unpack_from("=H", data)[0], struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[4:8]), port
    if family == socket.AF_INET6 and len(data) >= 24:
        return _plain((socket.inet_ntop(socket.AF_INET6, data[8:24]), port))
    return None


def _plain(address: tuple[str, int]) -> Address:
    """Return an address, an IPv4 one within IPv6 as IPv4."""
    return address[0].removeprefix("::ffff:"), address[1]
