"""Each damage against the check: the states that only the damaged program leaves are judged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.doubt.damages import Damage, DamagedRecording, DamageKind, damages
from pytest_chaos.explore.doubt.left import Left, differing, left_by, without
from pytest_chaos.explore.doubt.result import DamageOutcome, Doubt, DoubtedDamage, advice
from pytest_chaos.explore.judge import StateTask
from pytest_chaos.explore.lines.noted import kind_of, lines_of
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.disk import RecordingError
from pytest_chaos.trace.step import Action, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement, Pool
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.simulate.state import Item
    from pytest_chaos.trace.step import Step

DAMAGES_MAX: Final = 400
"""At most so many damages are tried, of each kind as many as of the others."""
STATES_MAX: Final = 40
"""So many new states of a damage are judged, those that promise most first."""
_SITES: Final = 2
"""So many damages of one kind, at one line of the program and one kind of path, are tried."""


class _Trial:
    """A damage, the new states that it leaves, and what was found in them so far."""

    def __init__(self, damage: Damage, line: str, states: Sequence[Left], count: int) -> None:
        self.damage = damage
        self.line = line
        self.states = states
        self.count = count
        self.judged = 0
        self.said = ""
        self.broken = ""
        self.is_late = False


class Doubter:
    """One exploration's doubt: the sound recording, and the workers that judge."""

    def __init__(
        self, recorded: Recorded, pool: Pool, options: Options, folder: Path, *, deadline_s: float, timeout_s: float
    ) -> None:
        self._recorded = recorded
        self._pool = pool
        self._options = options
        self._deadline_s = deadline_s
        self._lines = lines_of(recorded, folder, timeout_s=timeout_s)
        self._known: dict[int, int] = {}
        """The most marks of a sound state, by its items."""
        self._sound: dict[int, Mapping[str, Item]] = {}
        """The last items of the sound run with so many marks."""
        self._families = [family for family in options.families if family in {Family.CRASH, Family.POWER}]

    def doubt(self, listen: Callable[[int, int], None]) -> Doubt:
        """Try each damage; ``listen`` gets how many are decided, of how many."""
        for left in self._left(self._recorded.recording):
            self._known[left.identity] = max(left.marks, self._known.get(left.identity, -1))
            if left.family is Family.CRASH:
                self._sound[left.marks] = left.items
        trials = [self._trial(damage) for damage in self._chosen()]
        found = [trial for trial in trials if trial is not None]
        for (trial, place), judgement in self._pool.answers(self._rounds(found), self._task_of):
            self._take(trial, place, judgement)
            listen(sum(bool(each.said) for each in found), len(found))
        temporary = self._temporary([each for each in found if not each.said and each.states])
        results = [self._result(each, is_temporary=id(each) in temporary) for each in found]
        return _doubt(results)

    def _left(self, recording: object, since: int | None = None) -> Iterator[Left]:
        return left_by(
            recording,  # type: ignore[arg-type] # either kind
            self._recorded.store, self._families, self._options.models, since=since,
        )  # fmt: skip

    def _chosen(self) -> list[Damage]:
        """Return the damages to try: the first and the last of each call site."""
        sites: dict[Hashable, list[Damage]] = {}
        for damage in damages(self._recorded.recording):
            step, drawn = damage.step, self._recorded.drawn
            site: Hashable = (damage.kind, damage.step)
            if step is not None and (line := self._line(damage)):
                site = (damage.kind, line, step.action, kind_of(step.path, drawn), kind_of(step.target, drawn))
            kept = sites.setdefault(site, [])
            del kept[_SITES - 1 :]
            kept.append(damage)
        chosen = [damage for kept in sites.values() for damage in kept]
        if len(chosen) <= DAMAGES_MAX:
            return chosen
        return chosen[:: -(-len(chosen) // DAMAGES_MAX)]

    def _line(self, damage: Damage) -> str:
        number = damage.step.number if damage.step is not None else 0
        return self._lines[number - 1] if 0 < number <= len(self._lines) else ""

    def _trial(self, damage: Damage) -> _Trial | None:
        """Return the trial of a damage; None if its steps do not fit together."""
        fresh: dict[tuple[int, int], Left] = {}
        try:
            for left in self._left(DamagedRecording(self._recorded.recording, damage.steps), damage.place):
                if left.marks > self._known.get(left.identity, -1):
                    fresh.setdefault((left.identity, left.marks), left)
        except RecordingError:
            return None
        states = sorted(fresh.values(), key=lambda left: (-left.is_end, -left.marks))
        return _Trial(damage, self._line(damage), states[:STATES_MAX], len(states))

    def _rounds(self, trials: Sequence[_Trial]) -> Iterator[tuple[_Trial, int]]:
        """Yield the first state of each trial, then the second of those not noticed, and so on."""
        for place in range(max((len(trial.states) for trial in trials), default=0)):
            for trial in trials:
                if place < len(trial.states) and not trial.said:
                    if time.monotonic() > self._deadline_s:
                        trial.is_late = True
                    else:
                        yield trial, place

    @staticmethod
    def _task_of(at: tuple[_Trial, int]) -> StateTask:
        trial, place = at
        left = trial.states[place]
        return StateTask(left.items, left.marks, family=left.family)

    @staticmethod
    def _take(trial: _Trial, place: int, judgement: Judgement) -> None:
        trial.judged += 1
        trial.is_late |= judgement.is_out_of_time
        for finding in judgement.findings:
            if finding.kind == "harness":
                trial.broken = trial.broken or finding.text
            elif not trial.said:
                trial.said = f"{finding.text} ({trial.states[place].text})"

    def _temporary(self, trials: Sequence[_Trial]) -> set[int]:
        """Return the trials whose states differ from sound ones only in temporary files."""
        end = max(self._sound)
        lasting = {*self._recorded.before, *self._sound[end]}
        every = {path for trial in trials for left in trial.states for path in left.items}
        if not (passing := every - lasting):
            return set()
        known: dict[object, int] = {}
        for left in self._left(self._recorded.recording):
            key = without(left.items, passing)
            known[key] = max(left.marks, known.get(key, -1))
        return {
            id(trial)
            for trial in trials
            if all(left.marks <= known.get(without(left.items, passing), -1) for left in trial.states)
        }

    def _result(self, trial: _Trial, *, is_temporary: bool) -> DoubtedDamage:
        damage, step = trial.damage, trial.damage.step
        outcome = DamageOutcome.LET_PASS
        if trial.said:
            outcome = DamageOutcome.NOTICED
        elif not trial.states:
            outcome = DamageOutcome.EQUIVALENT
        elif trial.broken or trial.is_late:
            outcome = DamageOutcome.UNDECIDED
        elif is_temporary:
            outcome = DamageOutcome.TEMPORARY
        told = DoubtedDamage(
            kind=damage.kind, what=damage.text, line=trial.line, at=str(step or ""), outcome=outcome,
            states=trial.count, judged=trial.judged, said=trial.said or trial.broken,
        )  # fmt: skip
        if outcome is not DamageOutcome.LET_PASS:
            return told
        left = trial.states[0]
        path = "" if step is None else self._last_name(step)
        return DoubtedDamage(
            kind=told.kind, what=told.what, line=told.line, at=told.at, outcome=outcome, states=told.states,
            judged=told.judged, state=left.text, differs=differing(left.items, self._like(left)),
            advice=advice(DamageKind(damage.kind), path, left.marks),
        )  # fmt: skip

    def _last_name(self, step: Step) -> str:
        """Return the name that the file of a step has in the end, or had last."""
        path = step.target or step.path
        for later in self._recorded.recording.steps:
            is_moved = later.action is Action.RENAME and later.node == step.node and later.number > step.number
            if is_moved and later.target:
                return readable(later.target)
        return readable(path)

    def _like(self, left: Left) -> Mapping[str, Item]:
        """Return the items of the sound run with as many marks, or the next fewer."""
        return self._sound[max((count for count in self._sound if count <= left.marks), default=min(self._sound))]


def _doubt(results: Sequence[DoubtedDamage]) -> Doubt:
    counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in DamageOutcome}
    noticed = counts[DamageOutcome.NOTICED]
    return Doubt(
        noticed=noticed, counted=noticed + counts[DamageOutcome.LET_PASS],
        equivalent=counts[DamageOutcome.EQUIVALENT], temporary=counts[DamageOutcome.TEMPORARY],
        undecided=counts[DamageOutcome.UNDECIDED],
        damages=tuple(sorted(results, key=lambda each: (each.outcome != DamageOutcome.LET_PASS, each.line))),
    )  # fmt: skip
