"""A survey: the points and durable steps that a program comes to, each with the program's own line.

The points are noted by the program itself, in a Python agent, and the steps by the watcher. Both
append to one file, so that they are in one order.

The own line is the innermost that is not Python's, an installed package's, or ours. A system call
does not say which line made it. So a Python program notes its lines as it goes, in memory that it
shares with the observer, who reads there when a call is trapped. For a call into a library, the
note also has the function of the library that the program has called. That is slow, and done only
where lines are asked for.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading
from collections import defaultdict, deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.model.history import MarkParser
from pytest_chaos.model.promises import named_by, relied_on
from pytest_chaos.model.story import LostItem, RunSteps, StoryStep
from pytest_chaos.model.values import MarkKind
from pytest_chaos.runtime.own_line import is_of_user, own_line
from pytest_chaos.trace.step import SYNCS, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from pytest_chaos.model.values import Finding, Mark

_OF_PYTHON: Final = sys.stdlib_module_names | {
    "compile", "cpython", "exec", "function", "import", "object", "open", "setopencodehook",
}  # fmt: skip
"""How the names of Python's own events begin. A program's named points begin otherwise."""
_TELLING: Final = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
    | {"os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen", "sqlite3.connect", "fcntl.flock", "fcntl.lockf"}
    | {"socket.connect", "socket.bind", "shutil.rmtree", "shutil.move", "shutil.copyfile", "mmap.__new__"}
)
"""Events of Python at which a fault is worth its while."""
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_LINES: Final = ".lines"
_LOST_MAX: Final = 20
_AROUND: Final = 8
"""Steps and marks that are kept on either side of an item's intent and ack."""
STEP: Final = "step"
MARK: Final = "mark"
TAKEN_BACK: Final = "taken-back"
_INSIDE: Final = str(Path(__file__).with_name("inside"))
_KEPT_MAX: Final = 100_000
_SLOT_BYTES: Final = 512
_SLOTS: Final = 256


def trace_lines(put: Callable[[str], None], *, threads: bool = True) -> None:
    """Tell ``put`` the own line of each thread, in that thread, as often as it changes.

    Without ``threads``, those of the calling thread alone.
    """

    def within(frame: FrameType, event: str, _: Any) -> Any:
        if event != "opcode":
            put(own_line(frame.f_back if event == "return" else frame))
        return within

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if event != "call":
            return None
        if is_of_user(frame.f_code.co_filename):
            return within
        if frame.f_back is not None and is_of_user(frame.f_back.f_code.co_filename):
            put(own_line(frame))
            frame.f_trace_lines = False
            return leave
        return None

    def leave(frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":  # open(path) goes on in C, after path.__fspath__
            put(own_line(frame.f_back))
        return leave

    if threads:
        threading.settrace(enter)
    sys.settrace(enter)


class SharedLines:
    """The present own line of each thread of a program, in a file that two processes map."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SLOTS * _SLOT_BYTES)
            self._map = mmap.mmap(descriptor, _SLOTS * _SLOT_BYTES)
        finally:
            os.close(descriptor)

    def put(self, text: str) -> None:
        """Note the line of the calling thread."""
        thread = threading.get_native_id()
        content = f"{thread}\t{text}".encode(errors="replace")[: _SLOT_BYTES - 1] + b"\0"
        start = thread % _SLOTS * _SLOT_BYTES
        self._map[start : start + len(content)] = content

    def of(self, thread: int, leader: int = 0) -> str:
        """Return the line that a thread is at, or nothing where it noted none.

        One that runs another program notes none: then it is that of ``leader``, which started it.
        """
        if (line := self._noted(thread)) or not leader:
            return line
        return f"{line}, by a process that it started" if (line := self._noted(leader)) else ""

    def _noted(self, thread: int) -> str:
        start = thread % _SLOTS * _SLOT_BYTES
        number, _, text = self._map[start : start + _SLOT_BYTES].partition(b"\0")[0].partition(b"\t")
        return text.decode(errors="replace") if number == b"%d" % thread else ""


def noting_environment(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an environment needs so that Python programs note their lines in a file."""
    before = environment.get("PYTHONPATH")
    return {"CHAOS_LINES": str(path), "PYTHONPATH": os.pathsep.join(filter(None, (_INSIDE, before)))}


class PlaceToStop(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place where a program can be stopped: a named ``point``, or a durable ``step``.

    ``name`` is the audit event or the action; ``path`` is absolute, or relative to the run's
    directory; ``line`` reads ``file.py:12 in work``. A mark is here for its place in the order:
    ``length`` bytes of the mark file, from about ``at``.
    """

    kind: str
    name: str
    path: str = ""
    line: str = ""
    agent: str = ""
    at: int = 0
    length: int = 0


def is_named_point(event: str) -> bool:
    """Whether an audit event is a program's own.

    >>> is_named_point("app.saved"), is_named_point("os.rename")
    (True, False)
    """
    return event.partition(".")[0] not in _OF_PYTHON


class Survey:
    """The file of a survey, and the lines of the program beside it."""

    def __init__(self, path: str, agent: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._agent = agent
        self._count = 0
        self.lines = SharedLines(Path(path + _LINES))

    def add(self, kind: str, name: str, path: str, line: str) -> None:
        """Append a place; after very many of them no more."""
        self._append(PlaceToStop(kind, name, path, line, self._agent))

    def add_mark(self, at: int, length: int, line: str) -> None:
        """Append that the agent is about to write so many bytes of marks from about there."""
        self._append(PlaceToStop(MARK, MARK, line=line, agent=self._agent, at=at, length=length))

    def take_back(self, steps: int) -> None:
        """Append that the last steps of the agent were not made: a fault came before them."""
        self._append(PlaceToStop(TAKEN_BACK, TAKEN_BACK, agent=self._agent, length=steps))

    def _append(self, place: PlaceToStop) -> None:
        self._count += 1
        if self._count <= _KEPT_MAX:
            os.write(self._file, msgspec.json.encode(place) + b"\n")


def note_points(path: str, agent: str, *, lines: bool) -> None:
    """Note the points that this program passes from now on; with ``lines``, its lines, too."""
    survey = Survey(path, agent)
    busy = threading.local()

    def on_audit(event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(busy, "now", False) or not _is_telling(event, arguments):
            return
        busy.now = True
        try:
            line = own_line(sys._getframe(1)) if lines else ""  # noqa: SLF001 - the only way to the caller's line
            if line or is_named_point(event):
                survey.add("point", event, _path_of(event, arguments), line)
        finally:
            busy.now = False

    sys.addaudithook(on_audit)
    if lines:
        trace_lines(survey.lines.put)


def read(path: Path) -> Iterator[PlaceToStop]:
    """Yield what a survey has found, in order; a last line that was cut short is left out."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            yield msgspec.json.decode(line, type=PlaceToStop)
        except msgspec.DecodeError:
            continue


class Trail(NamedTuple):
    """The durable steps and the marks of watched agents in one order, each a step or a mark.

    ``lines`` are the program lines that wrote marks, by their order.
    """

    items: list[tuple[PlaceToStop | None, Mark | None]]
    lines: dict[int, str]


def trail(places: Iterable[PlaceToStop], content: bytes) -> Trail:
    """Return the trail of the agents of a survey.

    ``content`` is the mark file. Two agents that write at once may have been seen with one offset,
    so the marks are told apart by their agents.
    """
    written: defaultdict[str, deque[tuple[int, int, Mark]]] = defaultdict(deque)
    parser, at = MarkParser(), 0
    for line in content.split(b"\n"):
        for mark in parser.feed(line + b"\n"):
            written[mark.agent].append((at, len(line), mark))
        at += len(line) + 1
    found: list[tuple[PlaceToStop | None, Mark | None]] = []
    lines: dict[int, str] = {}
    for place in places:
        if place.kind == STEP:
            found.append((place, None))
        if place.kind == TAKEN_BACK:
            own_steps = [at for at, (step, _) in enumerate(found) if step is not None and step.agent == place.agent]
            for at in reversed(own_steps[len(own_steps) - place.length :]):
                del found[at]
        if place.kind != MARK:
            continue
        own = written[place.agent] or written[""]
        while own and own[0][0] < place.at:  # one that another process has written in this agent's name
            own.popleft()
        left = place.length
        while own and left >= own[0][1]:  # one write may hold several
            _, length, mark = own.popleft()
            left -= length
            found.append((None, mark))
            lines[mark.order] = place.line
    return Trail(found, lines)


def steps_of(survey: Path, content: bytes, findings: Sequence[Finding]) -> RunSteps:
    """Return what the steps of a watched run say of the items that its findings name.

    ``content`` is the mark file.
    """
    found, lines = trail(read(survey), content)
    acks = [(at, mark) for at, (_, mark) in enumerate(found) if mark is not None and mark.kind is MarkKind.ACK]
    wanted = {mark.order for mark in named_by(findings, [mark for _, mark in acks])}
    numbers = list(itertools.accumulate(int(step is not None) for step, _ in found))
    lost: list[LostItem] = []
    around: list[int] = []
    for at, mark in [each for each in acks if each[1].order in wanted][:_LOST_MAX]:
        relied = relied_on(found, at, _is_sync, is_own=partial(_is_of, mark.agent))
        step = found[relied.place][0] if relied.place is not None else None
        if relied.place is None or step is None:
            said = f"; {lines[mark.order]} acknowledged it" if lines.get(mark.order) else ""
            lost.append(LostItem(mark=mark, why=f"{relied.why}{said}"))
        else:
            lost.append(
                LostItem(
                    mark=mark, why=relied.why, step=numbers[relied.place], text=_words(step), line=step.line,
                    is_synced=relied.is_synced,
                )
            )  # fmt: skip
        around += [at if relied.place is None else relied.place, at]
    begin = max(0, min(around[:2], default=0) - _AROUND)
    end = max(around[:2], default=-1) + 1 + _AROUND
    return RunSteps(
        lost=tuple(lost),
        steps=tuple(_told(*found[at], numbers[at], lines) for at in range(begin, min(end, len(found)))),
        total=numbers[-1] if numbers else 0,
    )


def _is_of(agent: str, step: PlaceToStop) -> bool:
    return step.agent == agent


def _is_sync(step: PlaceToStop) -> bool:
    return step.name in SYNCS and step.name != Action.SYNC_RANGE


def _words(step: PlaceToStop) -> str:
    return f"{step.name} {step.path or '.'}"


def _told(step: PlaceToStop | None, mark: Mark | None, number: int, lines: Mapping[int, str]) -> StoryStep:
    if mark is not None:
        return StoryStep(number=number, mark=mark, line=lines.get(mark.order, ""), agent=mark.agent)
    assert step is not None  # noqa: S101 - each item is a step or a mark
    return StoryStep(number=number, text=_words(step), syncs=step.name in SYNCS, line=step.line, agent=step.agent)


def _is_telling(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 else 0
        return isinstance(flags, int) and bool(flags & _WRITES)
    return event in _TELLING or is_named_point(event)


def _path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the last path among the arguments: of a rename, the name that the file gets."""
    if is_named_point(event):
        return ""
    paths = [os.fsdecode(each) for each in arguments[:2] if isinstance(each, str | bytes | os.PathLike)]
    paths = [path for path in paths if event != "open" or path not in {"r", "w", "a", "x", "rb", "wb", "ab", "xb"}]
    return os.path.abspath(paths[-1 if event == "os.rename" else 0]) if paths else ""
