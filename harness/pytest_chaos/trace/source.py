"""Step sources: run a program in a folder, observe its durable steps, carry out a directive.

Two sources implement ``StepSource``: seccomp notifications (Linux; any program, process trees,
every system call) and audit events (any system; Python programs only). The room ``explore`` uses
this module alone, and does not know which source it has.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol, Required, TypeAlias, TypedDict, Unpack

import msgspec

from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.trace.step import KNOWN_FILES, BlindSpot, FileKinds, ProcessSeen, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.trace.calls.reads import WatchedReads
    from pytest_chaos.trace.calls.touches import EventLog
    from pytest_chaos.trace.recording import Recorder
    from pytest_chaos.trace.schedule import Schedule
    from pytest_chaos.trace.survey import SharedLines

    Program: TypeAlias = Callable[[], None] | Sequence[str]
    """A function, called in a forked process, or a command line."""
    MakeProgram: TypeAlias = Callable[[Path, Path], Program]
    """Returns the program for a folder and a mark file."""

SOURCES: Final = ("seccomp", "audit")
TIMEOUT_S: Final = 60.0
OUTPUT_SHOWN_BYTES: Final = 16 * 1024


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag="watch"):
    """Let the program run to its end."""


class KillBefore(msgspec.Struct, frozen=True, kw_only=True, tag="kill_before"):
    """SIGKILL the program and all its processes as it makes step ``number``, which is not done.

    With ``process``, counted as in ``Step``, that process alone is killed, and the others go on;
    the step is not done if it was that process's own.
    """

    number: int
    process: int = 0


class KillAfterMark(msgspec.Struct, frozen=True, kw_only=True, tag="kill_after_mark"):
    """SIGKILL it once its ``count``-th mark (from 1, any kind) is written: right after an ack."""

    count: int


class InjectError(msgspec.Struct, frozen=True, kw_only=True, tag="inject_error"):
    """Fail step ``number`` in place of doing it. ``error`` names an ``errno``, such as ``ENOSPC``.

    ``times`` is how many steps fail. 1 is this one. None is this one and all that the same trouble
    concerns: for ENOSPC each step that needs room, for EIO each step on the file. With
    ``short_bytes`` the step is a write; the source writes so many bytes itself and reports them.
    """

    number: int
    error: str = ""
    times: int | None = 1
    short_bytes: int | None = None


Directive: TypeAlias = Watch | KillBefore | KillAfterMark | InjectError


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one run.

    - ``steps`` have no contents; ``count`` is the number of the last one.
    - One of ``exit_code`` and ``signal`` says how the program ended, unless it hung.
    - ``fired``: the directive was carried out (the SIGKILL was ours, the error was returned).
    - ``diverged_at`` is the number of the first step that was not the expected one but for drawn
      names, None for no such step; ``diverged`` is that step as text.
    - ``strays`` are paths outside the folder that the program changed, and ``temporary`` those that
      it made there. What a run that was ended could not remove of these is removed.
    - ``output`` is the tail of what it printed.
    - ``failure`` is a sentence that says why the observation cannot be trusted, or empty.
    - ``left`` names the processes that still ran when the program had ended; they were ended.
    - ``waits`` says what each thread waited for in a deadlock, which ends a run.
    - ``has_timer``: a timer of the program may send it a signal, so no wait is known to be endless.
    - ``choices`` is how often a step could have come before one of another thread.
    - ``struck`` is the step that met the directive: the first that failed, or that was never made.
    - ``lines`` has the line of each durable step, if lines were asked for.
    - ``processes`` are those that made a step or ran another program.
    - ``files`` says which files were no data, and ``ignored`` which of them the program changed.
    """

    steps: tuple[Step, ...]
    count: int
    exit_code: int | None = None
    signal: int | None = None
    is_timed_out: bool = False
    fired: bool = False
    diverged_at: int | None = None
    diverged: str = ""
    blind_spots: tuple[BlindSpot, ...] = ()
    strays: tuple[str, ...] = ()
    temporary: tuple[str, ...] = ()
    output: str = ""
    failure: str = ""
    left: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    has_timer: bool = False
    choices: int = 0
    struck: Step | None = None
    lines: tuple[str, ...] = ()
    processes: tuple[ProcessSeen, ...] = ()
    files: FileKinds = KNOWN_FILES
    ignored: tuple[str, ...] = ()


class ObserveOptions(TypedDict, total=False):
    """The options of ``observe``.

    - ``marks`` is the file, outside the folder, that ``CHAOS_MARKS`` names to the agents. Each
      write to it becomes a MARK among the steps.
    - With ``expected``, the program is ended at the first step that differs; see ``diverged_at``.
    - ``lines`` are those at which the program's threads are; each step notes its own.
    - With a ``schedule`` the source orders the calls of several threads by it.
    - ``events`` notes each step, and the touches of files between them, with their lines.
    - A ``recorder`` records the folder as it was, every step and every byte. It is left open.
    """

    marks: Required[Path]
    directive: Directive
    expected: Sequence[Step]
    recorder: Recorder | None
    schedule: Schedule | None
    lines: SharedLines | None
    events: EventLog | None
    timeout_s: float


class ProgramRunner(Protocol):
    """Runs one program again and again, each time from the same beginning."""

    def observe(self, directory: Path, **options: Unpack[ObserveOptions]) -> Observation:
        """Run it once more with ``directory`` watched; return once all its processes are gone.

        Raises StepsUnavailable if the source does not work here, or does not support an option.
        """
        ...

    def close(self) -> None:
        """End what was prepared for the next run. Closing twice is fine."""
        ...


class StepSource(Protocol):
    """A way to observe a program's durable steps. ``files`` says which files are no data."""

    name: str
    files: FileKinds

    def runner(self, make: MakeProgram) -> ProgramRunner:
        """Return a runner of the program that ``make`` returns.

        The program does not see what this process imports or changes after the first run.
        """
        ...

    def observe(self, program: Program, directory: Path, **options: Unpack[ObserveOptions]) -> Observation:
        """Run a program once. See ``ProgramRunner.observe``."""
        with contextlib.closing(self.runner(lambda *_: program)) as runner:
            return runner.observe(directory, **options)

    def reads(self, program: Program, directory: Path, *, marks: Path, timeout_s: float) -> WatchedReads | None:
        """Run a program once; return what it has read in the folder, None where it cannot be told.

        Its steps are not observed. Raises StepsUnavailable as ``observe`` does.
        """
        del program, directory, marks, timeout_s
        return None


def check_settings(directory: Path, timeout_s: float) -> None:
    """Raise UsageError for a folder or a timeout that no run can have."""
    if not directory.is_dir() or not timeout_s > 0:  # NaN compares false
        msg = f"cannot watch {directory}: it must be a directory and the timeout must be > 0 (got {timeout_s} s)"
        raise UsageError(msg)


def failure_of(leftovers: Sequence[str], expired_s: float | None) -> str:
    """Return why a run cannot be trusted that left processes or timed out, else an empty text."""
    if expired_s is not None:
        return f"it did not end within {expired_s:.3g} s, and was ended"
    return f"it left processes running, which were ended: {', '.join(leftovers[:5])}" if leftovers else ""


def source_for(name: str | None = None, files: FileKinds = KNOWN_FILES) -> StepSource:
    """Return the source of this name; without one, seccomp, or audit events where it does not work.

    Raises UsageError for an unknown name, StepsUnavailable for a source that does not work here.
    """
    # Here, because both import this module, and seccomp looks at the machine when it is imported.
    from pytest_chaos.trace.audit import AuditSource
    from pytest_chaos.trace.seccomp import SeccompSource

    if name == "audit":
        return AuditSource(files)
    if name not in {None, "seccomp"}:
        msg = f"the step source must be one of {', '.join(SOURCES)}; got {name!r}"
        raise UsageError(msg)
    try:
        source = SeccompSource(files)
        source.try_out()
    except StepsUnavailable:
        if name is not None:
            raise
        return AuditSource(files)
    return source


def why_not_seccomp() -> str:
    """Return why seccomp does not work on this machine, or an empty text where it does."""
    try:
        source_for("seccomp")
    except StepsUnavailable as error:
        return str(error)
    return ""
