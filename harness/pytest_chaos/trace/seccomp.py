"""The first step source: seccomp notifications. Any program, unmodified, with all descendants.

The program runs in a session of its own. Before its first instruction it has a filter, which it
cannot take off and all its children inherit. From then on each call that could change a file waits
until the observing process, here, has looked at it. Nothing else of the program is changed: no
library is preloaded, no memory is written, and root is not needed.

The observing process adopts orphans, so a daemon cannot get away. When it is killed, the kernel
kills the program, and calls of what is left fail with ENOSYS.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
import stat
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import AgentError
from pytest_chaos.runtime import processes
from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import NOTHING, Decoded
from pytest_chaos.trace.calls.decoder import Decoder
from pytest_chaos.trace.calls.reads import WatchedReads, watch_reads
from pytest_chaos.trace.calls.table import filter_code
from pytest_chaos.trace.comparison import TraceComparison
from pytest_chaos.trace.folder import WatchedFolder
from pytest_chaos.trace.kernel import Filter, borrow_descriptor, unavailable
from pytest_chaos.trace.program import ProcessTree
from pytest_chaos.trace.schedule import Chooser, Threads
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
from pytest_chaos.trace.step import KNOWN_FILES, Action, BlindSpot, FileKinds, Step, readable
from pytest_chaos.trace.zygote import LOST, TraceZygote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.trace.calls.touches import EventLog
    from pytest_chaos.trace.kernel import Notification
    from pytest_chaos.trace.recording import Recorder
    from pytest_chaos.trace.schedule import Schedule
    from pytest_chaos.trace.source import MakeProgram, Program
    from pytest_chaos.trace.survey import SharedLines

OUTPUT_BYTES_MAX: Final = 64 * 1024 * 1024
"""A program's output is kept in memory: the write that would pass this is never done."""
PASSED_MAX: Final = 64
"""Calls without an order go on at once, so many of a thread between two of its choices."""
_STRAYS_MAX: Final = 100
_STEPS_A_CLOSE: Final = 2
"""A trapped close costs as much as asking twice what a descriptor leads to."""
_CALLS_TO_JUDGE_BY: Final = 200
_LOOK_S: Final = 0.001
"""The time between two looks at the threads that are waited for."""
_DIES_S: Final = 10.0
_QUIET_S: Final = 1.0
"""After so long without a call the threads may be in a deadlock."""
_NEEDS_ROOM: Final = frozenset(
    {Action.CREATE, Action.CREATE_UNNAMED, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK}
    | {Action.WRITE, Action.ALLOCATE}
)


@functools.cache
def _filter(*, closes: bool, touches: bool = False) -> Filter:
    return Filter(filter_code(closes=closes, touches=touches))


class SeccompSource(StepSource):
    """Observes programs by seccomp notifications. Raises StepsUnavailable on an unknown machine.

    Call ``observe`` from a process with one thread: it forks.
    """

    name = "seccomp"

    def __init__(self, files: FileKinds = KNOWN_FILES) -> None:
        self.files = files
        _filter(closes=True)

    def try_out(self) -> None:
        """Raise StepsUnavailable where the kernel, or another supervisor, refuses the filter."""
        if number := _filter(closes=True).refusal():
            raise unavailable(number)

    def runner(self, make: MakeProgram) -> SeccompRunner:
        """Return a runner, which forks its zygote when it runs for the first time."""
        return SeccompRunner(make, files=self.files)

    def reads(self, program: Program, directory: Path, *, marks: Path, timeout_s: float) -> WatchedReads | None:
        """Run a program once, with the calls trapped that look. See ``StepSource.reads``."""
        return watch_reads(lambda *_: program, directory, marks, timeout_s)


class SeccompRunner:
    """Runs a program from a zygote. ``closes`` is the filter to begin with, see ``filter_code``."""

    def __init__(self, make: MakeProgram, *, closes: bool = True, files: FileKinds = KNOWN_FILES) -> None:
        self._make = make
        self._files = files
        self._has_closes = closes
        self._has_touches = False
        self._closes = self._steps = 0
        self._expected: Sequence[Step] = ()
        self._durable: list[Step] = []
        self._zygote: TraceZygote | None = None

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
        """Run it once more. See ``ProgramRunner.observe``."""
        check_settings(directory, timeout_s)
        if self._has_touches != (events is not None):
            self._has_touches, self._has_closes = events is not None, True
            self.close()  # the next zygote has another filter
        marks.touch()
        folder = WatchedFolder(directory, self._files)
        keep = recorder.keep if recorder is not None else None
        before = list(folder.scan(keep))
        zygote, tree = self._start(directory, marks)
        decoder = Decoder(
            folder,
            keep if events is None else events.keeping(keep),
            leader=tree.pid,
            umask=zygote.umask,
            sees_closes=self._has_closes,
            marks=os.stat(marks),
            output=os.fstat(zygote.output),
        )
        run = _ObservedRun(tree, zygote, decoder, directive, self._durable_of(expected), lines, events)
        deadline_s = time.monotonic() + timeout_s
        try:
            with contextlib.closing(Threads(tree.roots, directory)) as threads:
                if schedule is None:
                    run.take_calls(deadline_s, threads)
                else:
                    run.take_scheduled(deadline_s, Chooser(schedule), threads)
        finally:
            tree.end()
            run.take_last_stores()
            decoder.finish()  # only now is every call over
            run.remove_what_it_could_not()
        observation = run.observation(timeout_s)
        if events is None:
            self._choose_filter(decoder.descriptors.closes, len(run.steps))
        if tree.is_orphaned:
            self.close()
        if recorder is not None:
            recorder.before.extend(before)
            recorder.steps.extend(run.steps)
            recorder.blind_spots.extend(run.blind_spots)
            recorder.files = folder.files
        return observation

    def _durable_of(self, expected: Sequence[Step]) -> list[Step]:
        """Return the expected steps without marks; they are mostly those of the last run."""
        if expected is not self._expected or not isinstance(expected, tuple):
            self._expected = expected
            self._durable = [step for step in expected if step.action is not Action.MARK]
        return self._durable

    def _choose_filter(self, closes: int, steps: int) -> None:
        """Take the filter without closes when trapping them costs more than it saves."""
        self._closes += closes
        self._steps += steps
        is_enough = self._closes + self._steps > _CALLS_TO_JUDGE_BY
        if is_enough and self._has_closes and self._closes * _STEPS_A_CLOSE > self._steps:
            self._has_closes = False
            self.close()  # a filter cannot be taken off: the next run gets a new zygote

    def _start(self, directory: Path, marks: Path) -> tuple[TraceZygote, ProcessTree]:
        """Start the program. A zygote that was killed since the last run is replaced once."""
        try:
            return self._started(directory, marks)
        except AgentError:
            self.close()
            return self._started(directory, marks)

    def _started(self, directory: Path, marks: Path) -> tuple[TraceZygote, ProcessTree]:
        if self._zygote is None:
            self._zygote = TraceZygote(self._make, _filter(closes=self._has_closes, touches=self._has_touches))
        others = processes.children()  # the zygote among them
        return self._zygote, ProcessTree(self._zygote.start(directory, marks), others)

    def close(self) -> None:
        """End the zygote. Closing twice is fine."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None


class _ObservedRun:
    """One run: takes its calls one by one, numbers its steps, and carries out the directive."""

    def __init__(
        self,
        tree: ProcessTree,
        zygote: TraceZygote,
        decoder: Decoder,
        directive: Directive,
        expected: Sequence[Step],
        lines: SharedLines | None,
        events: EventLog | None,
    ) -> None:
        self._shared_lines = lines
        self._events = events
        self._line = ""
        self._lines: list[str] = []
        self._tree = tree
        self._listener = zygote.listener
        self._early = zygote.early
        self._output = zygote.output
        self._decoder = decoder
        self._mapped = decoder.mapped.files
        self._expected = expected
        self._comparison = TraceComparison(expected, decoder.folder.files)
        self._kill_at = directive.number if isinstance(directive, KillBefore) else 0
        self._victim = directive.process if isinstance(directive, KillBefore) else 0
        self._kill_at_mark = directive.count if isinstance(directive, KillAfterMark) else 0
        self._injected = directive if isinstance(directive, InjectError) else None
        self._errors_left: float = 0
        self._failed_node = 0
        self._mark_count = 0
        self._count = 0
        self._is_over = False
        self.steps: list[Step] = []
        self.blind_spots: list[BlindSpot] = []
        self._left: tuple[str, ...] = ()
        self._waits: tuple[str, ...] = ()
        self._doing: tuple[str, ...] = ()
        self._choices = 0
        self._struck: Step | None = None
        self._strays: dict[str, bool] = {}
        """Paths outside that were changed, and whether they existed before."""
        self._ignored: set[str] = set()
        self._fired = False
        self._diverged: Step | None = None
        self._is_timed_out = False
        self._failure = ""

    def take_calls(self, deadline_s: float, threads: Threads) -> None:
        """Take calls until the program has ended, was ended, or has had its time."""
        # SECCOMP_IOCTL_NOTIF_RECV blocks, and does not return when all processes with the filter
        # are gone; poll(2) reports that, and the program's end by its pidfd.
        poll = select.poll()
        listener = self._listener.descriptor
        poll.register(listener, select.POLLIN)
        poll.register(self._tree.pidfd, select.POLLIN)
        a_call = (listener, select.POLLIN)
        while self._early and not self._is_over:
            self._take(self._early.pop(0))
        while not self._is_over:
            ready = poll.poll(min(_QUIET_S, max(0.0, deadline_s - time.monotonic())) * 1000)
            if not ready:
                if time.monotonic() >= deadline_s:
                    self._time_out(threads)
                elif not self._is_deadlocked(threads):
                    continue
                return
            if a_call not in ready:
                break  # the program has ended, or (POLLHUP) no process with the filter is left
            if (call := self._listener.receive()) is not None:
                self._take(call)
        self._take_late_calls(deadline_s)

    def take_scheduled(self, deadline_s: float, chooser: Chooser, threads: Threads) -> None:
        """Do the same, but hold each call until no other thread runs, and choose which goes on."""
        poll = select.poll()
        listener = self._listener.descriptor
        poll.register(listener, select.POLLIN)
        poll.register(self._tree.pidfd, select.POLLIN)
        held: dict[int, Notification] = {call.thread: call for call in self._early}
        numbers: dict[int, int] = {}
        passed: Counter[int] = Counter()
        """The calls without an order that each thread made since it was last chosen."""
        rivals: set[int] = set()
        """Threads that waited when a step of another one was let pass."""
        self._early.clear()
        while not self._is_over:
            if time.monotonic() > deadline_s:
                self._time_out(threads)
                return
            is_waited_for = bool(held) and threads.running(held)
            ready = dict(poll.poll((_LOOK_S if is_waited_for else 0 if held else _QUIET_S) * 1000))
            if ready.get(listener, 0) & select.POLLIN:
                if (call := self._listener.receive()) is not None:
                    numbers.setdefault(call.thread, len(numbers) + 1)
                    threads.has_called(call.thread)
                    if passed[call.thread] < PASSED_MAX and self._decoder.says_no_order(call):
                        # Held after its answer, a server would seem to be a rival of its client.
                        passed[call.thread] += 1
                        self._take(call)
                        threads.goes_on(call.thread)
                    else:
                        held[call.thread] = call
            elif held and not is_waited_for:
                rivals.intersection_update(held)  # a thread that sleeps in the kernel waits for another one
                thread = self._chosen(chooser, held, numbers)
                before = len(self.steps)
                passed[thread] = 0
                self._take(held.pop(thread))
                threads.goes_on(thread)
                if len(self.steps) > before:  # could it have come before the last step of another thread?
                    self._choices += thread in rivals
                    rivals.discard(thread)
                    rivals.update(held)
            elif ready and not held:
                break
            elif not held and self._is_deadlocked(threads):
                return
        self._take_late_calls(deadline_s)

    def _is_deadlocked(self, threads: Threads) -> bool:
        """Whether no thread can go on, which ends the run. A timer's signal may wake any thread."""
        if not self._decoder.has_timer:
            lines = self._shared_lines
            self._waits = tuple(threads.deadlock(lines.of) if lines is not None else threads.deadlock())
        self._is_timed_out = bool(self._waits)
        return self._is_timed_out

    def _time_out(self, threads: Threads) -> None:
        """End the run: it has had its time. Note what its threads do then."""
        self._is_timed_out, self._doing = True, tuple(threads.doing())

    @staticmethod
    def _chosen(chooser: Chooser, held: Mapping[int, Notification], numbers: dict[int, int]) -> int:
        waiting = {numbers.setdefault(thread, len(numbers) + 1): thread for thread in held}
        return waiting[chooser.choose(sorted(waiting))]

    def _take_late_calls(self, deadline_s: float) -> None:
        """Take the calls of what the program has left running, until that ends or is idle."""
        if self._is_over or not self._tree.has_ended:
            return
        poll = select.poll()
        poll.register(self._listener.descriptor, select.POLLIN)

        def has_acted(wait_s: float) -> bool:
            has_call = bool(poll.poll(wait_s * 1000))
            if has_call and (call := self._listener.receive()) is not None:
                self._take(call)
            return has_call

        self._left = tuple(self._tree.wait_for_left(deadline_s, has_acted))

    def observation(self, timeout_s: float) -> Observation:
        """Return the outcome, once all processes are gone."""
        if self._shared_lines is not None:
            self._note_lines("")
        failure = LOST if self._tree.is_orphaned else self._failure
        if self._waits:
            failure = f"it came into a deadlock, and was ended: {'; '.join(self._waits)}"
        elif self._is_timed_out:
            failure = failure_of((), timeout_s)
            failure += f" ({'; '.join(self._doing)})" if self._doing else ""
        return Observation(
            steps=tuple(self.steps),
            count=self._count,
            exit_code=self._tree.exit_code,
            signal=self._tree.signal,
            is_timed_out=self._is_timed_out,
            fired=self._fired,
            diverged_at=None if self._diverged is None else self._diverged.number,
            diverged="" if self._diverged is None else str(self._diverged),
            blind_spots=tuple(self.blind_spots),
            strays=self._harmed(),
            temporary=tuple(readable(path) for path, existed in self._strays.items() if not existed),
            output=self._tail(),
            failure=failure,
            left=self._left,
            waits=self._waits,
            has_timer=self._decoder.has_timer,
            choices=self._choices,
            struck=self._struck,
            lines=tuple(self._lines),
            processes=tuple(self._decoder.processes.values()),
            files=self._decoder.folder.files,
            ignored=tuple(readable(path) for path in sorted(self._ignored)),
        )

    def remove_what_it_could_not(self) -> None:
        """Remove what the program made outside, if it was ended, or got an error, before it did so.

        Killed by the hundred, a program would fill the machine with temporary files, and
        multiprocessing with semaphores. What was there before its call is not touched.
        """
        if not (self._is_over or self._is_timed_out or self._left or self._fired):
            return
        for path, existed in reversed(self._strays.items()):
            if not existed:
                with contextlib.suppress(OSError):  # it is gone, or a folder that has something of others
                    remove = os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink
                    remove(path)

    def _harmed(self) -> tuple[str, ...]:
        """Return the strays that are not as before; those made and removed again did no harm.

        Nor did what holds no data (``_holds_data``), nor settings of a process in its ``/proc``,
        which Java makes at each start: they are gone with it.
        """
        harmed = (path for path, existed in self._strays.items() if existed or _holds_data(path))
        return tuple(readable(path) for path in harmed if not _is_of_a_process_gone(path))

    def _take(self, call: Notification) -> None:
        # After our answer the kernel reads paths and buffers again. Another thread may have changed
        # them meanwhile (seccomp_unotify(2) warns of it): the trace of such a program is wrong, as
        # is the program. We observe programs, and protect nothing.
        if self._shared_lines is not None:
            self._note_lines(self._shared_lines.of(call.thread, self._tree.pid))
        if self._mapped:
            before = self._count
            self._take_stores(self._decoder.stores(call, before + 1))
            is_passed = before < self._kill_at <= self._count
            if self._diverged is not None or (is_passed and not self._victim):
                self._kill(fired=False)
                return
            if is_passed:  # one process dies at the next step in place of this one
                self._kill_at = self._count + 1
        decoded = self._decoder.decode(call, self._count + 1)
        if self._events is not None:
            self._events.note(self._decoder, call, decoded, self._line)
        if decoded is NOTHING:
            self._listener.let_pass(call)
        elif decoded.is_step and self._is_as_expected(step := decoded.steps[0]):  # nearly all steps
            self.steps.append(step)
            self._count += 1
            if not self._listener.let_pass(call):
                self._drop(step.number, 1)
        else:
            self._carry_out(call, decoded)

    def _note_lines(self, line: str) -> None:
        """Note the line of the last call for its steps; ``line`` is that of the next one."""
        self._lines += [self._line] * (self._count - len(self._lines))
        self._line = line

    def take_last_stores(self) -> None:
        """Take what was stored through memory after the last call; all processes are gone."""
        if self._mapped:
            self._take_stores(self._decoder.stores(None, self._count + 1))

    def _take_stores(self, found: Decoded) -> None:
        """Number what was stored through memory. It has happened, so no directive applies to it."""
        self._note(found)
        for step in found.steps:
            is_other = self._expected and not self._is_over and not self._comparison.follows(step)
            if is_other and self._diverged is None:
                self._diverged = step
            self._count = step.number
            self.steps.append(step)

    def _carry_out(self, call: Notification, decoded: Decoded) -> None:
        """Do with a call what its meaning and the directive ask for."""
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
        if (spot := decoded.blind_spot) is not None:
            spot = msgspec.structs.replace(spot, text=readable(spot.text), number=self._count)
            if all((each.what, each.text) != (spot.what, spot.text) for each in self.blind_spots):
                self.blind_spots.append(spot)
        if decoded.stray and (path := self._decoder.folder.ignored(decoded.stray)):
            if len(self._ignored) < _STRAYS_MAX:
                self._ignored.add(path)
        elif decoded.stray and len(self._strays) < _STRAYS_MAX and decoded.stray not in self._strays:
            self._strays[decoded.stray] = os.path.lexists(decoded.stray)

    def _pass_mark(self, call: Notification, mark: Step) -> None:
        """Let a mark be written, and put it between the steps."""
        self._mark_count += 1
        self.steps.append(mark)
        if self._mark_count == self._kill_at_mark:
            # Let pass, the call might be done or not when the SIGKILL comes; so it is done for it.
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
            is_other = bool(self._expected) and not self._comparison.follows(step)
            if (is_other or (number == self._kill_at and not self._victim)) and not place:
                self._decoder.take_back()
            if is_other:
                self._diverged = step
                self._kill(fired=False)
                return
            if number == self._kill_at and self._victim:
                self._kill_at, self._struck = 0, step
                if self._kill_one(self._victim, call):
                    self._decoder.take_back()
                    return
            elif number == self._kill_at:
                if place:  # a write to an O_SYNC file is one call and two steps: killed between them
                    self._write_for(call, decoded.steps[0].length)
                self._struck = step
                self._kill()
                return
            if self._injected is not None and self._fails(self._injected, step):
                self._decoder.take_back()
                self._fail(self._injected, call, step)
                self._count = number
                return
            self._count = number
            self.steps.append(step)
        if not self._listener.let_pass(call):  # its caller was killed meanwhile: the call is not done
            self._drop(before + 1, len(decoded.steps))

    def _kill_one(self, process: int, call: Notification) -> bool:
        """Kill one process of the program, and return whether it made this call."""
        pid = self._decoder.pid_of(process)
        if pid is None:
            return False
        try:
            caller = memory.process_of(call.thread)
        except memory.Failing:  # it was killed meanwhile, by another process
            caller = pid
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            self._fired = True
            select.select([descriptor], [], [], _DIES_S)  # or the others would go on beside it
        finally:
            os.close(descriptor)
        return pid == caller  # which its parent may have reaped by now

    def _drop(self, number: int, count: int) -> None:
        """Take back the last steps, which are not done, from this number on."""
        self._decoder.take_back()
        self._count = number - 1
        del self.steps[len(self.steps) - count :]

    def _is_as_expected(self, step: Step) -> bool:
        """Whether a step passes without a closer look: no directive, and as expected."""
        number, expected = step.number, self._expected
        if self._injected is not None or number == self._kill_at:
            return False
        return not expected or (number <= len(expected) and step.has_effect_of(expected[number - 1]))

    def _fails(self, injected: InjectError, step: Step) -> bool:
        if step.number < injected.number:
            return False
        if not self._fired:  # behind the number, if what was stored through memory has it in this run
            self._errors_left = float("inf") if injected.times is None else injected.times
            self._failed_node = step.node
        elif self._errors_left <= 0 or not self._is_concerned(injected, step):
            return False
        self._errors_left -= 1
        return True

    def _is_concerned(self, injected: InjectError, step: Step) -> bool:
        """Whether a later step meets the same trouble: a full disk, or the same file."""
        if injected.times is not None:
            return True
        if injected.error == "ENOSPC":
            return step.action in _NEEDS_ROOM
        return step.node == self._failed_node

    def _fail(self, injected: InjectError, call: Notification, step: Step) -> None:
        self._fired = True
        self._struck = self._struck or step
        is_write = step.action is Action.WRITE and self._decoder.is_write(call)  # a copy by the kernel has no bytes
        if injected.short_bytes is not None and is_write and injected.short_bytes < step.length:
            self._listener.succeed(call, self._write_for(call, injected.short_bytes))
            return
        self._listener.fail(call, getattr(errno, injected.error or "EIO"))

    def _write_for(self, call: Notification, length: int) -> int:
        """Do the first bytes of a write in the caller's place, through its own open file."""
        extent = self._decoder.extent(call)
        if extent is None:
            return 0
        content = b"".join(self._decoder.memory.read(call.thread, *piece) for piece in extent.pieces)
        # A second open of the file would not move the position that the caller shares with others.
        descriptor = borrow_descriptor(memory.process_of(call.thread), call.arguments[0])
        try:
            if self._decoder.is_positioned(call):
                return os.pwrite(descriptor, content[:length], extent.offset)
            return os.write(descriptor, content[:length])
        finally:
            os.close(descriptor)

    def _kill(self, *, fired: bool = True) -> None:
        """End everything at once. The call that waits is never answered, so it is never done."""
        self._tree.kill()
        self._fired = fired
        self._is_over = True

    def _tail(self) -> str:
        size = os.fstat(self._output).st_size
        return os.pread(self._output, OUTPUT_SHOWN_BYTES, max(0, size - OUTPUT_SHOWN_BYTES)).decode(errors="replace")


def _holds_data(path: str) -> bool:
    """Whether there is something at a path, other than a socket or a temporary folder without data.

    A manager of multiprocessing removes its socket while its parent does so, too, which then fails
    to remove the folder.
    """
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) and os.path.dirname(path) == tempfile.gettempdir():
            return any(_holds_data(f"{path}/{name}") for name in os.listdir(path))
    except OSError:
        return False
    return not stat.S_ISSOCK(mode)


def _is_of_a_process_gone(path: str) -> bool:
    return path.startswith(("/proc/self/", "/proc/thread-self/")) or (
        path.startswith("/proc/") and not os.path.lexists(path)
    )
