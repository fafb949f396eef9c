"""The clean run: recorded, recorded again, and repeated untraced.

All states are built from the first recording. So the program has to make the same steps the second
time, or the states would be those of a run that never happens again. It has to do the same
untraced: a program may look for a tracer, a filter or missing privileges, and do less.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import stat
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.report import ExplorationError, harness_finding
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.folder import differences, read_folder
from pytest_chaos.explore.simulate.state import Item, live_items, marks_of
from pytest_chaos.explore.target import RECOVERY_FAILS, CheckError, raised
from pytest_chaos.model.history import NOT_A_MARK, History, not_marks, overwritten
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes
from pytest_chaos.trace.comparison import drawn_names
from pytest_chaos.trace.program import ProcessTree, launch
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.step import Action, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Directive, Observation, Program, ProgramRunner, StepSource
    from pytest_chaos.trace.step import BlindSpot, Step

DENIED: Final = "harness:denied"
"""The signature of a run that failed after a call was denied that cannot be traced."""
_SHOWN: Final = 5
_ROOM_BYTES_MIN: Final = 1 << 20
"""With less room, a recording that differs from reality means a full disk: writes were short."""
_HARMLESS_BLIND_SPOTS: Final = ("-shm",)
"""SQLite writes this file through shared memory, and never reads it after a crash."""


class Known(NamedTuple):
    """The values that a worker inherits at its fork: target, step source, and recorded run."""

    subject: Subject
    source: StepSource
    marks: Sequence[Mark]
    steps: Sequence[Step]


class Rebuilt(NamedTuple):
    """A state that was built again from its code, with the marks before it and its text."""

    items: Mapping[str, Item]
    marks: Sequence[Mark]
    text: str


class Recorded:
    """A recorded run, with the pages of its states. ``close`` closes its files."""

    def __init__(self, subject: Subject, source: StepSource, recording: Recording, folder: Path) -> None:
        self.subject = subject
        self.source = source
        self.recording = recording
        self.store = PageStore(folder)
        self.marks: tuple[Mark, ...] = marks_of(recording)
        self.before: Mapping[str, Item] = live_items(Disk(recording, self.store))
        """The items of the folder before the run."""
        self.left: Mapping[str, int] = {}
        """The kind of each path that the run really left."""

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
        """The values that a worker inherits."""
        return Known(self.subject, self.source, self.marks, self.recording.steps)

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
) -> Observation:
    """Run the target without any fault in ``folder/name``; marks go to ``folder/name.marks``."""
    directory, marks = prepared(subject, folder / name, timeout_s=timeout_s), folder / f"{name}.marks"
    return source.observe(
        subject.program(directory, marks),
        directory,
        marks=marks,
        recorder=recorder,
        expected=expected,
        timeout_s=timeout_s,
    )


def record(
    subject: Subject, source: StepSource, folder: Path, *, timeout_s: float, disk: Path | None = None
) -> tuple[Recorded, Observation]:
    """Record the target's run in ``folder/clean``. Raises ExplorationError if it cannot be used.

    The recording itself, which may be large, goes to ``disk`` if that is given, because ``folder``
    is often in memory.
    """
    kept = disk or folder
    recorder = Recorder(kept / "recording", source.name)
    try:
        seen = clean_run(subject, source, folder, "clean", timeout_s=timeout_s, recorder=recorder)
    finally:
        recorder.close()
    check_run(seen)
    check_marks(folder / "clean.marks")
    recorded = Recorded(subject, source, Recording(kept / "recording"), kept)
    if len(recorded.marks) > len(History.from_lines((folder / "clean.marks").read_bytes()).marks):
        lost = overwritten()
        raise ExplorationError(lost.text, signature=lost.signature)
    _compare_with_reality(recorded, folder / "clean", seen)
    recorded.left = _kinds_in(folder / "clean")
    return recorded, seen


def record_again(recorded: Recorded, folder: Path, *, timeout_s: float) -> tuple[str, ...]:
    """Run the target once more, compare the steps, and return the drawn names of the first run.

    Raises ExplorationError that names the first step at which the two runs differ.
    """
    steps = recorded.recording.steps
    seen = clean_run(recorded.subject, recorded.source, folder, "again", timeout_s=timeout_s, expected=steps)
    shutil.rmtree(folder / "again", ignore_errors=True)
    durable = recorded.recording.durable()
    at = seen.diverged_at
    if at is None and seen.count != recorded.steps:
        at = min(seen.count, recorded.steps) + 1
    if at is not None:
        was = str(durable[at - 1]) if at <= len(durable) else "its end"
        made = [str(step) for step in seen.steps if not step.is_mark and step.number == at]
        now = seen.diverged or (made[0] if made else "its end")
        text = (
            f"the program is not deterministic: at step {at} the first run did {was} and the second {now}; "
            "fix its seeds, times and threads, or explore a smaller part of it"
        )
        raise ExplorationError(text, signature="harness:not-deterministic")
    if [step.number for step in seen.steps if step.is_mark] != [step.number for step in steps if step.is_mark]:
        text = "the program is not deterministic: it wrote its marks at other places the second time; mark by the work"
        raise ExplorationError(text, signature="harness:not-deterministic")
    return tuple(drawn_names(seen.steps, steps).values())


def compare_untraced(recorded: Recorded, folder: Path, *, timeout_s: float, drawn: Sequence[str] = ()) -> None:
    """Run the target untraced, and compare files, exit code and number of marks.

    Contents may differ (SQLite salts its journals), and so may ``drawn`` names of the recorded run.
    Raises ExplorationError for any other difference.
    """
    subject = recorded.subject
    directory, marks = prepared(subject, folder / "untraced", timeout_s=timeout_s), folder / "untraced.marks"
    exit_code = _run_untraced(subject.program(directory, marks), directory, marks, timeout_s)
    found = _differences(recorded.left, _kinds_in(directory), frozenset(drawn))
    count = len(History.from_lines(marks.read_bytes()).marks)
    shutil.rmtree(directory, ignore_errors=True)
    if count != len(recorded.marks):
        found.append(f"it wrote {count} marks, not {len(recorded.marks)}")
    if exit_code:
        found.append(f"it ended with {exit_code}")
    elif exit_code is None:
        found.append(f"it did not end within {timeout_s:g} s")
    if found:
        text = (
            f"untraced, the program differed ({'; '.join(found[:_SHOWN])}): it looks for its tracer, or is not "
            "deterministic; what would be explored is not what runs"
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


def _run_untraced(program: Program, directory: Path, marks: Path, timeout_s: float) -> int | None:
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
        has_ended = bool(select.select([tree.pidfd], [], [], timeout_s)[0])
    finally:
        tree.end()
        processes.adopt_orphans(adopts=adopted_before)
    return (tree.exit_code if tree.exit_code is not None else -1) if has_ended else None


def recorded_run(
    runner: ProgramRunner,
    source_name: str,
    directory: Path,
    *,
    marks: Path,
    directive: Directive,
    timeout_s: float,
    expected: Sequence[Step] = (),
    folder: Path | None = None,
) -> tuple[Observation, tuple[str, ...]]:
    """Run a program under a directive, and compare the directory with the run's own recording.

    An earlier recording would not do: SQLite salts its journals, so two runs of the same steps do
    not write the same bytes. Without a ``folder`` nothing is recorded or compared. Return the
    observation, and the differences.
    """
    if folder is None:
        return runner.observe(directory, marks=marks, directive=directive, expected=expected, timeout_s=timeout_s), ()
    shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(folder, source_name)
    try:
        seen = runner.observe(
            directory,
            marks=marks,
            directive=directive,
            expected=expected,
            recorder=recorder,
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
    return differences(live_items(disk), read_folder(directory, store))


def findings_of_run(seen: Observation) -> list[Finding]:
    """Return the findings about a clean run as such: it failed, or was not seen in full."""
    found = []
    if seen.exit_code != 0:
        end = f"signal {seen.signal}" if seen.signal is not None else f"exit code {seen.exit_code}"
        text = f"the run without any fault ended with {end}; it printed: {_tail(seen.output)}"
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
    return [spot for spot in seen.blind_spots if not spot.is_denied and not spot.text.endswith(_HARMLESS_BLIND_SPOTS)]


def of_clean_run(finding: Finding) -> Finding:
    """Return the check's finding about the clean run: a bug of the target, or a wrong check.

    A finding about a broken check is returned as it is.
    """
    if finding.kind == "harness":
        return finding
    if finding.signature.startswith(RECOVERY_FAILS):
        text = f"{finding.text}; it is so without any fault: see that recover is called as it should be"
        return harness_finding(f"harness:{finding.signature}", text)
    text = f"without any fault: {finding.text}"
    return Finding(signature=finding.signature, text=text, kind="clean-run", checker="explore")


def notes_of_run(seen: Observation) -> list[str]:
    """Return a note for each blind spot."""
    return [
        f"{spot.what} was denied to the program: {spot.text}"
        if spot.is_denied
        else f"not seen: {spot.what}, {spot.text}"
        for spot in seen.blind_spots
    ]


def notes_of_names(drawn: Sequence[str]) -> list[str]:
    """Return a note about the names that the program draws anew in each run."""
    if not drawn:
        return []
    more = f" and {len(drawn) - _SHOWN} more" if len(drawn) > _SHOWN else ""
    names = ", ".join(map(readable, drawn[:_SHOWN]))
    return [f"the program draws names ({names}{more}): runs that differ in nothing else are taken for the same"]


def prepared(subject: Subject, directory: Path, *, timeout_s: float) -> Path:
    """Make the directory and let the target set it up. Raises ExplorationError."""
    directory.mkdir(mode=0o755)
    try:
        with _limited(timeout_s):
            subject.setup(directory)
    except TimeoutError as error:
        text = f"setup() did not end within {timeout_s:g} s; nothing was run"
        raise ExplorationError(text, signature="harness:setup-hangs") from error
    except CheckError as error:
        text = f"{error}; nothing was run"
        raise ExplorationError(text, signature="harness:setup-failed") from error
    except (Exception, SystemExit) as error:
        text = f"setup() raised {raised(error)}; nothing was run"
        raise ExplorationError(text, signature="harness:setup-raised") from error
    return directory


@contextlib.contextmanager
def _limited(timeout_s: float) -> Iterator[None]:
    """Raise TimeoutError in the body after ``timeout_s``.

    A setup may keep objects in this process, so no other process can run it. Signals arrive in the
    main thread only; a timer that is already set belongs to other code. In both cases there is no
    limit.
    """
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_REAL)):
        yield
        return

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_run(seen: Observation) -> None:
    """Raise ExplorationError for a run that did not end, was not seen in full, or made no step."""
    if seen.is_timed_out:
        text = f"{seen.failure}: let run() come to an end, or give more time with --run-timeout; {_tail(seen.output)}"
        raise ExplorationError(text, signature="harness:does-not-end")
    if seen.failure:
        text = f"the run cannot be trusted: {seen.failure}; let run() wait for all that it starts"
        raise ExplorationError(text, signature="harness:run-not-seen")
    if seen.count == 0:
        text = (
            f"the program made no durable step in its directory (it ended with {seen.exit_code}): "
            f"let run() write there; it printed: {_tail(seen.output)}"
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


def _kinds_in(directory: Path) -> dict[str, int]:
    """Return the kind (of ``st_mode``) of each path in a folder."""
    if not directory.is_dir():
        return {}
    return {str(path.relative_to(directory)): stat.S_IFMT(path.lstat().st_mode) for path in directory.rglob("*")}


def _tail(output: str) -> str:
    lines = output.strip().splitlines()
    return " | ".join(lines[-_SHOWN:])[-500:] or "nothing"
