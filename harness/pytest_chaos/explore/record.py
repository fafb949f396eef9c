"""The clean run: recorded, recorded again, and repeated untraced.

A recording is one real execution. Each state that is built from it was possible then, with the
marks that had been written by then, whether or not the program ever does the same again. The second
recording tells whether it does. A program that does not is recorded under several schedules, and a
real kill of it is judged with the marks of its own run.

Untraced the program has to do the same: it may look for a tracer, a filter or missing privileges,
and do less.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import stat
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.report import ExplorationError, Family, harness_finding
from pytest_chaos.explore.simulate.content import PAGE_BYTES, PageStore
from pytest_chaos.explore.simulate.crash import WORD_BYTES
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.folder import differences, read_folder
from pytest_chaos.explore.simulate.power import SECTOR_BYTES
from pytest_chaos.explore.simulate.state import Item, live_items, marks_of
from pytest_chaos.explore.target import RECOVERY_FAILS, CheckError, raised
from pytest_chaos.model.history import NOT_A_MARK, History, not_marks, overwritten
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.own_line import is_of_user
from pytest_chaos.trace.comparison import drawn_names
from pytest_chaos.trace.program import ProcessTree, launch, leave
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.schedule import Schedule, Threads
from pytest_chaos.trace.step import VOLATILE, Action, FileKinds, readable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.lines.noted import NotedRun
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Directive, Observation, Program, ProgramRunner, StepSource
    from pytest_chaos.trace.step import BlindSpot, ProcessSeen, Step

DENIED: Final = "harness:denied"
"""The signature of a run that failed after a call was denied that cannot be traced."""
NEEDS_TERMINAL: Final = "harness:needs-terminal"
"""The signature of a run that failed for want of a terminal or of input."""
_SHOWN: Final = 5
_ROOM_BYTES_MIN: Final = 1 << 20
"""With less room, a recording that differs from reality means a full disk: writes were short."""


class DeadlockError(ExplorationError):
    """Each thread of the recorded program waits for another one, without an end."""


class Known(NamedTuple):
    """The values that a worker inherits at its fork: target, step source, and recorded run."""

    subject: Subject
    source: StepSource
    marks: Sequence[Mark]
    steps: Sequence[Step]
    schedule: Schedule | None = None


class Rebuilt(NamedTuple):
    """A state that was built again from its code, with the marks before it and its text."""

    items: Mapping[str, Item]
    marks: Sequence[Mark]
    text: str


class Again(NamedTuple):
    """The comparison of a second run with the recorded one.

    ``drawn`` are the names that the first run drew, and the second drew anew. ``parted`` says where
    the two runs parted, or is empty.
    """

    drawn: tuple[str, ...] = ()
    parted: str = ""


class Recorded:
    """A recorded run, with the pages of its states. ``close`` closes its files."""

    clean: Path
    """The folder that the run really left."""
    schedule: Schedule | None = None
    is_repeatable: bool = True
    """Whether each further run so far made the same steps."""
    has_timer: bool = False
    """Whether a timer may have sent a signal to the program."""
    took_s: float = 0.0
    """The time that the recorded run took."""

    def __init__(self, subject: Subject, source: StepSource, recording: Recording, folder: Path, *, seed: str) -> None:
        self.subject = subject
        self.seed = seed
        self.source = source
        self.recording = recording
        self.store = PageStore(folder)
        self.marks: tuple[Mark, ...] = marks_of(recording)
        self.before: Mapping[str, Item] = live_items(Disk(recording, self.store))
        """The items of the folder before the run."""
        self.left: Mapping[str, int] = {}
        """The kind of each path that the run really left."""
        self.processes: Sequence[ProcessSeen] = ()
        self.drawn: Collection[str] = ()
        """The names that the run drew, if a second run drew others."""
        self.noted: NotedRun | None = None
        """The run that noted the program's lines; made when they are wanted (``lines``)."""
        self.lines: Sequence[str] | None = None
        """The line of each step, by that run."""

    @property
    def steps(self) -> int:
        """The number of durable steps."""
        return self.recording.count

    @property
    def size(self) -> int:
        """The number of bytes written, an upper bound on the size of any state."""
        return sum(step.length for step in self.recording.steps if step.action is Action.WRITE)

    @property
    def known(self) -> Known:
        """What a worker has to know of it."""
        return Known(self.subject, self.source, self.marks, self.recording.steps, self.schedule)

    @property
    def suffix(self) -> str:
        """The end of a code that names the recording; empty if a second run repeats it."""
        if self.schedule is not None:
            return f"@{self.schedule.number}"
        return "" if self.is_repeatable else "@0"

    @property
    def threads(self) -> int:
        """The number of threads that made steps or marks, in all processes."""
        return len({(step.process, step.thread) for step in self.recording.steps})

    def rebuilt(self, state: State) -> Rebuilt:
        """Return a state with its marks."""
        return Rebuilt(state.items, self.marks[: state.marks], str(state))

    def close(self) -> None:
        """Close the files."""
        self.recording.close()
        self.store.close()


def clean_run(
    subject: Subject,
    source: StepSource,
    folder: Path,
    name: str,
    *,
    timeout_s: float,
    recorder: Recorder | None = None,
    expected: Sequence[Step] = (),
    schedule: Schedule | None = None,
) -> Observation:
    """Run the target without any fault in ``folder/name``; marks go to ``folder/name.marks``."""
    directory, marks = prepared(subject, folder / name, timeout_s=timeout_s), folder / f"{name}.marks"
    return source.observe(
        subject.program(directory, marks),
        directory,
        marks=marks,
        recorder=recorder,
        expected=expected,
        schedule=schedule,
        timeout_s=timeout_s,
    )


def record(
    subject: Subject,
    source: StepSource,
    folder: Path,
    *,
    seed: str,
    timeout_s: float,
    disk: Path | None = None,
    schedule: Schedule | None = None,
) -> tuple[Recorded, Observation]:
    """Record the target's run in ``folder/clean``. Raises ExplorationError if it cannot be used.

    The recording itself, which may be large, goes to ``disk`` if that is given: ``folder`` is
    likely to be memory. Under a ``schedule`` both folders have its number in their names.
    """
    number = f"-{schedule.number}" if schedule is not None else ""
    kept, clean = (disk or folder) / f"recording{number}", folder / f"clean{number}"
    recorder = Recorder(kept, source.name)
    began_s = time.monotonic()
    try:
        seen = clean_run(subject, source, folder, clean.name, timeout_s=timeout_s, recorder=recorder, schedule=schedule)
    finally:
        recorder.close()
    took_s = time.monotonic() - began_s
    if (error := subject.explain(seen)) is not None:
        raise error
    check_run(seen)
    check_marks(clean.with_name(f"{clean.name}.marks"))
    recorded = Recorded(subject, source, Recording(kept), kept.parent, seed=seed)
    recorded.clean, recorded.took_s = clean, took_s
    recorded.schedule = schedule
    recorded.has_timer = seen.has_timer
    recorded.processes = seen.processes
    if len(recorded.marks) > len(History.from_lines(clean.with_name(f"{clean.name}.marks").read_bytes()).marks):
        lost = overwritten()
        raise ExplorationError(lost.text, signature=lost.signature)
    _compare_with_reality(recorded, clean, seen)
    recorded.left = _kinds_in(clean, recorded.recording.files)
    return recorded, seen


def record_again(recorded: Recorded, folder: Path, *, seed: str, timeout_s: float) -> Again:
    """Run the target once more and compare the two runs.

    If several threads make steps, the second run is under a schedule: a program whose processes
    follow each other makes the same steps under each schedule. It is the one in which each runs on
    for as long as it can, which is least like a run without a schedule.
    """
    steps = recorded.recording.steps
    schedule = Schedule(number=2, seed=seed, calls=len(steps)) if recorded.threads > 1 else None
    seen, at = _once_more(recorded, folder, "again", schedule, timeout_s)
    if at is not None:
        durable = recorded.recording.durable()
        was = str(durable[at - 1]) if at <= len(durable) else "its end"
        made = [str(step) for step in seen.steps if not step.is_mark and step.number == at]
        now = seen.diverged or (made[0] if made else "its end")
        return Again(parted=f"at step {at} the first run did {was}, and the second {now}")
    if _places_of_marks(seen.steps) != _places_of_marks(steps):
        return Again(parted="the second run wrote its marks between other steps")
    drawn = tuple(drawn_names(seen.steps, steps, recorded.recording.files).values())
    return Again(drawn, "several threads waited for a step at one time" if seen.choices else "")


def repeated(recorded: Recorded, folder: Path, *, timeout_s: float) -> int | None:
    """Run the target once more under the schedule of the recording.

    Return the number of steps that were the same: all of them if marks were, too. None if it could
    not be run, which decides nothing.
    """
    name = f"repeated-{recorded.schedule.number if recorded.schedule is not None else 0}"
    try:
        seen, at = _once_more(recorded, folder, name, recorded.schedule, timeout_s)
    except (ChaosError, OSError):
        return None
    if at is None:
        marks = zip(_places_of_marks(seen.steps), _places_of_marks(recorded.recording.steps), strict=False)
        at = next((min(pair) + 1 for pair in marks if len(set(pair)) > 1), None)
    return recorded.steps if at is None else at - 1


def _once_more(
    recorded: Recorded, folder: Path, name: str, schedule: Schedule | None, timeout_s: float
) -> tuple[Observation, int | None]:
    """Run the target once more; return also the first step that was another one than recorded."""
    seen = clean_run(
        recorded.subject,
        recorded.source,
        folder,
        name,
        timeout_s=timeout_s,
        expected=recorded.recording.steps,
        schedule=schedule,
    )
    shutil.rmtree(folder / name, ignore_errors=True)
    if seen.diverged_at is None and seen.count != recorded.steps:
        return seen, min(seen.count, recorded.steps) + 1
    return seen, seen.diverged_at


def _places_of_marks(steps: Sequence[Step]) -> list[int]:
    """Return the number of the step before each mark."""
    return [step.number for step in steps if step.is_mark]


def compare_untraced(recorded: Recorded, folder: Path, *, timeout_s: float, drawn: Sequence[str] = ()) -> None:
    """Run the target untraced, and compare files, exit code and number of marks.

    Contents may differ (SQLite salts its journals), and so may names of the recorded run that are
    ``drawn``. A program that is not repeatable may leave other files and marks, too.
    """
    subject = recorded.subject
    directory, marks = prepared(subject, folder / "untraced", timeout_s=timeout_s), folder / "untraced.marks"
    program = subject.program(directory, marks)
    exit_code = run_untraced(program, directory, marks, timeout_s, has_timer=recorded.has_timer)
    found = _differences(recorded.left, _kinds_in(directory, recorded.recording.files), frozenset(drawn))
    count = len(History.from_lines(marks.read_bytes()).marks)
    shutil.rmtree(directory, ignore_errors=True)
    if not recorded.is_repeatable:
        found.clear()
    elif count != len(recorded.marks):
        found.append(f"it wrote {count} marks, not {len(recorded.marks)}")
    if exit_code:
        found.append(f"it ended with {exit_code}")
    elif exit_code is None:
        found.append(f"it did not end within {timeout_s:.3g} s")
    if found:
        text = (
            f"untraced, the program differed ({'; '.join(found[:_SHOWN])}), and traced it did the same twice: "
            "it looks for its tracer; what would be explored is not what runs"
        )
        raise ExplorationError(text, signature="harness:changes-when-watched")


def _differences(traced: Mapping[str, int], untraced: Mapping[str, int], drawn: frozenset[str]) -> list[str]:
    missing, made = sorted(traced.keys() - untraced.keys()), sorted(untraced.keys() - traced.keys())
    are_drawn = all(drawn.intersection(path.split("/")) for path in missing)
    if are_drawn and _shapes(traced, missing) == _shapes(untraced, made):
        missing = made = []
    found = [f"{path} is not made" for path in missing] + [f"{path} is made" for path in made]
    both = sorted(traced.keys() & untraced.keys())
    found += [f"{path} is of another kind" for path in both if traced[path] != untraced[path]]
    return [readable(text) for text in found]


def _shapes(kinds: Mapping[str, int], paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return depth and kind of each path, without its name."""
    return sorted((path.count("/"), kinds[path]) for path in paths)


def run_untraced(program: Program, directory: Path, marks: Path, timeout_s: float, *, has_timer: bool) -> int | None:
    """Run a program like a traced one, without the filter, and return its exit code.

    None means that it did not end in time.
    """
    adopted_before = processes.adopt_orphans()
    output = marks.with_name(marks.name + ".output")
    for file in (marks, output):
        file.write_bytes(b"")
    others = processes.children()
    tree = ProcessTree(launch(program, directory, marks, output, lambda: None), others)
    try:
        has_ended = _wait(tree, directory, timeout_s, has_timer=has_timer)
    finally:
        tree.end()
        processes.adopt_orphans(adopts=adopted_before)
    return (tree.exit_code if tree.exit_code is not None else -1) if has_ended else None


def _wait(tree: ProcessTree, directory: Path, timeout_s: float, *, has_timer: bool) -> bool:
    """Wait for a program's end; return whether it came. Raises DeadlockError."""
    deadline_s = time.monotonic() + timeout_s
    with contextlib.closing(Threads(tree.roots, directory)) as threads:
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([tree.pidfd], [], [], min(left_s, 1.0))[0]:
                tree.wait_for_left(deadline_s)
                return True
            if not has_timer and (waits := threads.deadlock()):
                raise DeadlockError(deadlock(waits))
    return False


def deadlock(waits: Sequence[str]) -> str:
    """Return a deadlock in words."""
    return f"the program is in a deadlock, without any fault: {'; '.join(waits)}"


def recorded_run(
    runner: ProgramRunner,
    source_name: str,
    directory: Path,
    *,
    marks: Path,
    directive: Directive,
    timeout_s: float,
    expected: Sequence[Step] = (),
    schedule: Schedule | None = None,
    folder: Path | None = None,
) -> tuple[Observation, tuple[str, ...]]:
    """Run a program under a directive, and compare the directory with the run's own recording.

    An earlier recording would not do: SQLite salts its journals, so two runs of the same steps do
    not write the same bytes. Without a ``folder`` nothing is recorded or compared. Return the
    observation, and the differences.
    """
    if folder is None:
        seen = runner.observe(
            directory, marks=marks, directive=directive, expected=expected, schedule=schedule, timeout_s=timeout_s
        )
        return seen, ()
    shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(folder, source_name)
    try:
        seen = runner.observe(
            directory,
            marks=marks,
            directive=directive,
            expected=expected,
            recorder=recorder,
            schedule=schedule,
            timeout_s=timeout_s,
        )
    finally:
        recorder.close()
    with Recording(folder) as recording, contextlib.closing(PageStore(folder)) as store:
        found = _unlike(recording, store, directory)
    shutil.rmtree(folder, ignore_errors=True)
    return seen, tuple(found[:_SHOWN])


def _unlike(recording: Recording, store: PageStore, directory: Path) -> list[str]:
    """Return the differences between a directory and the end of a recording."""
    if not directory.is_dir():
        return ["the directory itself is gone"]
    disk = Disk(recording, store)
    for step in recording.steps:
        disk.apply(step)
    return differences(live_items(disk), read_folder(directory, store), recording.files)


def findings_of_run(seen: Observation) -> list[Finding]:
    """Return the findings about a clean run as such: it failed, or was not seen in full."""
    found = []
    if seen.exit_code != 0:
        end = f"signal {seen.signal}" if seen.signal is not None else f"exit code {seen.exit_code}"
        text = f"the run without any fault ended with {end}; it printed: {tail(seen.output)}"
        if _OF_A_TERMINAL.search(seen.output[-_PRINTED_MAX:]):
            text = (
                "the program asks for a terminal, or for input, and there is neither: let it take what it needs from "
                f"arguments or files. It ended with {end}, and printed: {tail(seen.output)}"
            )
            return [harness_finding(NEEDS_TERMINAL, text)]
        if denied := [spot.text for spot in seen.blind_spots if spot.is_denied]:
            text = f"{denied[0]}, and {text}; a program that cannot do without it cannot be explored"
            return [harness_finding(DENIED, text)]
        found.append(Finding(signature="clean-run:failed", text=text, kind="clean-run", checker="explore"))
    if seen.strays:
        text = (
            f"the program changed {', '.join(seen.strays[:_SHOWN])} outside of its directory, which is not explored: "
            "let it keep everything in the directory it is given"
        )
        found.append(harness_finding("harness:writes-outside", text))
    for spot in _unseen(seen):
        text = f"what the program does by {spot.what} ({spot.text}) cannot be seen, so states without it are missing"
        found.append(harness_finding(f"harness:blind-spot:{spot.what}", text))
    return found


def _unseen(seen: Observation) -> list[BlindSpot]:
    """Return the blind spots because of which states may be missing."""
    return [spot for spot in seen.blind_spots if not spot.is_denied and not seen.files.is_volatile(spot.text)]


def of_clean_run(finding: Finding, left: Sequence[str] = ()) -> Finding:
    """Return the check's finding about the clean run: a bug of the target, or a wrong check.

    A finding about a broken check is returned as it is. ``left`` names the processes that were
    ended because the run had left them: what is missing may have been theirs.
    """
    if finding.kind == "harness":
        return finding
    if left:
        text = (
            f"{finding.text}; but what the run had left running was ended ({listed(left)}), which might have "
            "gone on: let run() wait for what it starts"
        )
        return harness_finding(f"harness:{finding.signature}", text)
    if finding.signature.startswith(RECOVERY_FAILS):
        text = f"{finding.text}; it is so without any fault: see that recover is called as it should be"
        return harness_finding(f"harness:{finding.signature}", text)
    text = f"without any fault: {finding.text}"
    return Finding(signature=finding.signature, text=text, kind="clean-run", checker="explore")


_NO_MARK: Final = (
    "the program wrote no mark, so it promised nothing, and check was given none: let it write marks "
    "(marks.ack, or lines in $CHAOS_MARKS) for what must not be lost"
)


def listed(names: Sequence[str]) -> str:
    """Return names with their counts.

    >>> listed(["sleep", "sh", "sleep"])
    'sh (1), sleep (2)'
    """
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(names).items()))


_STORED: Final = (
    "the program stores to mapped files, and the order of such stores between two calls is not known: of the states "
    "that a kill among them may leave, all choices of up to four changed words are judged and a sample of more, and a "
    "finding counts if no order avoids it"
)


def notes_of_run(seen: Observation, *, is_by_restart: bool = False) -> list[str]:
    """Return notes on blind spots, on files that are no data, on what was left, and on marks.

    Without a check, a program need not write marks: a kill is judged by what a restart leaves.
    """
    left = listed(seen.left)
    return [
        *([f"the program left processes running when it ended, which were ended then: {left}"] if left else []),
        *(
            f"{spot.what} was denied to the program: {spot.text}"
            if spot.is_denied
            else f"not seen: {spot.what}, {spot.text}"
            for spot in seen.blind_spots
            if not seen.files.is_volatile(spot.text)
        ),
        *_notes_of_files(seen),
        *_notes_of_temporary(seen),
        *([_STORED] if any(step.look for step in seen.steps) else []),
        *([] if is_by_restart or any(step.is_mark for step in seen.steps) else [_NO_MARK]),
    ]


def _notes_of_temporary(seen: Observation) -> list[str]:
    """Return a note on what is made outside and removed: killed, the program cannot remove it."""
    if not (names := [path for path in seen.temporary if path not in seen.strays]):
        return []
    text = f"outside of its directory the program makes temporary files ({_shown(names)})"
    return [f"{text}: what a run that was ended leaves of them is removed"]


def _notes_of_files(seen: Observation) -> list[str]:
    """Return notes on the files that are no data, and on patterns that have found none."""
    paths = {path for step in seen.steps for path in (step.path, step.target)} | {
        spot.text for spot in seen.blind_spots
    }
    volatile = sorted(readable(path) for path in paths if seen.files.is_volatile(path))
    notes = []
    if seen.ignored:
        notes.append(f"ignored, so that nothing of it was explored: {_shown(seen.ignored)}")
    if volatile:
        notes.append(
            f"volatile: {_shown(volatile)}: in no power-loss state, and what is stored to it through memory is not "
            "followed"
        )
    named = (("ignore", seen.files.ignored, seen.ignored), ("volatile", seen.files.volatile, volatile))
    for option, patterns, found in named:
        own = [pattern for pattern in patterns if pattern not in VOLATILE]
        idle = [pattern for pattern in own if not any(FileKinds((pattern,)).ignores(path) for path in found)]
        notes += [f"the pattern {pattern!r} of {option} matched no file that the program changed" for pattern in idle]
    return notes


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def notes_of_reach(recorded: Recorded, held: Collection[Family]) -> list[str]:
    """Return a note for each kind of damage that no state of a held family could have."""
    notes = []
    writes = [step for step in recorded.recording.steps if step.action is Action.WRITE]
    for family, fault, unit, size in ((Family.CRASH, "kill", "page", PAGE_BYTES), _BY_SECTORS):
        is_torn = any(_is_across(step, size) for step in writes) or (family is Family.CRASH and _tears_stores(writes))
        if family in held and writes and not is_torn:
            text = f"no write reaches into a second {unit} of {size:,} bytes, so no {fault} could tear one"
            notes.append(f"{text}: let run() write more at once to see what a torn write does")
    if held and recorded.marks and not any(mark.kind == "ack" for mark in recorded.marks):
        notes.append(
            "the program acknowledged nothing, so nothing had to be there: let it write an ack for what must be"
        )
    return notes


def _tears_stores(writes: Sequence[Step]) -> bool:
    """Whether a kill can tear stores through memory: several words were stored within one look."""
    stored = Counter[int]()
    for step in writes:
        stored[step.look] += step.length if step.look else 0
    return max(stored.values(), default=0) > WORD_BYTES


_BY_SECTORS: Final = (Family.POWER, "power loss", "sector", SECTOR_BYTES)


def _is_across(step: Step, size: int) -> bool:
    return step.length > 0 and step.offset // size != (step.offset + step.length - 1) // size


def notes_of_repetition(same: Mapping[Schedule, tuple[int, int]]) -> list[str]:
    """Return a note about how far the seed repeats each schedule: its same steps, of how many.

    >>> notes_of_repetition({Schedule(number=2, seed="s"): (7, 9)})
    ['the seed repeats 0 of 1 schedules step by step; schedule 2 (run-on) up to step 7 of 9']
    """
    if not same:
        return []
    parted = [
        f"{schedule} up to step {count:,} of {steps:,}" for schedule, (count, steps) in same.items() if count < steps
    ]
    text = f"the seed repeats {len(same) - len(parted)} of {len(same)} schedules step by step"
    return [f"{text}; {_shown(parted)}" if parted else text]


def notes_of_names(drawn: Sequence[str]) -> list[str]:
    """Return a note about the names that the program draws anew in each run."""
    if not drawn:
        return []
    names = _shown(list(map(readable, drawn)))
    return [f"the program draws names ({names}): runs that differ in nothing else are taken for the same"]


def prepared(subject: Subject, directory: Path, *, timeout_s: float) -> Path:
    """Make the directory; run ``setup`` in a process of its own. Raises ExplorationError.

    A thread that a setup starts in this process would be dead in the forked run.
    """
    directory.mkdir(mode=0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _set_up(subject, directory, writer)
    os.close(writer)
    has_ended = False
    try:
        has_ended = bool(select.select([reader], [], [], timeout_s)[0])
        said = os.read(reader, _SAID_BYTES).decode(errors="replace") if has_ended else ""
    finally:
        os.close(reader)
        if not has_ended:
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not has_ended:
        text = f"setup() did not end within {timeout_s:.3g} s; nothing was run"
        raise ExplorationError(text, signature="harness:setup-hangs")
    if said != _IS_SET_UP:
        signature, _, text = said.partition(" ")
        text = f"{text or 'the process of setup() was killed'}; nothing was run"
        raise ExplorationError(text, signature=signature or "harness:setup-raised")
    return directory


_IS_SET_UP: Final = "+"
_SAID_BYTES: Final = 4096


def _set_up(subject: Subject, directory: Path, writer: int) -> NoReturn:
    """Call setup, say how it ended, and end."""
    said = ""
    try:
        os.setpgid(0, 0)
        subject.setup(directory)
        said = _IS_SET_UP
    except CheckError as error:
        said = f"harness:setup-failed {error}"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is told
        said = f"harness:setup-raised setup() raised {raised(error)}"
    finally:
        os.write(writer, said.encode(errors="replace")[:_SAID_BYTES])
        leave(0)


def check_run(seen: Observation) -> None:
    """Raise ExplorationError for a run that did not end, was not seen, or made no step."""
    if seen.waits:
        raise DeadlockError(deadlock(seen.waits))
    if seen.is_timed_out:
        text = (
            f"{seen.failure}: let run() come to an end, or give more time with --run-timeout; "
            f"it printed: {tail(seen.output)}"
        )
        raise ExplorationError(text, signature="harness:does-not-end")
    if seen.failure:
        text = f"the run cannot be trusted: {seen.failure}"
        raise ExplorationError(text, signature="harness:run-not-seen")
    if seen.count == 0:
        text = (
            f"the program made no durable step in its directory (it ended with {seen.exit_code}): "
            f"let run() write there; it printed: {tail(seen.output)}"
        )
        raise ExplorationError(text, signature="harness:no-steps")


def check_marks(marks: Path) -> None:
    """Raise ExplorationError for a malformed line in the mark file of a clean run."""
    for finding in not_marks(History.from_lines(marks.read_bytes()).torn, may_be_cut=False):
        text = f"{finding.text}. Nothing was explored: what the run has promised is not known"
        raise ExplorationError(text, signature=NOT_A_MARK)


def _compare_with_reality(recorded: Recorded, directory: Path, seen: Observation) -> None:
    """Check that the recording, applied to its end, gives the directory that the run left.

    Raises ExplorationError.
    """
    anew = any(step.action is Action.MAKE_FOLDER and not step.path for step in recorded.recording.steps)
    if anew or not directory.is_dir():
        text = f"the program deleted the directory it was given ({directory.name}): let it keep the directory itself"
        raise ExplorationError(text, signature="harness:directory-deleted")
    if found := _unlike(recorded.recording, recorded.store, directory):
        if (free := shutil.disk_usage(directory).free) < _ROOM_BYTES_MIN:
            text = f"there is no room in {directory.parent} ({free >> 10} KiB are free): give another with --scratch"
            raise ExplorationError(text, signature="harness:no-room")
        shown = "; ".join(found[:_SHOWN])
        if unseen := _unseen(seen):
            text = (
                f"what the program does by {unseen[0].what} ({unseen[0].text}) cannot be seen, and has changed "
                f"files: {shown}"
            )
            raise ExplorationError(text, signature=f"harness:blind-spot:{unseen[0].what}")
        text = f"the recording does not give what the program left: {shown}"
        raise ExplorationError(text, signature="harness:replay-differs")


def _kinds_in(directory: Path, files: FileKinds) -> dict[str, int]:
    """Return the kind (of ``st_mode``) of each path in a folder that is not ignored."""
    if not directory.is_dir():
        return {}
    kinds = {str(path.relative_to(directory)): stat.S_IFMT(path.lstat().st_mode) for path in directory.rglob("*")}
    return {path: kind for path, kind in kinds.items() if not files.ignores(path)}


_OF_A_TERMINAL: Final = re.compile(
    r"/dev/tty|not a (tty|terminal)|Inappropriate ioctl for device|EOF when reading a line|in _raw_input\b",
    re.IGNORECASE,
)
_FRAME: Final = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_PRINTED_MAX: Final = 500


def tail(output: str) -> str:
    r"""Return what a program printed last: its last line, then the ones before it.

    Of an exception that has ended it: what it says, and the program's own line.

    >>> tail("loading\nready\n"), tail("")
    ('ready (before that: loading)', 'nothing')
    """
    printed = output.rstrip().splitlines()
    lines = [line.strip() for line in printed if line.strip(" \t^~")]
    if not lines:
        return "nothing"
    *earlier, last = lines[-_SHOWN:]
    last = last[:_PRINTED_MAX]
    if len(printed) > 1 and printed[-2].startswith("    ") and not printed[-1].startswith(" "):
        own = [(file, line, name) for file, line, name in _FRAME.findall(output) if is_of_user(file)]
        return last + "".join(f" (at {file.rpartition(os.sep)[2]}:{line} in {name})" for file, line, name in own[-1:])
    before = " | ".join(earlier)[-_PRINTED_MAX:]
    return f"{last} (before that: {before})" if before else last
