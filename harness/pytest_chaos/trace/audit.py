"""The second step source: audit events of a Python program (PEP 578).

The interpreter raises an event (``sys.audit``) before it opens, renames or removes something. A
program may raise events under names of its own (named points): any name that does not begin as
Python's own do, with a module of the standard library. Each such event is a step, at which the
program is killed, or gets an error.

Audit events do not show the bytes that are written, the calls of a C library such as SQLite, or
other programs; each observation lists these blind spots. So this source cannot record, and no state
can be built from its steps. It serves real kills where seccomp does not work.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.runtime import processes
from pytest_chaos.trace.comparison import TraceComparison
from pytest_chaos.trace.program import ProcessTree, launch
from pytest_chaos.trace.recording import decoded, encodable
from pytest_chaos.trace.source import (
    OUTPUT_SHOWN_BYTES,
    TIMEOUT_S,
    Directive,
    InjectError,
    KillAfterMark,
    KillBefore,
    Observation,
    StepSource,
    Watch,
    check_settings,
    failure_of,
)
from pytest_chaos.trace.step import KNOWN_FILES, Action, BlindSpot, FileKinds, Step
from pytest_chaos.trace.survey import is_named_point

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_chaos.trace.calls.touches import EventLog
    from pytest_chaos.trace.recording import Recorder
    from pytest_chaos.trace.schedule import Schedule
    from pytest_chaos.trace.source import MakeProgram
    from pytest_chaos.trace.survey import SharedLines

_BLIND: Final = BlindSpot(
    what="contents", text="audit events tell that a file is opened for writing, and nothing of what is written to it"
)
_OTHERS: Final = {
    "sqlite3.connect": "sqlite3",
    "subprocess.Popen": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.exec": "process",
    "mmap.__new__": "shared-mapping",
    "ctypes.dlopen": "library",
}
"""Events after which something happens that no audit event shows, and its blind spot."""
_ON_A_PATH: Final = {
    "os.remove": (Action.UNLINK, 0, True),
    "os.rmdir": (Action.REMOVE_FOLDER, 0, True),
    "os.mkdir": (Action.MAKE_FOLDER, 0, False),
    "os.link": (Action.LINK, 1, False),
    "os.symlink": (Action.SYMLINK, 1, False),
    "os.truncate": (Action.TRUNCATE, 0, True),
    "os.chmod": (Action.CHANGE_MODE, 0, True),
}
"""The step of an event: which argument is its path, and whether that must exist."""


class AuditSource(StepSource):
    """Observes Python functions by audit events.

    An event says that something is about to happen; unlike a trapped call, it may still fail.
    """

    name = "audit"

    def __init__(self, files: FileKinds = KNOWN_FILES) -> None:
        self.files = files

    def runner(self, make: MakeProgram) -> AuditRunner:
        """Return a runner, which prepares nothing: it forks the program anew for every run."""
        return AuditRunner(make, self.files)


class AuditRunner:
    """Runs a Python function that is forked from this process, with an audit hook."""

    def __init__(self, make: MakeProgram, files: FileKinds) -> None:
        self._make = make
        self._files = files

    def observe(
        self,
        directory: Path,
        *,
        marks: Path,
        directive: Directive = Watch(),  # noqa: B008 - a frozen value
        expected: Sequence[Step] = (),
        recorder: Recorder | None = None,
        schedule: Schedule | None = None,
        lines: SharedLines | None = None,
        events: EventLog | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Observation:
        """Run it once more. See ``ProgramRunner.observe``.

        Audit events can neither record, nor watch a command, stop at a mark, or hold a call.
        """
        program = self._make(directory, marks)
        is_plain = recorder is None and schedule is None and lines is None and events is None
        is_plain &= not isinstance(directive, KillAfterMark)
        if not is_plain or not callable(program):
            msg = "audit events can neither record, watch a command, stop at a mark, nor hold calls: seccomp can"
            raise StepsUnavailable(msg)
        check_settings(directory, timeout_s)
        marks.touch()
        output, log = marks.with_name(marks.name + ".output"), marks.with_name(marks.name + ".steps")
        for file in (output, log):
            file.write_bytes(b"")
        adopted_before = processes.adopt_orphans()
        hook = _Hook(directory, marks, log, directive, expected, self._files)
        others = processes.children()
        tree = ProcessTree(launch(program, directory, marks, output, hook.install), others)
        try:
            is_timed_out = not select.select([tree.pidfd], [], [], timeout_s)[0]
        finally:
            leftovers = tree.end()
            processes.adopt_orphans(adopts=adopted_before)
        failure = failure_of(leftovers, timeout_s if is_timed_out else None)
        return _observation(tree, log, output, directive, failure, is_timed_out=is_timed_out)

    def close(self) -> None:
        """Do nothing: nothing is prepared."""


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """A line of the log: a step, a blind spot, the directive carried out, or a divergence."""

    step: Step | None = None
    blind_spot: BlindSpot | None = None
    fired: bool = False
    diverged_at: int | None = None
    diverged: str = ""


class _Hook:
    """The audit hook inside the program: logs the steps, and carries out the directive."""

    def __init__(
        self,
        directory: Path,
        marks: Path,
        log: Path,
        directive: Directive,
        expected: Sequence[Step],
        files: FileKinds,
    ) -> None:
        self._files = files
        self._root = os.path.realpath(directory)
        self._prefix = self._root + "/"
        self._marks = str(marks)
        self._log_path = str(log)
        self._directive = directive
        self._expected = [step for step in expected if not step.is_mark]
        self._comparison = TraceComparison(self._expected)
        self._count = 0
        self._marks_seen = 0
        self._is_busy = False
        self._errors_left = 0.0

    def install(self) -> None:
        """Install the hook, which cannot be removed."""
        self._log = os.open(self._log_path, os.O_WRONLY | os.O_APPEND)
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, given: tuple[Any, ...]) -> None:
        if self._is_busy:  # an event of the hook's own calls
            return
        self._is_busy = True
        try:
            if event in _OTHERS:
                self._write(_Line(blind_spot=BlindSpot(what=_OTHERS[event], text=f"{event} {given[:1]!r:.200}")))
            elif (step := self._step(event, given)) is not None:
                self._pass(step)
        finally:
            self._is_busy = False

    def _step(self, event: str, given: tuple[Any, ...]) -> Step | None:
        """Return the step that an event announces, None for an event that announces none."""
        number = self._count + 1
        if event == "open":
            return self._open(number, *given)
        if event == "os.rename":
            (is_there, source), (_, target) = self._place(given[0]), self._place(given[1])
            if not is_there or (source is None and target is None):
                return None
            return Step(number=number, action=Action.RENAME, call=event, path=source or "", target=target or "")
        if event in _ON_A_PATH:
            action, argument, exists = _ON_A_PATH[event]
            is_there, place = self._place(given[argument])
            if place is None or is_there != exists:
                return None
            target = os.fsdecode(given[0]) if action is Action.SYMLINK else ""
            length = int(given[1]) if action is Action.TRUNCATE else 0
            return Step(number=number, action=action, call=event, path=place, target=target, length=length)
        if not is_named_point(event):
            return None
        return Step(number=number, action=Action.POINT, call=event, path=event)

    def _open(self, number: int, path: object, _mode: object, flags: object) -> Step | None:
        if not isinstance(flags, int) or not flags & (os.O_CREAT | os.O_TRUNC):
            return None
        is_there, place = self._place(path)
        if place is None:
            return None
        if is_there:  # O_TRUNC of an empty file changes nothing
            action = Action.TRUNCATE
            is_step = bool(flags & os.O_TRUNC) and os.path.getsize(os.path.join(self._root, place)) > 0
        else:
            action = Action.CREATE
            is_step = bool(flags & os.O_CREAT)
        return Step(number=number, action=action, call="open", path=place) if is_step else None

    def _pass(self, step: Step) -> None:
        """Count a step, and kill the program or raise an error there if the directive says so."""
        self._see_marks()
        if self._expected and not self._comparison.follows(step):
            self._end(_Line(diverged_at=step.number, diverged=str(step)))
        if isinstance(self._directive, KillBefore) and step.number == self._directive.number:
            self._end(_Line(fired=True))
        self._count = step.number
        if isinstance(self._directive, InjectError) and self._fails(self._directive, step.number):
            self._write(_Line(fired=True))
            # An exception from a hook aborts the operation that the event announces (PEP 578).
            code = getattr(errno, self._directive.error or "EIO")
            raise OSError(code, os.strerror(code), step.path)
        self._write(_Line(step=encodable(step)))

    def _fails(self, injected: InjectError, number: int) -> bool:
        if number == injected.number:
            self._errors_left = float("inf") if injected.times is None else injected.times
        self._errors_left -= 1
        return self._errors_left >= 0 and number >= injected.number

    def _see_marks(self) -> None:
        """Log the marks that were written since the last step."""
        with open(self._marks, "rb") as file:
            file.seek(self._marks_seen)
            content = file.read()
        self._marks_seen += len(content)
        for line in filter(None, content.split(b"\n")):
            self._write(_Line(step=Step(number=self._count, action=Action.MARK, call="write", length=len(line))))

    def _end(self, line: _Line) -> None:
        # SIGKILL from inside: no handler, no "finally", no buffer is run or written any more.
        self._write(line)
        os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, line: _Line) -> None:
        os.write(self._log, msgspec.json.encode(line) + b"\n")

    def _place(self, path: object) -> tuple[bool, str | None]:
        """Return whether a path exists, and its path in the folder, None for one outside."""
        if isinstance(path, int):
            absolute = os.readlink(f"/proc/self/fd/{path}") if os.path.exists(f"/proc/self/fd/{path}") else ""
        elif isinstance(path, str | bytes | os.PathLike):
            parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
            absolute = os.path.join(os.path.realpath(parent), name)
        else:
            absolute = ""
        path = absolute[len(self._prefix) :] if absolute.startswith(self._prefix) else None
        return os.path.lexists(absolute), None if path is None or self._files.ignores(path) else path


def _observation(
    tree: ProcessTree, log: Path, output: Path, directive: Directive, failure: str, *, is_timed_out: bool
) -> Observation:
    lines = [msgspec.json.decode(line, type=_Line) for line in log.read_bytes().splitlines()]
    steps = tuple(decoded(line.step) for line in lines if line.step is not None)
    fired = any(line.fired for line in lines)
    count = max((step.number for step in steps), default=0)
    count += fired and isinstance(directive, InjectError) and count < directive.number
    return Observation(
        steps=steps,
        count=count,
        exit_code=tree.exit_code,
        signal=tree.signal,
        is_timed_out=is_timed_out,
        fired=fired,
        diverged_at=next((line.diverged_at for line in lines if line.diverged_at is not None), None),
        diverged=next((line.diverged for line in lines if line.diverged), ""),
        blind_spots=(_BLIND, *(line.blind_spot for line in lines if line.blind_spot is not None)),
        output=output.read_bytes()[-OUTPUT_SHOWN_BYTES:].decode(errors="replace"),
        failure=failure,
    )
