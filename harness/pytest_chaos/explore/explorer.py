"""One exploration: the clean run, the same again, then each family in its turn; and more schedules.

Nothing is explored of a program whose run without faults is wrong already. A program that does not
make the same steps twice, or in which several threads make steps, is recorded under several
schedules: a crash and a power loss are explored in each. An exploration that is stopped (budget,
Ctrl-C) leaves a progress file: the next one with the same target, seed and recording goes on from
there.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import shutil
import time
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore import story
from pytest_chaos.explore.doubt.trials import Doubter
from pytest_chaos.explore.events import NOTE, explore_events, observe_events
from pytest_chaos.explore.families import FAMILIES
from pytest_chaos.explore.families.victim import named
from pytest_chaos.explore.judge import Pool, StateTask
from pytest_chaos.explore.lines.noted import deadlock_at, lines_of
from pytest_chaos.explore.order import SLOW_CHECK_S
from pytest_chaos.explore.record import (
    DENIED,
    NEEDS_TERMINAL,
    DeadlockError,
    Rebuilt,
    Recorded,
    compare_untraced,
    deadlock,
    findings_of_run,
    listed,
    notes_of_names,
    notes_of_reach,
    notes_of_repetition,
    notes_of_run,
    of_clean_run,
    record,
    record_again,
    repeated,
)
from pytest_chaos.explore.report import (
    CLUSTER_LOST,
    CONFIRMED_BY_A_RUN,
    INTERRUPTED,
    Exploration,
    ExplorationError,
    Family,
    FamilyResult,
    grouped,
    harness_finding,
    reproduction,
    together,
)
from pytest_chaos.explore.server.reads import LookedAt, looked_at, note_of, reads_of
from pytest_chaos.explore.session import GRACE_S, Progress, Saved, Session, set_aside
from pytest_chaos.explore.simulate.folder import StateFolder, read_folder
from pytest_chaos.explore.watched import Watching
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Finding, Verdict
from pytest_chaos.trace.comparison import effects_with, placeholders
from pytest_chaos.trace.schedule import Schedule
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.explore.cluster.engine import ClusterEngine
    from pytest_chaos.explore.doubt.result import Doubt
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.record import Again
    from pytest_chaos.explore.report import Discovery
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import FindingKind
    from pytest_chaos.trace.calls.reads import WatchedReads
    from pytest_chaos.trace.source import Observation, StepSource

IN_MEMORY_BYTES_MAX: Final = 128 << 20
"""States are written to the disk, not to memory, if the program writes more than this."""
KEPT_BYTES_MAX: Final = 64 << 20
"""A larger recording is not kept with the failing states: their codes build them again."""
ROOM_BYTES_MIN: Final = 16 << 20
"""Minimum room for states: with less an exploration does not begin."""
SCHEDULES: Final = 5
"""The schedules of a program that does not make the same steps twice, or has several threads."""
DEADLOCK: Final = "liveness:deadlock"
_OWN_RUN: Final = "in no other run, perhaps: this one went its own way, and the state that it left is kept"
_ENDS_ALL: Final = {DENIED, NEEDS_TERMINAL}
"""Findings of the clean run after which there is nothing to explore."""
_ALSO: Final = "; it was so, too, in schedule"
_DEADLOCK_TRIES: Final = 4
"""So often a deadlock is tried to be seen again, with lines, each time in another order."""
_BUILT: Final = (Family.CRASH, Family.POWER)
"""The families whose states are built from a recording; the others run the program for each."""
_RUN_S_MIN: Final = 2.0
"""Each of the runs before the families gets so much time, however small the budget is."""
_NAME_CHARACTERS_MAX: Final = 80
_TRIES_OF_A_CHECK: Final = 5
_SURELY_SLOW_S: Final = 0.5
"""A check that takes so long is not tried again to see whether it is slow."""


class Explorer:
    """An exploration of one target.

    ``folder`` is the work folder, best on a memory file system; the caller removes it. ``disk`` is
    a folder on a real disk, for the recording, and for the states of a program that writes much.
    ``engine`` is the cluster that judges; without one, workers of this machine do.
    """

    def __init__(
        self,
        subject: Subject,
        source: StepSource,
        options: Options,
        folder: Path,
        *,
        disk: Path | None = None,
        listen: Callable[[Progress], None] = lambda _: None,
        engine: ClusterEngine | None = None,
    ) -> None:
        _check_room(folder)
        subject.limit(options)
        self._subject = subject
        self._source = source
        self._options = options
        self._folder = folder
        self._disk = disk or folder
        self._listen = listen
        self._engine = engine
        self._seen: Observation | None = None
        self._findings: list[Finding] = []
        self._families: list[FamilyResult] = []
        self._notes: list[str] = []
        self._texts: dict[str, list[str]] = {}
        self._surroundings: dict[tuple[str, str], story.Surroundings] = {}
        """What surrounds a discovery, by its code and signature."""
        self._is_slow = False
        """Whether a check takes long."""
        self._reads: WatchedReads | None = None
        """What a start reads, if that was watched, on the states ``_looked``."""
        self._looked: tuple[LookedAt, ...] = ()
        self._doubt: Doubt | None = None
        self._schedules = 1
        self._repeated: dict[Schedule, tuple[int, int]] = {}
        """The steps of each schedule that a second run repeated, and all of them."""
        self._left = 1
        """The recordings that are still to be explored, which share the time that is left."""
        budget_s = options.budget_s if options.budget_s is not None else float("inf")
        self._deadline_s = time.monotonic() + budget_s

    def explore(self) -> Exploration:
        """Explore all families; a failure of the target becomes a finding.

        KeyboardInterrupt ends the exploration with the results so far, which are INCONCLUSIVE
        unless something was found.
        """
        started_s = time.monotonic()
        findings = self._findings
        try:
            self._explore()
        except ExplorationError as error:
            findings.append(self._of_error(error))
        except KeyboardInterrupt:
            findings.append(harness_finding(INTERRUPTED, "it was interrupted; run it again to go on from there"))
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            findings.append(harness_finding("harness:no-room", self._no_room(error)))
        except ChaosError as error:
            findings.append(harness_finding(f"harness:{type(error).__name__}", str(error)))
        seen = self._seen
        explored = Exploration(
            target=self._subject.name,
            seed=self._options.seed,
            steps=seen.count if seen is not None else 0,
            marks=sum(step.is_mark for step in seen.steps) if seen is not None else 0,
            source=self._source.name,
            families=tuple(self._families),
            findings=tuple(findings),
            notes=(
                *self._notes,
                *filter(None, (text for result in self._families for text in (result.unseen, result.left_unread))),
            ),
            duration_s=time.monotonic() - started_s,
            schedules=self._schedules,
            doubt=self._doubt,
        )
        if explored.verdict is Verdict.VIOLATED and self._options.kept is not None:
            output = seen.output if seen is not None else ""
            story.write(story.tell(explored, self._surroundings, self._options, output=output), self._options.kept)
        return explored

    def _of_error(self, error: ExplorationError, schedule: Schedule | None = None) -> Finding:
        """Return the finding of a recording that failed: a deadlock is the target's doing."""
        where = f"in {schedule}, " if schedule is not None else ""
        if isinstance(error, DeadlockError):
            text = f"{where}{self._with_lines(error, schedule)}"
            return Finding(signature=DEADLOCK, text=text, kind="liveness", checker="explore")
        why = "the budget was over: " if time.monotonic() > self._deadline_s else ""
        return harness_finding(error.signature, f"{why}{where}{error}")

    def _with_lines(self, error: DeadlockError, schedule: Schedule | None) -> str:
        """Return the text of a deadlock; of the first one with the lines, if it comes once more."""
        if any(each.signature == DEADLOCK for each in self._findings):
            return str(error)
        others = (Schedule(number=number, seed=self._options.seed) for number in range(1, _DEADLOCK_TRIES))
        for order in (schedule, *others):
            place = (self._subject, self._source, self._folder, order)
            waits = deadlock_at(*place, timeout_s=self._run_timeout_s)
            if deadlock([wait.partition(", at ")[0] for wait in waits]) == str(error):
                return deadlock(waits)
        return str(error)

    def _no_room(self, error: OSError) -> str:
        """Return the text for ENOSPC: which folder is full, states or recording, and the remedy."""
        if shutil.disk_usage(self._disk).free < shutil.disk_usage(self._folder).free:
            return f"there is no room for the recording in {self._disk} ({error}): set TMPDIR to another folder"
        return f"there is no room for states in {self._folder} ({error}): give another folder with --scratch"

    def _explore(self) -> None:
        """Explore all; what is found beside the families is added to the findings at once."""
        options = self._options
        if self._source.name == "audit":
            self._seen = observe_events(self._subject, self._source, options, self._folder)
            self._notes = [NOTE, *notes_of_run(self._seen)]
            if ignored := self._source.files.ignored:
                self._notes.append(f"events at files that match {', '.join(ignored)} were ignored")
            self._families, wrong = explore_events(
                self._subject, self._source, options, self._folder, self._seen, self._deadline_s, self._listen
            )
            self._findings += [*wrong, *self._watched(None)]
            return
        recorded, self._seen = record(
            self._subject,
            self._source,
            self._folder,
            seed=self._options.seed,
            timeout_s=self._run_timeout_s,
            disk=self._disk,
        )
        try:
            self._notes = notes_of_run(self._seen, is_by_restart=self._subject.is_by_restart)
            if victims := ", ".join(map(str, named(recorded, options.victim))):
                self._notes.append(f"processes that also died alone: {victims}")
            if self._options.jobs > 1 and (port := self._subject.fixed_port):
                self._notes.append(f"port {port} is the same at each start, so one server ran at a time, in one job")
            if recorded.size > IN_MEMORY_BYTES_MAX:
                self._folder = self._disk
                size = f"the program writes {recorded.size >> 20:,} MiB"
                self._notes.append(f"{size}: its states are on the disk, not in memory")
            learned, adds_up = self._subject.learn(self._folder, self._source.files, timeout_s=self._run_timeout_s)
            self._notes += learned
            with self._pool(recorded) as pool:
                if self._engine is not None:
                    self._notes.append(self._engine.note(fixed_port=self._subject.fixed_port))
                self._findings += findings_of_run(self._seen)
                self._findings += self._judge_clean(recorded, self._seen, pool)
                if any(
                    each.kind == "clean-run" or each.signature in {DENIED, NEEDS_TERMINAL} for each in self._findings
                ):
                    return
                again = record_again(recorded, self._folder, seed=options.seed, timeout_s=self._run_timeout_s)
                recorded.is_repeatable, recorded.drawn = not again.parted, frozenset(again.drawn)
                self._left = self._wanted(recorded) + options.doubt
                self._findings += [*adds_up, *self._watched(recorded)]
                self._explore_families(recorded, pool, again)
                self._doubt = self._doubted(recorded, pool)
            self._explore_schedules(recorded, again)
        finally:
            recorded.close()

    @contextlib.contextmanager
    def _pool(self, recorded: Recorded) -> Iterator[Pool]:
        """Have states judged, by this machine or by the cluster; note why some were not."""
        options = self._options
        jobs = 1 if self._subject.fixed_port else options.jobs
        timeout_s = options.check_timeout_s
        if self._engine is None or self._subject.fixed_port:
            pool = Pool(recorded.known, self._folder, jobs=jobs, timeout_s=timeout_s)
        else:
            from pytest_chaos.explore.cluster.seam import pool_of  # only where there is a cluster

            open_s = max(_RUN_S_MIN, self._deadline_s - time.monotonic())
            pool = pool_of(recorded, self._folder, self._engine, timeout_s=timeout_s, open_s=open_s)
        pool.until_s = max(self._deadline_s, time.monotonic() + _RUN_S_MIN)
        with pool:
            yield pool
        for signature, text in pool.problems.items():
            told = harness_finding(signature, f"{text}; run it again to go on with what was not judged")
            self._findings += [told] if told not in self._findings else []

    @property
    def _run_timeout_s(self) -> float:
        """The time limit of a run: its own, or the rest of the budget if that is less."""
        return min(self._options.run_timeout_s, max(_RUN_S_MIN, self._deadline_s - time.monotonic()))

    def _share_ends_s(self) -> float:
        """Return when the time of one of the recordings that are left ends."""
        now_s = time.monotonic()
        self._left = max(1, self._left)
        ends_s = now_s + max(0.0, self._deadline_s - now_s) / self._left
        self._left -= 1
        return ends_s

    def _judge_clean(self, recorded: Recorded, seen: Observation, pool: Pool) -> list[Finding]:
        """Judge what the clean run left: a finding means a bug of the target, or a wrong check.

        Raises ExplorationError if the check itself is broken.
        """
        task = StateTask(read_folder(recorded.clean, recorded.store), len(recorded.marks))
        begun_s = time.monotonic()
        judgement = pool.judge(task)
        self._is_slow |= self._subject.is_server or self._takes_long(task, pool, time.monotonic() - begun_s)
        shutil.rmtree(recorded.clean, ignore_errors=True)
        if judgement.is_out_of_time:
            text = "the budget was over before the check of the run without any fault had ended: give a larger one"
            raise ExplorationError(text, signature="harness:budget")
        if judgement.said:
            self._notes.append(f"the check found nothing without any fault{judgement.said}")
        if judgement.left:
            text = f"the check left processes running, which were ended ({listed(judgement.left)})"
            self._notes.append(f"{text}: let it end what it starts")
        findings = [of_clean_run(finding, seen.left) for finding in judgement.findings]
        for finding in findings:
            if self._subject.is_by_restart:  # a second run after a complete one was as the first, and now is not
                text = f"{finding.text}: clean runs need not agree on it. Name it with --volatile, or take chance away"
                raise ExplorationError(text, signature="harness:runs-differ")
            if finding.kind == "harness":
                text = f"{finding.text}; it was so without any fault, and nothing was explored"
                raise ExplorationError(text, signature=finding.signature)
        return findings

    @staticmethod
    def _takes_long(task: StateTask, pool: Pool, took_s: float) -> bool:
        """Whether a check takes long: the first one may have loaded code, or met a busy machine."""
        for _ in range(_TRIES_OF_A_CHECK):
            if SLOW_CHECK_S < took_s < _SURELY_SLOW_S:
                begun_s = time.monotonic()
                pool.judge(task)
                took_s = min(took_s, time.monotonic() - begun_s)
        return took_s > SLOW_CHECK_S

    def _watched(self, recorded: Recorded | None) -> list[Finding]:
        """Watch what the program does beside its durable steps, in runs of their own."""
        if not self._options.watch:
            return []
        place = (self._subject, self._source, self._folder, self._disk)
        watching = Watching(
            *place,
            seed=self._options.seed,
            timeout_s=self._run_timeout_s,
            power=Family.POWER in self._options.families,
        )
        watched = watching.watch()
        self._notes += watched.notes
        found = {finding.signature: finding for finding in watched.findings}
        if recorded is not None and recorded.threads > 1:  # another order may show more
            schedule = Schedule(number=2, seed=self._options.seed, calls=len(recorded.recording.steps))
            for finding in watching.watch(schedule).findings:
                found.setdefault(finding.signature, self._of_schedule(finding, schedule))
        return list(found.values())

    def _explore_families(self, recorded: Recorded, pool: Pool, again: Again) -> None:
        timeout_s = self._run_timeout_s
        self._notes += notes_of_names(again.drawn)
        compare_untraced(recorded, self._folder, timeout_s=timeout_s, drawn=again.drawn)
        if self._is_slow:
            self._looked = looked_at(recorded)
        session = Session(
            self._options,
            pool,
            self._folder,
            saved=self._saved(recorded, again.drawn),
            deadline_s=self._share_ends_s(),
            is_slow=self._is_slow,
            look=partial(self._look, recorded),
            looked=self._looked,
            listen=self._listen,
        )
        finished = {result.family: result for result in session.saved.finished}
        for family in self._options.families:
            result = finished.get(family) or self._explore_family(recorded, session, family)
            self._add(self._told(recorded, pool, result))
        held = {result.family for result in self._families if result.verdict is Verdict.HELD}
        self._notes += notes_of_reach(recorded, held)
        if all(result.is_complete for result in self._families):
            session.forget()
        if any(result.discoveries for result in self._families):
            self._keep_recording()

    def _doubted(self, recorded: Recorded, pool: Pool) -> Doubt | None:
        """Try the check on damaged recordings, if it finds nothing in the sound one."""
        if not self._options.doubt:
            return None
        judged = [each for each in self._families if not each.unexplored]
        wrong = [*self._findings, *(found for each in judged for found in each.problems)]
        if wrong or any(each.verdict is not Verdict.HELD for each in judged):
            self._notes.append(
                "nothing was doubted: what the check finds in damaged runs tells only something if it finds nothing "
                "in the sound one, and all of that was judged"
            )
            return None
        if not {each.family for each in judged} & set(_BUILT):
            self._notes.append("nothing was doubted: that needs the states of crash or power (--faults)")
            return None
        ends_s = self._share_ends_s()
        pool.until_s = ends_s + GRACE_S
        doubter = Doubter(recorded, pool, self._options, self._folder, deadline_s=ends_s, timeout_s=self._run_timeout_s)
        return doubter.doubt(
            lambda done, total: self._listen(Progress(family="doubt", states=0, done=done, total=total, findings=0))
        )

    def _look(self, recorded: Recorded) -> WatchedReads | None:
        """Watch what a start reads, if families are explored to which it gives an order."""
        if set(_BUILT) & set(self._options.families):
            timeout_s = min(self._options.check_timeout_s, self._run_timeout_s)
            self._reads = reads_of(recorded, self._looked, self._folder, timeout_s=timeout_s)
            self._notes += note_of(self._reads)
        return self._reads

    # Schedules

    def _wanted(self, first: Recorded) -> int:
        """Return the number of recordings to explore."""
        return self._options.schedules or (1 if first.is_repeatable else SCHEDULES)

    def _explore_schedules(self, first: Recorded, again: Again) -> None:
        """Record and explore further schedules, within the budget."""
        wanted = self._wanted(first)
        if not first.is_repeatable:
            why = again.parted or "a run that was to be killed went its own way"
            self._notes.append(f"the program need not make the same steps twice: {why}")
        known = {_effects(first)}
        for number in range(1, wanted):
            if time.monotonic() > self._deadline_s:
                text = f"the budget was over after {number} of {wanted} schedules: give a larger one"
                self._findings.append(harness_finding("harness:incomplete:schedules", text))
                break
            if any(finding.signature == CLUSTER_LOST for finding in self._findings):
                break
            schedule = Schedule(number=number, seed=self._options.seed, calls=len(first.recording.steps))
            for finding in self._explore_schedule(schedule, known, first):
                self._add_of_schedule(finding, schedule)
        if wanted > 1 and len(known) < self._schedules:
            same = f"{self._schedules} schedules gave {len(known)} different recordings"
            self._notes.append(f"{same}; equal ones were explored once")
        self._notes += notes_of_repetition(self._repeated)

    def _explore_schedule(self, schedule: Schedule, known: set[bytes], first: Recorded) -> list[Finding]:
        """Record a schedule, judge its end, and explore its crashes and power losses."""
        folder = self._folder
        try:
            recorded, seen = record(
                self._subject,
                self._source,
                folder,
                seed=self._options.seed,
                timeout_s=self._run_timeout_s,
                disk=self._disk,
                schedule=schedule,
            )
        except ExplorationError as error:
            return [self._of_error(error, schedule)]
        try:
            self._schedules += 1
            if (effects := _effects(recorded)) in known:
                shutil.rmtree(recorded.clean, ignore_errors=True)
                return []
            known.add(effects)
            recorded.is_repeatable, recorded.noted = False, first.noted
            if time.monotonic() < self._deadline_s:
                same = repeated(recorded, folder, timeout_s=self._run_timeout_s)
                if same is not None:
                    self._repeated[schedule] = (same, recorded.steps)
            with self._pool(recorded) as pool:
                findings = [*findings_of_run(seen), *self._judge_clean(recorded, seen, pool)]
                if findings:
                    return [self._of_schedule(finding, schedule) for finding in findings]
                self._explore_families_of(recorded, pool, schedule)
                return []
        except ExplorationError as error:
            return [self._of_error(error, schedule)]
        finally:
            first.noted = recorded.noted
            recorded.close()

    def _add_of_schedule(self, finding: Finding, schedule: Schedule) -> None:
        """Add a finding; of those with one signature the first is kept, and tells of the others."""
        for place, other in enumerate(self._findings):
            if finding.signature == other.signature and finding.kind == other.kind:
                more = f"{other.text}{',' if _ALSO in other.text else _ALSO} {schedule.number}"
                self._findings[place] = msgspec.structs.replace(other, text=more)
                return
        self._findings.append(finding)

    @staticmethod
    def _of_schedule(finding: Finding, schedule: Schedule) -> Finding:
        """Return a finding of a clean run as a race: the first schedule did not show it."""
        kind: FindingKind = finding.kind if finding.kind == "harness" else "race"
        text = f"in {schedule}, {finding.text}"
        return msgspec.structs.replace(finding, kind=kind, text=text)

    def _explore_families_of(self, recorded: Recorded, pool: Pool, schedule: Schedule) -> None:
        """Explore the families that are built from a recording; add the results to the first's."""
        families = tuple(family for family in self._options.families if family in _BUILT)
        if not families:  # the others were explored by runs of their own
            return
        session = Session(
            msgspec.structs.replace(self._options, families=families),
            pool,
            self._folder,
            deadline_s=self._share_ends_s(),
            is_slow=self._is_slow,
            look=lambda: self._reads,
            looked=self._looked,
            listen=self._listen,
        )
        has_found = False
        for family in families:
            told = self._told(recorded, pool, self._explore_family(recorded, session, family))
            has_found |= bool(told.discoveries)
            self._add(told)
        if has_found:
            self._keep_recording(schedule)

    def _add(self, result: FamilyResult) -> None:
        """Add a family's result in one recording to its results in earlier ones."""
        place = next((at for at, other in enumerate(self._families) if other.family is result.family), None)
        if place is None:
            self._families.append(result)
            return
        both = together(self._families[place], result)
        self._families[place] = msgspec.structs.replace(both, coverage=FAMILIES[result.family].coverage(both))

    def _explore_family(self, recorded: Recorded, session: Session, family: Family) -> FamilyResult:
        found = session.collector(family, FAMILIES[family].coverage)
        try:
            FAMILIES[family].explore(recorded, found)
        except KeyboardInterrupt:
            found.is_complete = False
            self._add(found.result())
            raise
        return found.finish()

    def _saved(self, recorded: Recorded, drawn: Sequence[str]) -> Saved:
        """Return the progress of an earlier exploration of the same recording, or an empty one.

        Drawn names do not count: findings of the earlier run get the names of this one.
        """
        numbers = placeholders(drawn, recorded.recording.steps)
        names = [readable(name) for name in numbers]
        parts = (
            self._subject.name,
            self._subject.sources(),
            self._options.deciding,
            effects_with(numbers, recorded.recording.steps),
        )
        fingerprint = blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()
        path = self._options.progress
        if path is not None and path.exists():
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=Saved)
            except msgspec.MsgspecError:  # another version wrote it
                saved = Saved(fingerprint="")
            if saved.fingerprint == fingerprint:
                return saved.renamed(names)
            set_aside(path)
        options = self._options
        return Saved(fingerprint=fingerprint, seed=options.seed, choice=options.choice, drawn=names)

    def _keep_recording(self, schedule: Schedule | None = None) -> None:
        """Keep the recording beside the failing states, unless it is too large."""
        name = f"recording-{schedule.number}" if schedule is not None else "recording"
        kept, recording = self._options.kept, self._disk / name
        size = sum(path.stat().st_size for path in recording.iterdir())
        if kept is not None and size <= KEPT_BYTES_MAX:
            shutil.copytree(recording, kept / name, dirs_exist_ok=True)

    def _told(self, recorded: Recorded, pool: Pool, result: FamilyResult) -> FamilyResult:
        """Return the result with each discovery's reproduction, and keep its state.

        Each kept state is judged once more by fresh workers. If the finding does not come again,
        the check is not deterministic.
        """
        if result.discoveries:
            pool.renew()
        pool.until_s = max(self._deadline_s, time.monotonic()) + GRACE_S
        told, flaky = [], []
        for found in grouped(self._placed(recorded, each) for each in result.discoveries):
            folder = self._keep(recorded, found)
            if folder is not None and not _is_found_again(recorded, pool, found, folder):
                flaky.append(found)
                if found.kind == "liveness":  # the machine stood still, or it is luck: no evidence is left
                    continue
            told.append(self._tell(recorded, found, folder))
            self._surround(recorded, pool, told[-1], folder)
        problems = result.problems
        if flaky:
            text = (
                f"the check found {flaky[0].text!r} in {flaky[0].code}, and not in the same state when a fresh process "
                "judged it: the check, or the recovery it makes, depends on more than the directory and the marks"
            )
            problems = (*problems, harness_finding("harness:check-not-deterministic", text))
        return msgspec.structs.replace(result, discoveries=tuple(told), problems=problems)

    def _keep(self, recorded: Recorded, found: Discovery) -> Path | None:
        """Keep the state of a discovery, and return its folder; None if states are not kept."""
        if self._options.kept is None:
            return None
        folder = self._options.kept / _name_of(f"{found.code}{recorded.suffix}")
        if found.folder:  # a real run has left it, and no recording gives it
            try:
                shutil.copytree(found.folder, folder, symlinks=True, dirs_exist_ok=True)
            except FileNotFoundError:  # an exploration that was stopped had it
                return None
            return folder
        kept = rebuilt(recorded, found.code, self._folder, timeout_s=self._options.run_timeout_s)
        if kept is None:
            return None
        write_state(kept, folder)
        return folder

    def _placed(self, recorded: Recorded, found: Discovery) -> Discovery:
        """Return a discovery with the step and the lines at which it was struck, where known."""
        durable = recorded.recording.durable()
        if _is_own(recorded, found) or not 0 < found.step <= len(durable):
            return msgspec.structs.replace(found, lines=tuple({found.line} - {""}))
        line = self._line(recorded, found.step)
        lines = {self._line(recorded, number) for number in found.struck} if line else set()
        at = str(durable[found.step - 1])
        return msgspec.structs.replace(found, at=at, line=line, lines=tuple(sorted(lines - {""})))

    def _tell(self, recorded: Recorded, found: Discovery, folder: Path | None) -> Discovery:
        options = self._options
        is_own = _is_own(recorded, found)
        found = msgspec.structs.replace(found, code=f"{found.code}{recorded.suffix}")
        shown = f"{options.kept_as or options.kept}/{folder.name}" if folder is not None else ""
        again = f"{options.command} --seed {shlex.quote(options.seed)} --state '{found.code}'"
        text = reproduction(
            found,
            self._subject.name,
            () if is_own else recorded.recording.durable(),
            () if is_own else recorded.marks,
            folder=shown,
            again=_OWN_RUN if found.folder else again if options.command else "",
        )
        if folder is not None:  # two findings of one state are in one text
            texts = self._texts.setdefault(folder.name, [])
            texts.append(text)
            folder.with_name(f"{folder.name}.txt").write_text(clean("\n".join(texts)))
        return msgspec.structs.replace(found, reproduction=text, folder=str(folder or ""))

    def _surround(self, recorded: Recorded, pool: Pool, found: Discovery, folder: Path | None) -> None:
        """Gather what surrounds a discovery, for its failure page, while there is time."""
        is_own = _is_own(recorded, found)
        if is_own or len(self._surroundings) >= story.REFERENCES_MAX or time.monotonic() > self._deadline_s:
            return
        key = (found.code, found.signature)
        self._surroundings[key] = story.surroundings(
            recorded, pool, found, folder, lambda number: self._line(recorded, number)
        )

    def _line(self, recorded: Recorded, number: int) -> str:
        """Return the line of the user's program that makes a step; empty if not known."""
        if recorded.lines is None and time.monotonic() > self._deadline_s:
            return ""
        lines = lines_of(recorded, self._folder, timeout_s=self._run_timeout_s)
        return lines[number - 1] if 0 < number <= len(lines) else ""


def _is_own(recorded: Recorded, found: Discovery) -> bool:
    """Whether a discovery is of a run of its own, so that the recording is of another run."""
    return found.label == CONFIRMED_BY_A_RUN and not recorded.is_repeatable


def _effects(recorded: Recorded) -> bytes:
    """Return a digest of a recording: equal for two that give the same states."""
    digest = blake2b(digest_size=16)
    for step in recorded.recording.steps:
        digest.update(repr(step.effect).encode(errors="surrogatepass") + recorded.recording.content(step))
    return digest.digest()


def _is_found_again(recorded: Recorded, pool: Pool, found: Discovery, folder: Path) -> bool:
    """Whether a kept state shows its finding again.

    Findings that a real run has shown are not tried again. A check that hung is: the machine may
    have stood still.
    """
    if found.label == CONFIRMED_BY_A_RUN or found.signature == "liveness:recovery-hangs":
        return True
    items = read_folder(folder / "directory", recorded.store)
    judgement = pool.judge(StateTask(items, found.marks, family=found.code.partition(":")[0]))
    return judgement.is_out_of_time or found.signature in {finding.signature for finding in judgement.findings}


def rebuilt(recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Build the state of a code again; None if the recording has no such state.

    Raises UsageError for a malformed code.
    """
    family = code.partition(":")[0]
    if family not in set(Family):
        msg = f"state code must begin with one of {', '.join(Family)}; got {code!r}. Take one from a report"
        raise UsageError(msg)
    try:
        return FAMILIES[Family(family)].rebuild(recorded, code, folder, timeout_s=timeout_s)
    except ValueError as error:
        msg = f"state code must be one of a report, such as crash:57; got {code!r} ({error}). Copy it again"
        raise UsageError(msg) from error


def write_state(state: Rebuilt, destination: Path) -> None:
    """Write a state as a folder: ``directory`` and ``marks.jsonl``."""
    StateFolder(destination / "directory").put(state.items)
    (destination / "marks.jsonl").write_bytes(History(tuple(state.marks)).to_json_lines())


def _name_of(code: str) -> str:
    """Return a folder name for a state: its code; a long code is cut and gets a digest."""
    name = re.sub(r"[^\w.+-]+", "-", code).rstrip("-.")
    if len(name) <= _NAME_CHARACTERS_MAX:
        return name
    return f"{name[:_NAME_CHARACTERS_MAX]}-{blake2b(code.encode(), digest_size=4).hexdigest()}"


def _check_room(folder: Path) -> None:
    """Raise UsageError when there is hardly any room for states."""
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES_MIN:
        room = f"{ROOM_BYTES_MIN >> 20} MiB free for states; got {free >> 20} MiB"
        msg = f"{folder} must have {room}. Give another folder with --scratch"
        raise UsageError(msg)
