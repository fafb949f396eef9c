"""What a source of steps can be asked: run this program in this folder, watch it, and do this to it.

Two sources implement ``StepSource``: seccomp notifications (Linux; any program, process trees,
every system call) and named audit events (everywhere; a Python program that tells what it is about
to do). Everything that explores is written against this module, and does not know which of them it
has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from pytest_chaos.trace.step import BlindSpot, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.trace.recording import Recorder

    Program: TypeAlias = Callable[[], None] | Sequence[str]
    """A function, called in a forked process, or a command line."""


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag="watch"):
    """Let the program run to its end."""


class KillBefore(msgspec.Struct, frozen=True, kw_only=True, tag="kill_before"):
    """End the program and all its processes with SIGKILL as it makes step ``number``, which then does not happen."""

    number: int


class KillAfterMark(msgspec.Struct, frozen=True, kw_only=True, tag="kill_after_mark"):
    """End it with SIGKILL at the ``count``-th mark (from 1, of any kind), which is written: the moment of an ack."""

    count: int


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """Answer step ``number`` with an error in place of doing it. ``error`` is a name of ``errno``, such as ``ENOSPC``.

    ``times`` is how many steps are answered: 1 is this one; None is this one and all that could
    meet the same trouble (for ENOSPC whatever needs room, for EIO whatever touches the file). With
    ``short_bytes`` the call is a write of which so many bytes are really written, by the source,
    and reported as written.
    """

    number: int
    error: str = ""
    times: int | None = 1
    short_bytes: int | None = None


Directive: TypeAlias = Watch | KillBefore | KillAfterMark | Answer


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run. ``exit_code`` is the program's, ``signal`` what ended it; one of the two, unless it hung.

    ``fired`` says that the directive was carried out (the process died of our SIGKILL, the error
    was handed out). ``diverged_at`` is the number of the first step that was not the expected one,
    None where all were; ``diverged`` is that step in words. Names that the program draws anew in
    every run may differ. ``steps`` are without contents; ``strays`` are paths outside of the folder
    that the program changed; ``output`` is the tail of what it printed. ``failure`` says, in a
    sentence, why the observation cannot be trusted (the supervisor lost the program, say), and is
    empty where it can.
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
    output: str = ""
    failure: str = ""


class Standing(Protocol):
    """A program that stands by to be run again and again, and every time from the same beginning."""

    def observe(
        self,
        directory: Path,
        *,
        marks: Path,
        directive: Directive = ...,
        expected: Sequence[Step] = (),
        recorder: Recorder | None = None,
        timeout_s: float = ...,
    ) -> Observation:
        """Run it once more. See ``StepSource.observe``."""
        ...

    def close(self) -> None:
        """End what stands by. Closing twice is fine."""
        ...


class StepSource(Protocol):
    """A way to see a program's durable steps."""

    name: str

    def stand_by(self, make: Callable[[Path, Path], Program]) -> Standing:
        """Return what runs the program that ``make`` returns for a folder and a mark file, and costs less a run.

        What this process imports or changes after the first run is not seen by the program.
        """
        ...

    def observe(
        self,
        program: Program,
        directory: Path,
        *,
        marks: Path,
        directive: Directive = ...,
        expected: Sequence[Step] = (),
        recorder: Recorder | None = None,
        timeout_s: float = ...,
    ) -> Observation:
        """Run the program with ``directory`` watched, and return what came of it once all its processes are gone.

        ``marks`` is the file, outside of ``directory``, that the agents write marks to
        (``CHAOS_MARKS`` names it to them); what is written to it becomes MARK entries among the
        steps. With ``expected``, a step that differs from it is reported in ``diverged_at``, and
        the program is ended there. A ``recorder`` takes down the folder as it was, every step and
        every byte; it is left open. Raises StepsUnavailable where this source does not work.
        """
        ...
