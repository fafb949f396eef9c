"""One exploration: the clean run, the same again, and then each family of faults in its turn.

Nothing is explored of a program whose run without faults is wrong already, or that does not do the
same twice. What stops an exploration (the budget, Ctrl-C) leaves a progress file: the next one with
the same target, seed and recording goes on from there.
"""

from __future__ import annotations

import errno
import re
import shutil
import time
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.explore.families.crash import explore_crashes
from pytest_chaos.explore.families.events import NOTE, EventExploration
from pytest_chaos.explore.families.io import explore_errors, trouble_of
from pytest_chaos.explore.families.power import explore_power_losses, find_loss
from pytest_chaos.explore.families.recovery import explore_recoveries, find_recovery
from pytest_chaos.explore.judge import Known, Pool
from pytest_chaos.explore.record import (
    DENIED,
    compare_unwatched,
    findings_of_run,
    notes_of_names,
    notes_of_run,
    of_clean_run,
    record,
    record_again,
)
from pytest_chaos.explore.report import (
    INTERRUPTED,
    Exploration,
    ExplorationError,
    Family,
    FamilyResult,
    grouped,
    reproduction,
)
from pytest_chaos.explore.session import Options, Progress, Saved, Session
from pytest_chaos.explore.simulate.crash import find_crash
from pytest_chaos.explore.simulate.folder import StateFolder, read_folder
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.comparison import effects_with, placeholders
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.report import Discovery
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.source import Observation, StepSource

JOBS_MAX: Final = 256
"""More workers than this help on no machine, and a slip of the finger would fork until nothing is left."""
_FAMILIES: Final[dict[Family, Callable[[Session], FamilyResult]]] = {
    Family.CRASH: explore_crashes,
    Family.RECOVERY: explore_recoveries,
    Family.POWER: explore_power_losses,
    Family.IO: explore_errors,
}
IN_MEMORY_BYTES_MAX: Final = 128 << 20
"""The states of a program that writes more than this are written to the disk."""
KEPT_BYTES_MAX: Final = 64 << 20
"""A recording larger than this is not kept with the failing states: the code of a state builds it again."""
_NAME_CHARACTERS_MAX: Final = 80
ROOM_BYTES_MIN: Final = 16 << 20
"""Less room than this where states are written is too little to begin with."""


class Explorer:
    """Explores one target. ``folder`` is for its work, best on a memory file system, and is the caller's to remove.

    ``disk`` is a folder that is no memory, for the recording, and for the states of a program that
    writes much. ``kept`` is where failing states are kept, ``progress`` the file to go on from;
    both are optional. ``kept_as`` is what texts call the first, if it will be moved; ``command`` is
    what a reproduction tells the user to run.
    """

    def __init__(
        self,
        subject: Subject,
        source: StepSource,
        options: Options,
        folder: Path,
        *,
        disk: Path | None = None,
        kept: Path | None = None,
        kept_as: str = "",
        progress: Path | None = None,
        command: str = "",
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        check_options(options)
        check_room(folder)
        self._subject = subject
        self._source = source
        self._options = options
        self._folder = folder
        self._disk = disk or folder
        self._kept = kept
        self._kept_as = kept_as
        self._texts: dict[str, list[str]] = {}
        self._progress = progress
        self._command = command
        self._listen = listen
        self._families: list[FamilyResult] = []
        self._seen: Observation | None = None
        self._session: Session | None = None
        self._clean_folder = folder / "clean"
        self._notes: tuple[str, ...] = ()

    def explore(self) -> Exploration:
        """Explore all families. Never raises for what the target does: that becomes a finding.

        KeyboardInterrupt ends it with what it has, which is INCONCLUSIVE unless something was
        found.
        """
        started_s = time.monotonic()
        findings: tuple[Finding, ...] = ()
        try:
            findings = self._explore()
        except ExplorationError as error:
            findings = (_harness(error.signature, str(error)),)
        except KeyboardInterrupt:
            findings = (_harness(INTERRUPTED, "it was interrupted; run it again to go on from there"),)
            self._families += self._interrupted()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            findings = (_harness("harness:no-room", self._no_room(error)),)
        except ChaosError as error:
            findings = (_harness(f"harness:{type(error).__name__}", str(error)),)
        seen = self._seen
        return Exploration(
            target=self._subject.name,
            seed=self._options.seed,
            steps=seen.count if seen is not None else 0,
            marks=sum(step.is_mark for step in seen.steps) if seen is not None else 0,
            source=self._source.name,
            families=tuple(self._families),
            findings=findings,
            notes=self._notes,
            duration_s=time.monotonic() - started_s,
        )

    def _no_room(self, error: OSError) -> str:
        """Say which folder is full, and what changes that: states go to one, and the recording to another."""
        if shutil.disk_usage(self._disk).free < shutil.disk_usage(self._folder).free:
            return f"there is no room for the recording in {self._disk} ({error}): set TMPDIR to another folder"
        return f"there is no room for states in {self._folder} ({error}): give another folder with --scratch"

    def _interrupted(self) -> list[FamilyResult]:
        """Return what is known of the family that was under way."""
        saved = self._session.saved if self._session is not None else None
        hearing = self._session.hearing if self._session is not None else None
        if saved is None or hearing is None or not saved.family:
            return []
        return [
            FamilyResult(
                family=Family(saved.family),
                states=hearing.states,
                points=hearing.done,
                points_total=hearing.points_total,
                is_complete=False,
                discoveries=grouped(hearing.discoveries),
                problems=tuple(hearing.problems.values()),
            )
        ]

    def _explore(self) -> tuple[Finding, ...]:
        if self._source.name == "audit":
            return self._explore_events()
        timeout_s = self._options.run_timeout_s
        recorded, self._seen = record(self._subject, self._source, self._folder, timeout_s=timeout_s, disk=self._disk)
        try:
            self._notes = tuple(notes_of_run(self._seen))
            known = Known(self._subject, self._source, recorded.marks, recorded.recording.steps)
            with Pool(
                known, self._place(recorded), jobs=self._options.jobs, timeout_s=self._options.check_timeout_s
            ) as pool:
                return self._explore_families(known, recorded, pool)
        finally:
            recorded.close()

    def _explore_events(self) -> tuple[Finding, ...]:
        """Explore a target of which only audit events are seen."""
        exploration = EventExploration(self._subject, self._source, self._options, self._folder)
        self._seen = exploration.seen
        self._notes = (NOTE, *notes_of_run(self._seen))
        self._families, findings = exploration.explore()
        return findings

    def _place(self, recorded: Recorded) -> Path:
        """Return where states are written: those of a program that writes much would fill the memory."""
        if recorded.size <= IN_MEMORY_BYTES_MAX:
            return self._folder
        self._folder = self._disk
        note = f"the program writes {recorded.size >> 20:,} MiB: its states are on the disk, not in memory"
        self._notes = (*self._notes, note)
        return self._disk

    def _explore_families(self, known: Known, recorded: Recorded, pool: Pool) -> tuple[Finding, ...]:
        assert self._seen is not None  # noqa: S101 - it was recorded
        findings = [*findings_of_run(self._seen), *self._clean(recorded, pool)]
        if any(finding.kind == "clean-run" or finding.signature == DENIED for finding in findings):
            return tuple(findings)
        timeout_s = self._options.run_timeout_s
        drawn = record_again(self._subject, self._source, recorded, self._folder, timeout_s=timeout_s)
        self._notes = (*self._notes, *notes_of_names(drawn))
        compare_unwatched(self._subject, recorded, self._folder, timeout_s=timeout_s, drawn=drawn)
        saved = self._saved(recorded, drawn)
        self._session = session = Session(
            known,
            recorded,
            pool,
            self._options,
            self._folder,
            saved=saved,
            saved_in=self._progress,
            listen=self._listen,
        )
        finished = {result.family: result for result in saved.finished}
        for place, family in enumerate(self._options.families):
            session.share(len(self._options.families) - place)
            result = finished.get(family) or _FAMILIES[family](session)
            self._families.append(self._told(session, result))
        if all(result.is_complete for result in self._families):
            session.forget()
        if any(result.discoveries for result in self._families):
            self._keep_recording()
        return tuple(findings)

    def _keep_recording(self) -> None:
        """Keep the recording beside the failing states, unless it is too large to be carried around."""
        recording = self._disk / "recording"
        size = sum(path.stat().st_size for path in recording.iterdir())
        if self._kept is not None and size <= KEPT_BYTES_MAX:
            shutil.copytree(recording, self._kept / "recording", dirs_exist_ok=True)

    def _clean(self, recorded: Recorded, pool: Pool) -> list[Finding]:
        """Judge what the run left when nothing was done to it: a bug of the target, or a wrong check."""
        found: list[Finding] = []

        def done(judgement: Judgement, _: Path) -> None:
            found.extend(map(of_clean_run, judgement.findings))

        clean = self._clean_folder
        pool.check(read_folder(clean, recorded.store), len(recorded.marks), done)
        pool.drain()
        shutil.rmtree(clean, ignore_errors=True)
        if any(finding.kind == "harness" for finding in found):
            broken = next(finding for finding in found if finding.kind == "harness")
            text = f"{broken.text}; it was so without any fault"
            raise ExplorationError(text, signature=broken.signature)
        return found

    def _saved(self, recorded: Recorded, drawn: Sequence[str]) -> Saved:
        """Return how far an earlier exploration of the very same came, or a beginning.

        Names that the program draws do not count: what was found of the earlier run is told with
        those of this one.
        """
        numbers = placeholders(drawn, recorded.recording.steps)
        names = [readable(name) for name in numbers]
        options = msgspec.structs.replace(self._options, jobs=1, budget_s=None)
        parts = (
            self._subject.name,
            self._subject.sources(),
            options,
            effects_with(numbers, recorded.recording.steps),
        )
        fingerprint = blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()
        if self._progress is not None and self._progress.exists():
            try:
                saved = msgspec.json.decode(self._progress.read_bytes(), type=Saved)
            except msgspec.MsgspecError:  # it was of another version: there is nothing to go on from
                return Saved(fingerprint=fingerprint, drawn=names)
            if saved.fingerprint == fingerprint:
                return saved.renamed(names)
        return Saved(fingerprint=fingerprint, drawn=names)

    def _told(self, session: Session, result: FamilyResult) -> FamilyResult:
        """Return the result with each discovery's reproduction, and with its state kept where there is a place.

        What was kept is judged once more, by workers that have judged nothing else: what is not
        found again is flaky.
        """
        if result.discoveries:
            session.pool.renew()
        told = [self._tell(session, found) for found in result.discoveries]
        problems = result.problems
        if flaky := [found for found in told if not self._is_found_again(session, found)]:
            text = (
                f"{flaky[0].text!r} was said of {flaky[0].code}, and not of the same state when a fresh process looked "
                "at it: the check, or the recovery it makes, depends on more than the directory and the marks"
            )
            problems = (*problems, _harness("harness:check-not-deterministic", text))
        return msgspec.structs.replace(result, discoveries=tuple(told), problems=problems)

    def _is_found_again(self, session: Session, found: Discovery) -> bool:
        if not found.folder or found.kind == "liveness" or found.code.startswith("io:"):
            return True  # nothing was kept, or it takes a timeout, or it was a real run's, which is confirmed as it is
        heard: list[str] = []

        def done(judgement: Judgement, _: Path) -> None:
            heard.extend(finding.signature for finding in judgement.findings)

        items = read_folder(Path(found.folder) / "directory", session.recorded.store)
        session.pool.check(items, found.marks, done)
        session.pool.drain()
        return found.signature in heard

    def _tell(self, session: Session, found: Discovery) -> Discovery:
        name, folder, shown = _name_of(found.code), "", ""
        if self._kept is not None and keep_state(session, found.code, self._kept / name):
            folder = str(self._kept / name)
            shown = f"{self._kept_as or self._kept}/{name}"
        text = reproduction(session, found, command=self._command, folder=shown)
        if self._kept is not None and folder:
            self._texts.setdefault(name, []).append(text)
            (self._kept / f"{name}.txt").write_text("\n".join(self._texts[name]))
        return msgspec.structs.replace(found, reproduction=text, folder=folder)


def _name_of(code: str) -> str:
    """Return a name for the folder of a state: its code, and a digest where that is too long to be one."""
    name = re.sub(r"[^\w.+-]+", "-", code).rstrip("-.")
    if len(name) <= _NAME_CHARACTERS_MAX:
        return name
    return f"{name[:_NAME_CHARACTERS_MAX]}-{blake2b(code.encode(), digest_size=4).hexdigest()}"


def check_options(options: Options) -> None:
    """Raise UsageError that says everything that is wrong with the options."""
    wrong = []
    if options.budget_s is not None and not options.budget_s > 0:
        wrong.append(f"the budget is more than 0 s, and this is {options.budget_s:g} s")
    if options.jobs < 1:
        wrong.append(f"there is at least one job, and this is {options.jobs}")
    if options.jobs > JOBS_MAX:
        wrong.append(f"there are at most {JOBS_MAX} jobs, each a process, and this is {options.jobs}")
    if options.samples < 1:
        wrong.append(f"at least one state of a moment is sampled, and this is {options.samples}")
    if options.recoveries < 1:
        wrong.append(f"at least one recovery is explored, and this is {options.recoveries}")
    if options.io_runs < 1:
        wrong.append(f"at least one I/O error is tried, and this is {options.io_runs}")
    if not options.families or (Family.POWER in options.families and not options.models):
        wrong.append("at least one family of faults, and for power one model, is explored")
    if not options.run_timeout_s > 0 or not options.check_timeout_s > 0:
        wrong.append("run and check get more than 0 s each")
    if wrong:
        raise UsageError("; ".join(wrong))


def check_room(folder: Path) -> None:
    """Raise UsageError when there is hardly any room for states."""
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES_MIN:
        msg = f"{folder} has {free >> 20} MiB free, and states need {ROOM_BYTES_MIN >> 20}: give another with --scratch"
        raise UsageError(msg)


def find_state(session: Session, code: str) -> State | None:
    """Build the state that a code names. Raises UsageError for a code that cannot be read; None when there is none."""
    family = code.partition(":")[0]
    try:
        if family == Family.CRASH:
            return find_crash(session.recorded, code)
        if family == Family.POWER:
            return find_loss(session, code)
        if family == Family.RECOVERY:
            return find_recovery(session, code)
    except ValueError as error:
        msg = f"{code!r} names no state ({error}): take one from a report, such as crash:57"
        raise UsageError(msg) from error
    msg = f"{code!r} names no state that is built: they begin with crash, recovery, power or io"
    raise UsageError(msg)


def keep_state(session: Session, code: str, destination: Path) -> bool:
    """Write the state that a code names, and its marks, into a folder; return whether there is such a state."""
    if code.startswith("io:"):
        return _keep_error(session, code, destination)
    state = find_state(session, code)
    if state is None:
        return False
    StateFolder(destination / "directory").put(state.items)
    _write_marks(session, state.marks, destination)
    return True


def _keep_error(session: Session, code: str, destination: Path) -> bool:
    """Have the error happen once more, and keep what it leaves."""
    trouble = trouble_of(code, session.recorded.recording.durable())
    directory = destination / "directory"
    StateFolder(directory).put(session.recorded.before)
    marks = destination / "marks.jsonl"
    session.source.observe(
        session.subject.program(directory, marks),
        directory,
        marks=marks,
        directive=trouble.directive,
        timeout_s=session.options.run_timeout_s,
    )
    return True


def _write_marks(session: Session, count: int, destination: Path) -> None:
    from pytest_chaos.model.history import History  # seldom needed

    (destination / "marks.jsonl").write_bytes(History(session.recorded.marks[:count]).to_json_lines())


def _harness(signature: str, text: str) -> Finding:
    return Finding(signature=signature, text=text, kind="harness", checker="explore")
