"""The first source of steps: seccomp notifications. Any program, in any language, unmodified, with all its descendants.

The program runs as a child of the process that watches, in a session of its own. Before its first
instruction it puts on a filter, which it cannot take off and all its children inherit; from then on
each call that could change a file waits until the supervisor, here, has looked at it. Nothing of
the program is changed but that: no library is preloaded, no memory written, and root is not needed.

The watching process adopts orphans, so that a daemon does not get away; when it is killed, the
kernel kills the program, and calls of what is left fail with ENOSYS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import AgentError, UsageError
from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.caller import NOTHING, Decoded, Run
from pytest_chaos.trace.calls.decode import Decoder
from pytest_chaos.trace.comparison import Likeness
from pytest_chaos.trace.folder import WatchedFolder
from pytest_chaos.trace.kernel import Filter, borrow_descriptor
from pytest_chaos.trace.program import Family, children
from pytest_chaos.trace.source import Answer, Directive, KillAfterMark, KillBefore, Observation, Watch
from pytest_chaos.trace.step import Action, BlindSpot, Step, readable
from pytest_chaos.trace.zygote import LOST, Standby, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.trace.kernel import Notification
    from pytest_chaos.trace.recording import Recorder
    from pytest_chaos.trace.source import Program

TIMEOUT_S: Final = 60.0
OUTPUT_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a program may print in one run. It is in memory, so the write that would pass this is never made."""
_OUTPUT_SHOWN_BYTES: Final = 16 * 1024
_STRAYS_MAX: Final = 100
_STEPS_A_CLOSE: Final = 2
"""To hear of a close costs as much as to ask twice where a write goes."""
_CALLS_TO_JUDGE_BY: Final = 200
_NEEDS_ROOM: Final = frozenset(
    {
        Action.CREATE,
        Action.CREATE_UNNAMED,
        Action.MAKE_FOLDER,
        Action.MAKE_NODE,
        Action.SYMLINK,
        Action.LINK,
        Action.WRITE,
        Action.ALLOCATE,
    }
)


class SeccompSource:
    """Watches programs by seccomp notifications. Raises StepsUnavailable where the machine's calls are not known.

    ``observe`` wants to be called from a process with one thread: it forks.
    """

    name = "seccomp"

    def __init__(self) -> None:
        self._filter = Filter()

    def try_out(self) -> None:
        """Raise StepsUnavailable where the kernel, a container or another supervisor refuses the filter."""
        if number := self._filter.refusal():
            raise unavailable(number)

    def observe(
        self,
        program: Program,
        directory: Path,
        *,
        marks: Path,
        directive: Directive = Watch(),  # noqa: B008 - a frozen value
        expected: Sequence[Step] = (),
        recorder: Recorder | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Observation:
        """Run the program with ``directory`` watched. See ``StepSource.observe``."""
        with contextlib.closing(SeccompStanding(lambda *_: program, self._filter, once=True)) as standing:
            return standing.observe(
                directory, marks=marks, directive=directive, expected=expected, recorder=recorder, timeout_s=timeout_s
            )

    def stand_by(self, make: Callable[[Path, Path], Program]) -> SeccompStanding:
        """Have the program stand by. See ``StepSource.stand_by``."""
        return SeccompStanding(make, self._filter)


class SeccompStanding:
    """A program that stands by with the filter on. It is forked from this process when it is run for the first time."""

    def __init__(self, make: Callable[[Path, Path], Program], filter_: Filter, *, once: bool = False) -> None:
        self._make = make
        self._filter = filter_
        self._once = once
        self._closes = self._steps = 0
        self._expected: Sequence[Step] = ()
        self._durable: list[Step] = []
        self._standby: Standby | None = None

    def observe(
        self,
        directory: Path,
        *,
        marks: Path,
        directive: Directive = Watch(),  # noqa: B008 - a frozen value
        expected: Sequence[Step] = (),
        recorder: Recorder | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Observation:
        """Run it once more. See ``StepSource.observe``."""
        if not directory.is_dir() or not timeout_s > 0:
            msg = f"a folder is watched, for more than 0 s, and this is {directory} for {timeout_s} s"
            raise UsageError(msg)
        marks.touch()
        folder = WatchedFolder(directory)
        keep = recorder.keep if recorder is not None else None
        before = list(folder.scan(keep))
        standby, family = self._start(directory, marks)
        run = Run(family.pid, standby.umask, self._filter.closes, os.stat(marks), os.fstat(standby.output))
        decoder = Decoder(folder, run, keep)
        supervision = _Supervision(family, standby, decoder, directive, self._durable_of(expected))
        try:
            supervision.run(time.monotonic() + timeout_s)
        finally:
            supervision.leftovers = family.end()
            decoder.finish()
        observation = supervision.observation(timeout_s)
        self._suit(decoder.descriptors.closes, len(supervision.steps))
        if family.is_orphaned:
            self.close()
        if recorder is not None:
            recorder.before.extend(before)
            recorder.steps.extend(supervision.steps)
            recorder.blind_spots.extend(supervision.blind_spots)
        return observation

    def _durable_of(self, expected: Sequence[Step]) -> list[Step]:
        """Return what is expected without the marks; most often it is the same as the last time."""
        if expected is not self._expected or not isinstance(expected, tuple):
            self._expected = expected
            self._durable = [step for step in expected if step.action is not Action.MARK]
        return self._durable

    def _suit(self, closes: int, steps: int) -> None:
        """Have the next runs wear the other filter if this one hears of more closes than it saves questions."""
        self._closes += closes
        self._steps += steps
        is_enough = self._closes + self._steps > _CALLS_TO_JUDGE_BY
        if is_enough and self._filter.closes and self._closes * _STEPS_A_CLOSE > self._steps:
            self._filter = Filter(closes=False)
            self.close()

    def _start(self, directory: Path, marks: Path) -> tuple[Standby, Family]:
        """Start the program; what stands by is replaced once, if something has killed it since the last run."""
        try:
            return self._started(directory, marks)
        except AgentError:
            self.close()
            return self._started(directory, marks)

    def _started(self, directory: Path, marks: Path) -> tuple[Standby, Family]:
        if self._standby is None:
            self._standby = Standby(self._make, self._filter, once=self._once)
        others = children()
        return self._standby, Family(self._standby.start(directory, marks), others)

    def close(self) -> None:
        """End what stands by. Closing twice is fine."""
        if self._standby is not None:
            self._standby.close()
            self._standby = None


class _Supervision:
    """One program's run: takes its calls one by one, numbers its steps, and carries out the directive."""

    def __init__(
        self, family: Family, standby: Standby, decoder: Decoder, directive: Directive, expected: Sequence[Step]
    ) -> None:
        self._family = family
        self._listener = standby.listener
        self._early = standby.early
        self._decoder = decoder
        self._directive = directive
        self._expected = expected
        self._likeness = Likeness(expected)
        self._output = standby.output
        self._kill_at = directive.number if isinstance(directive, KillBefore) else 0
        self._kill_at_mark = directive.count if isinstance(directive, KillAfterMark) else 0
        self._is_answering = isinstance(directive, Answer)
        self._answers_left: float = 0
        self._answered_node = 0
        self._mark_count = 0
        self._count = 0
        self._is_over = False
        self.steps: list[Step] = []
        self.blind_spots: list[BlindSpot] = []
        self.leftovers: list[str] = []
        self._strays: dict[str, bool] = {}
        """Paths outside that were changed, and whether they were there before."""
        self._fired = False
        self._diverged_at: int | None = None
        self._diverged = ""
        self._is_timed_out = False
        self._failure = ""

    def run(self, deadline_s: float) -> None:
        """Take calls until the program has ended, was ended, or has had its time."""
        poll = select.poll()
        listener = self._listener.descriptor
        poll.register(listener, select.POLLIN)
        poll.register(self._family.pidfd, select.POLLIN)
        a_call = (listener, select.POLLIN)
        while self._early and not self._is_over:
            self._take(self._early.pop(0))
        while not self._is_over:
            left_s = deadline_s - time.monotonic()
            ready = poll.poll(left_s * 1000) if left_s > 0 else []
            if not ready:
                self._is_timed_out = True
                return
            if a_call not in ready:
                return  # the program has ended, or nobody wears the filter any more
            if (call := self._listener.receive()) is not None:
                self._take(call)

    def observation(self, timeout_s: float) -> Observation:
        """Return what came of it."""
        if not self._failure and self.leftovers and not self._fired and self._diverged_at is None:
            self._failure = f"it left processes running, which were ended: {', '.join(self.leftovers[:5])}"
        if self._family.is_orphaned:
            self._failure = LOST
        if self._is_timed_out:
            self._failure = f"it did not end within {timeout_s:g} s, and was ended"
        return Observation(
            steps=tuple(self.steps),
            count=self._count,
            exit_code=self._family.exit_code,
            signal=self._family.signal,
            is_timed_out=self._is_timed_out,
            fired=self._fired,
            diverged_at=self._diverged_at,
            diverged=self._diverged,
            blind_spots=tuple(self.blind_spots),
            strays=self._harmed(),
            output=self._tail(),
            failure=self._failure,
        )

    def _harmed(self) -> tuple[str, ...]:
        """Return the paths outside that are not as before; what was made and removed again did no harm.

        Nor did what a process has set of its own in ``/proc``, as Java does at each start: it is
        gone with it.
        """
        harmed = (path for path, was in self._strays.items() if was or os.path.lexists(path))
        return tuple(readable(path) for path in harmed if not _is_of_a_process_gone(path))

    def _take(self, call: Notification) -> None:
        decoded = self._decoder.decode(call, self._count + 1)
        if decoded is NOTHING:
            self._listener.let_pass(call)
        elif decoded.is_step and self._is_as_expected(step := decoded.steps[0]):
            self.steps.append(step)
            self._count += 1
            if not self._listener.let_pass(call):
                self._drop(step.number, 1)
        else:
            self._carry_out(call, decoded)

    def _carry_out(self, call: Notification, decoded: Decoded) -> None:
        """Do with a call what its meaning and the directive ask for."""
        if decoded.blind_spot is not None or decoded.stray:
            self._note(decoded)
        if decoded.printed_bytes > OUTPUT_BYTES_MAX:
            self._failure = f"it printed more than {OUTPUT_BYTES_MAX >> 20} MiB, and was ended"
            self._kill(fired=False)
        elif decoded.error:
            self._listener.fail(call, decoded.error)
        elif decoded.mark is not None:
            self._pass_mark(call, decoded.mark)
        elif not decoded.steps:
            self._listener.let_pass(call)
        else:
            self._pass_steps(call, decoded)

    def _note(self, decoded: Decoded) -> None:
        if decoded.blind_spot is not None:
            spot = msgspec.structs.replace(decoded.blind_spot, text=readable(decoded.blind_spot.text))
            if all((each.what, each.text) != (spot.what, spot.text) for each in self.blind_spots):
                self.blind_spots.append(
                    BlindSpot(what=spot.what, text=spot.text, is_denied=spot.is_denied, number=self._count)
                )
        if decoded.stray and len(self._strays) < _STRAYS_MAX and decoded.stray not in self._strays:
            self._strays[decoded.stray] = os.path.lexists(decoded.stray)

    def _pass_mark(self, call: Notification, mark: Step) -> None:
        """Let a mark be written, and put it between the steps."""
        self._mark_count += 1
        self.steps.append(mark)
        if self._mark_count == self._kill_at_mark:
            self._write_for(call, mark.length)
            self._kill()
        elif not self._listener.let_pass(call):
            self._mark_count -= 1
            self.steps.pop()

    def _pass_steps(self, call: Notification, decoded: Decoded) -> None:
        """Number the steps of a call, and let it pass unless the directive says otherwise."""
        before = self._count
        for place, step in enumerate(decoded.steps):
            number = step.number
            if self._expected and self._diverges(number, step):
                self._kill(fired=False)
                return
            if number == self._kill_at:
                if place:  # its first step, a write, has happened, and what follows in the same call has not
                    self._write_for(call, decoded.steps[0].length)
                self._kill()
                return
            if self._is_answering and self._answers(number, step):
                self._decoder.take_back()
                self._answer(call, step)
                self._count = number
                return
            self._count = number
            self.steps.append(step)
        if not self._listener.let_pass(call):  # its caller was killed while it was looked at: it has not happened
            self._drop(before + 1, len(decoded.steps))

    def _drop(self, number: int, count: int) -> None:
        """Take back the steps of a call that has not happened, from this number on."""
        self._decoder.take_back()
        self._count = number - 1
        del self.steps[len(self.steps) - count :]

    def _is_as_expected(self, step: Step) -> bool:
        """Tell whether a step is one to let pass: nothing is asked of it but to be the one that is expected, if any."""
        number, expected = step.number, self._expected
        if self._is_answering or number == self._kill_at:
            return False
        return not expected or (number <= len(expected) and step.does_as(expected[number - 1]))

    def _diverges(self, number: int, step: Step) -> bool:
        if self._likeness.follows(step):
            return False
        self._diverged_at = number
        self._diverged = str(step)
        return True

    def _answers(self, number: int, step: Step) -> bool:
        """Tell whether this step is answered with an error in place of being done."""
        directive = self._directive
        if not isinstance(directive, Answer):
            return False
        if number == directive.number:
            self._answers_left = float("inf") if directive.times is None else directive.times
            self._answered_node = step.node
        elif number < directive.number or self._answers_left <= 0 or not self._meets_the_same(directive, step):
            return False
        self._answers_left -= 1
        return True

    def _meets_the_same(self, directive: Answer, step: Step) -> bool:
        """Tell whether a later step meets the trouble too: a full disk whatever needs room, a bad file its own."""
        if directive.times is not None:
            return True
        if directive.error == "ENOSPC":
            return step.action in _NEEDS_ROOM
        return step.node == self._answered_node

    def _answer(self, call: Notification, step: Step) -> None:
        directive = self._directive
        assert isinstance(directive, Answer)  # noqa: S101 - or it would not be answered
        self._fired = True
        if directive.short_bytes is not None and step.action is Action.WRITE and directive.short_bytes < step.length:
            written = self._write_for(call, directive.short_bytes)
            self._listener.succeed(call, written)
            return
        self._listener.fail(call, getattr(errno, directive.error or "EIO"))

    def _write_for(self, call: Notification, length: int) -> int:
        """Do the first bytes of a write in the caller's place, through its own open file."""
        extent = self._decoder.extent(call)
        if extent is None:
            return 0
        pieces = b"".join(self._decoder.memory.read(call.thread, *piece) for piece in extent.pieces)
        descriptor = borrow_descriptor(memory.process_of(call.thread), call.arguments[0])
        try:
            if self._decoder.is_positioned(call):
                return os.pwrite(descriptor, pieces[:length], extent.offset)
            return os.write(descriptor, pieces[:length])
        finally:
            os.close(descriptor)

    def _kill(self, *, fired: bool = True) -> None:
        """End everything at once; the call that waits is never answered."""
        self._family.kill()
        self._fired = fired
        self._is_over = True

    def _tail(self) -> str:
        size = os.fstat(self._output).st_size
        shown = os.pread(self._output, _OUTPUT_SHOWN_BYTES, max(0, size - _OUTPUT_SHOWN_BYTES))
        return shown.decode(errors="replace")


def _is_of_a_process_gone(path: str) -> bool:
    return path.startswith(("/proc/self/", "/proc/thread-self/")) or (
        path.startswith("/proc/") and not os.path.lexists(path)
    )
