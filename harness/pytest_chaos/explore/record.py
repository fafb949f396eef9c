"""A run that nobody watches, to see that the program does the same then: what is explored is what runs in production.

A program may look for a tracer, a filter or missing privileges, and do less. Its files, its exit
and how many marks it writes can be compared without watching it; contents may differ (SQLite salts
its journals).

The clean run: the program recorded once, judged, and recorded again to see that it does the same.

Everything that is explored is built from the first recording, so a program that takes another way
the second time is told where it parted from itself; the states of a run that never happens again
would prove nothing.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import stat
import threading
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.report import ExplorationError
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.folder import differences, read_folder
from pytest_chaos.explore.simulate.state import Item, live_items, marks_of
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes
from pytest_chaos.trace.comparison import drawn_names
from pytest_chaos.trace.program import ProcessTree, launch
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.step import Action, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Directive, Observation, Program, ProgramRunner, StepSource
    from pytest_chaos.trace.step import BlindSpot, Step

_SHOWN_UNWATCHED: Final = 5


def compare_unwatched(
    subject: Subject, recorded: Recorded, folder: Path, *, timeout_s: float, drawn: Sequence[str] = ()
) -> None:
    """Run the target unwatched, after a recorded run that ended with 0. Raises ExplorationError where they differ.

    ``drawn`` are names that the recorded run has drawn; in place of them another run has others.
    """
    directory, marks = prepared(subject, folder / "unwatched", timeout_s=timeout_s), folder / "unwatched.marks"
    exit_code = _run(subject.program(directory, marks), directory, marks, timeout_s)
    found = _differences(recorded.left, kinds_in(directory), frozenset(drawn))
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
            f"unwatched, the program differed ({'; '.join(found[:_SHOWN_UNWATCHED])}): it looks for its watcher, "
            "or is not deterministic; what would be explored is not what runs"
        )
        raise ExplorationError(text, signature="harness:changes-when-watched")


def _differences(watched: Mapping[str, int], unwatched: Mapping[str, int], drawn: frozenset[str]) -> list[str]:
    missing, made = sorted(watched.keys() - unwatched.keys()), sorted(unwatched.keys() - watched.keys())
    are_drawn = all(drawn.intersection(path.split("/")) for path in missing)
    if are_drawn and _shapes(watched, missing) == _shapes(unwatched, made):
        missing = made = []
    found = [f"{path} is not made" for path in missing] + [f"{path} is made" for path in made]
    both = sorted(watched.keys() & unwatched.keys())
    found += [f"{path} is of another kind" for path in both if watched[path] != unwatched[path]]
    return [readable(text) for text in found]


def _shapes(kinds: Mapping[str, int], paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return what is left of paths when their names are anybody's: how deep they are, and what is there."""
    return sorted((path.count("/"), kinds[path]) for path in paths)


def _run(program: Program, directory: Path, marks: Path, timeout_s: float) -> int | None:
    """Run it like a watched one, but for the filter, and return its exit code; None when it had to be ended."""
    adopted_before = processes.adopt_orphans()
    output = marks.with_name(marks.name + ".output")
    for file in (marks, output):
        file.write_bytes(b"")
    others = processes.children()
    family = ProcessTree(launch(program, directory, marks, output, lambda: None), others)
    try:
        has_ended = bool(select.select([family.pidfd], [], [], timeout_s)[0])
    finally:
        family.end()
        processes.adopt_orphans(adopts=adopted_before)
    return (family.exit_code if family.exit_code is not None else -1) if has_ended else None


DENIED: Final = "harness:denied"
"""The signature of a run that failed after it was denied what could not have been seen."""
_SHOWN: Final = 5
_ROOM_BYTES_MIN: Final = 1 << 20
"""With less room than this, a recording that is not what happened means a full disk: writes came up short."""
_HARMLESS_BLIND_SPOTS: Final = ("-shm",)
"""A file of SQLite's that is written through memory, and that it never believes after a crash."""


class Recorded:
    """A recorded run and what is built from it. Close it to let its files go; the folder is the caller's to remove."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self.store = PageStore(folder)
        self.marks: tuple[Mark, ...] = marks_of(recording)
        disk = Disk(recording, self.store)
        self.before: Mapping[str, Item] = live_items(disk)
        self.left: Mapping[str, int] = {}
        """What the run has really left: a kind for each path."""

    @property
    def steps(self) -> int:
        """How many durable steps the run made."""
        return self.recording.count

    @property
    def size(self) -> int:
        """How many bytes all that was written has: a bound of what is in any state."""
        return sum(step.length for step in self.recording.steps if step.action is Action.WRITE)

    def close(self) -> None:
        """Close the files."""
        self.recording.close()
        self.store.close()


def record(
    subject: Subject, source: StepSource, folder: Path, *, timeout_s: float, disk: Path | None = None
) -> tuple[Recorded, Observation]:
    """Record the target's run in ``folder/clean``. Raises ExplorationError when it decides nothing.

    The recording itself, which may be large, goes to ``disk`` where that is given: ``folder`` is
    likely to be memory.
    """
    kept = disk or folder
    directory = prepared(subject, folder / "clean", timeout_s=timeout_s)
    recorder = Recorder(kept / "recording", source.name)
    marks = folder / "clean.marks"
    try:
        seen = source.observe(
            subject.program(directory, marks), directory, marks=marks, recorder=recorder, timeout_s=timeout_s
        )
    finally:
        recorder.close()
    check_run(seen)
    recorded = Recorded(Recording(kept / "recording"), kept)
    _compare_with_reality(recorded, directory, seen)
    recorded.left = kinds_in(directory)
    return recorded, seen


def record_again(
    subject: Subject, source: StepSource, recorded: Recorded, folder: Path, *, timeout_s: float
) -> tuple[str, ...]:
    """Run the target once more and compare; return the names that the first run drew, and this one drew anew.

    Raises ExplorationError that says where it took another way.
    """
    directory = prepared(subject, folder / "again", timeout_s=timeout_s)
    marks = folder / "again.marks"
    steps = recorded.recording.steps
    seen = source.observe(
        subject.program(directory, marks), directory, marks=marks, expected=steps, timeout_s=timeout_s
    )
    shutil.rmtree(directory, ignore_errors=True)
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


def recorded_run(
    standing: ProgramRunner,
    source_name: str,
    directory: Path,
    *,
    marks: Path,
    directive: Directive,
    timeout_s: float,
    expected: Sequence[Step] = (),
    folder: Path | None = None,
) -> tuple[Observation, tuple[str, ...]]:
    """Run what stands by under a directive, and return with it where the directory is not what its recording gives.

    A run is compared with its own recording, not with an earlier one's: SQLite, for one, salts its
    journals, and two runs of the same steps do not write the same bytes. Without a ``folder``
    nothing is recorded or compared.
    """
    if folder is None:
        return standing.observe(directory, marks=marks, directive=directive, expected=expected, timeout_s=timeout_s), ()
    shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(folder, source_name)
    try:
        seen = standing.observe(
            directory,
            marks=marks,
            directive=directive,
            expected=expected,
            recorder=recorder,
            timeout_s=timeout_s,
        )
    finally:
        recorder.close()
    with Recording(folder) as recording:
        store = PageStore(folder)
        found = _unlike(recording, store, directory)
        store.close()
    shutil.rmtree(folder, ignore_errors=True)
    return seen, tuple(found[:_SHOWN])


def _unlike(recording: Recording, store: PageStore, directory: Path) -> list[str]:
    """Return where a directory is not what a recording, played to its end, gives."""
    if not directory.is_dir():
        return ["the directory itself is gone"]
    disk = Disk(recording, store)
    for step in recording.steps:
        disk.apply(step)
    return differences(live_items(disk), read_folder(directory, store))


def findings_of_run(seen: Observation) -> list[Finding]:
    """Return what is wrong with a clean run whatever it left: it failed, or was not seen in full."""
    found = []
    if seen.exit_code != 0:
        end = f"signal {seen.signal}" if seen.signal is not None else f"exit code {seen.exit_code}"
        text = f"the run without any fault ended with {end}; it printed: {_tail(seen.output)}"
        if denied := [spot.text for spot in seen.blind_spots if spot.is_denied]:
            text = f"{denied[0]}, and {text}; a program that cannot do without it cannot be explored"
            return [Finding(signature=DENIED, text=text, kind="harness", checker="explore")]
        found.append(Finding(signature="clean-run:failed", text=text, kind="clean-run", checker="explore"))
    if seen.strays:
        text = (
            f"the program changed {', '.join(seen.strays[:_SHOWN])} outside of its directory, which is not explored: "
            "let it keep everything in the directory it is given"
        )
        found.append(Finding(signature="harness:writes-outside", text=text, kind="harness", checker="explore"))
    for spot in seen.blind_spots:
        if not spot.is_denied and not _is_harmless(spot):
            text = (
                f"what the program does by {spot.what} ({spot.text}) cannot be seen, so states without it are missing"
            )
            found.append(
                Finding(signature=f"harness:blind-spot:{spot.what}", text=text, kind="harness", checker="explore")
            )
    return found


def of_clean_run(finding: Finding) -> Finding:
    """Return what the check says of the state after the clean run as what it is: a bug of the target, or a wrong check.

    A check that is broken has decided nothing, there as elsewhere.
    """
    if finding.kind == "harness":
        return finding
    text = f"without any fault: {finding.text}"
    return Finding(signature=finding.signature, text=text, kind="clean-run", checker="explore")


def _is_harmless(spot: BlindSpot) -> bool:
    return spot.text.endswith(_HARMLESS_BLIND_SPOTS)


def notes_of_run(seen: Observation) -> list[str]:
    """Return what a reader should know of how the run was seen."""
    return [
        f"{spot.what} was denied to the program: {spot.text}"
        if spot.is_denied
        else f"not seen: {spot.what}, {spot.text}"
        for spot in seen.blind_spots
    ]


def notes_of_names(drawn: Sequence[str]) -> list[str]:
    """Return what a reader should know of the names that a program draws anew in each run."""
    if not drawn:
        return []
    more = f" and {len(drawn) - _SHOWN} more" if len(drawn) > _SHOWN else ""
    names = ", ".join(map(readable, drawn[:_SHOWN]))
    return [f"the program draws names ({names}{more}): runs that differ in nothing else are taken for the same"]


def prepared(subject: Subject, directory: Path, *, timeout_s: float) -> Path:
    """Make the directory with what the target wants to be there before. Raises ExplorationError."""
    directory.mkdir(mode=0o755)
    try:
        with _limited(timeout_s):
            subject.setup(directory)
    except TimeoutError as error:
        text = f"setup() did not end within {timeout_s:g} s; nothing was run"
        raise ExplorationError(text, signature="harness:setup-hangs") from error
    except (Exception, SystemExit) as error:
        text = f"setup() raised {type(error).__name__}: {error}; nothing was run"
        raise ExplorationError(text, signature="harness:setup-raised") from error
    return directory


@contextlib.contextmanager
def _limited(timeout_s: float) -> Iterator[None]:
    """Raise TimeoutError within, after so long. A setup keeps what it makes in this process, so no other can run it."""
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_REAL)):
        yield  # only there signals are heard; and a timer that is set is somebody else's
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
    """Raise ExplorationError for a run that decides nothing: it did not end, was not seen, made no step."""
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


def _compare_with_reality(recorded: Recorded, directory: Path, seen: Observation) -> None:
    """See that the recording, played to its end, gives what is really there. Raises ExplorationError."""
    anew = any(step.action is Action.MAKE_FOLDER and not step.path for step in recorded.recording.steps)
    if anew or not directory.is_dir():
        text = f"the program deleted the directory it was given ({directory.name}): let it keep the directory itself"
        raise ExplorationError(text, signature="harness:directory-deleted")
    if found := _unlike(recorded.recording, recorded.store, directory):
        if (free := shutil.disk_usage(directory).free) < _ROOM_BYTES_MIN:
            text = f"there is no room in {directory.parent} ({free >> 10} KiB are free): give another with --scratch"
            raise ExplorationError(text, signature="harness:no-room")
        differences = "; ".join(found[:_SHOWN])
        if unseen := [spot for spot in seen.blind_spots if not spot.is_denied and not _is_harmless(spot)]:
            text = (
                f"what the program does by {unseen[0].what} ({unseen[0].text}) cannot be seen, and has left what "
                f"was not: {differences}"
            )
            raise ExplorationError(text, signature=f"harness:blind-spot:{unseen[0].what}")
        text = f"the recording does not give what the program left: {differences}"
        raise ExplorationError(text, signature="harness:replay-differs")


def kinds_in(directory: Path) -> dict[str, int]:
    """Return what is in a folder: the kind (of ``st_mode``) of each path in it."""
    if not directory.is_dir():
        return {}
    return {str(path.relative_to(directory)): stat.S_IFMT(path.lstat().st_mode) for path in directory.rglob("*")}


def _tail(output: str) -> str:
    lines = output.strip().splitlines()
    return " | ".join(lines[-_SHOWN:])[-500:] or "nothing"
