"""The crash family: the process dies at each durable step; real kills confirm built states."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.families.stores import explore_stores
from pytest_chaos.explore.families.victim import explore_victims, rebuild_victim, victim_of
from pytest_chaos.explore.judge import Judgement, StateTask
from pytest_chaos.explore.options import ALL
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, CONFIRMED_BY_A_RUN, FamilyResult
from pytest_chaos.explore.simulate.crash import crash_states, find_crash
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.session import Collector

TITLE: Final = "survives a kill at every durable step"


def explore(recorded: Recorded, found: Collector) -> None:
    """Judge the state before each step and within each large write.

    Real kills confirm the findings, and a sample of the states without one.
    """
    _Crashes(recorded, found).explore()
    explore_stores(recorded, found)
    if found.session.options.victim != ALL and recorded.schedule is None:
        explore_victims(recorded, found)


def rebuild(recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Build the state of a code again."""
    if (victim := victim_of(code)) is not None:
        return rebuild_victim(recorded, victim, folder, timeout_s=timeout_s)
    state = find_crash(recorded.recording, recorded.store, code, recorded.seed)
    return None if state is None else recorded.rebuilt(state)


def coverage(result: FamilyResult) -> str:
    """Return the coverage in words."""
    at = f", deaths at {result.sites:,} of {result.sites_total:,} call sites" if result.sites_total else ""
    return f"{result.points:,} of {result.points_total:,} crash points{' (sampled)' if result.is_sampled else ''}{at}"


class _Kill(NamedTuple):
    """A real kill before a step; ``signature`` is the finding to confirm, or empty."""

    step: int
    signature: str = ""


class _Crashes:
    def __init__(self, recorded: Recorded, found: Collector) -> None:
        self._recorded = recorded
        self._found = found
        self._options = found.session.options
        self._built: dict[int, State] = {}
        self._parted: list[_Kill] = []
        """Kills of runs that went their own way, though none had before: to be made once more."""
        found.total = found.points_total = recorded.steps

    def explore(self) -> None:
        shown: dict[tuple[str, str], int] = {}
        """The first step at which a kill leaves a state that shows a signature in this text."""
        for state, judgement in self._found.judged(self._states()):
            for finding in judgement.findings if state.kill else ():
                said = (finding.signature, finding.text)
                shown[said] = min(state.step, shown.get(said, state.step))
        known = {(each.signature, each.text) for each in self._found.grouped()}
        kills = [_Kill(step, said[0]) for said, step in sorted(shown.items()) if said in known]
        confirmed = self._kills(kills[: self._options.confirmations])
        for kill, judgement in self._found.session.pool.answers(confirmed, self._task_of):
            self._compare(kill, judgement)
        if self._parted:
            self._recorded.is_repeatable = False
            for kill, judgement in self._found.session.pool.answers(tuple(self._parted), self._task_of):
                self._compare(kill, judgement)

    def _states(self) -> Iterator[State]:
        sizes = self._steps_of_states()
        recorded = self._recorded
        for state in self._found.in_order(lambda: crash_states(recorded.recording, recorded.store, recorded.seed)):
            if state.stored is not None:
                continue
            yield state
            if state.code == f"crash:{state.step}":
                self._found.done += sizes[state.step]
            if state.kill:
                self._built[state.step] = State(state.code, state.step, state.marks, {}, text=str(state), kill=True)

    def _steps_of_states(self) -> Counter[int]:
        """Return the steps that each state stands for: all stores of a look have one state."""
        firsts: dict[int, int] = {}
        durable = self._recorded.recording.durable()
        return Counter(firsts.setdefault(step.look, step.number) if step.look else step.number for step in durable)

    def _kills(self, kills: list[_Kill]) -> Iterator[_Kill]:
        """Yield the kills that are to confirm findings, then a sample of the other steps."""
        yield from kills
        randomness = stream(self._options.seed, "explore", "confirm")
        steps = sorted(self._built, key=lambda _: randomness.random())
        for step in sorted(steps[: self._options.confirmations]):
            if self._found.is_over:
                return
            yield _Kill(step)

    def _task_of(self, kill: _Kill) -> StateTask:
        directive = KillBefore(number=kill.step)
        return StateTask(
            self._recorded.before,
            directive=directive,
            run_timeout_s=self._options.run_timeout_s,
            is_expected=self._recorded.is_repeatable,
            code=f"kill:{kill.step}",
        )

    def _compare(self, kill: _Kill, judgement: Judgement) -> None:
        if judgement.is_out_of_time:
            return  # a kill that is not made confirms nothing, and takes nothing back
        step, built = kill.step, self._built[kill.step]
        has_other_marks = judgement.fired and not judgement.differences and judgement.marks != built.marks
        if self._recorded.is_repeatable and (judgement.diverged_at is not None or has_other_marks):
            self._parted.append(kill)  # who marks may be another process than the one that makes steps
        elif not self._recorded.is_repeatable and not judgement.fired:
            return  # this run ended before it came so far
        elif not self._recorded.is_repeatable and (judgement.diverged_at or judgement.marks != built.marks):
            self._take_own(kill, judgement)
        elif not judgement.fired:
            text = f"the real kill at step {step} did not come about: {judgement.failure or 'the run ended before it'}"
            self._found.fail("harness:diverged", text)
        elif judgement.differences:
            text = (
                f"a real kill before step {step} left another state than its recording gives "
                f"({'; '.join(judgement.differences)}): the program writes in a way that cannot be seen"
            )
            self._found.fail("harness:replay-differs", text)
        else:
            self._found.confirmed += 1
            self._agree(kill, judgement)

    def _take_own(self, kill: _Kill, judgement: Judgement) -> None:
        """Keep the findings of a kill in another run, which were judged with its own marks."""
        if judgement.differences:
            text = f"a real kill left another state than the recording of that run gives: {judgement.differences[0]}"
            self._found.fail("harness:replay-differs", text)
            return
        self._found.confirmed += 1
        text = f"killed before step {kill.step} of a run of its own"
        state = State(f"kill:{kill.step}", kill.step, judgement.marks, {}, text=text)
        place = self._found.place(self._recorded, judgement)
        for finding in judgement.findings:
            self._found.note(finding, state, label=CONFIRMED_BY_A_RUN, states=0, folder=judgement.kept, place=place)

    def _agree(self, kill: _Kill, judgement: Judgement) -> None:
        """Keep the findings of the real state; they may differ from those of the built one."""
        for finding in judgement.findings:
            self._found.note(finding, self._built[kill.step], label=CONFIRMED_BY_A_KILL, states=0)
        if kill.signature and kill.signature not in {finding.signature for finding in judgement.findings}:
            text = (
                f"the check found {kill.signature} in the built state before step {kill.step}, and not in the same "
                "state after a real kill: the check depends on more than the directory and the marks"
            )
            self._found.fail("harness:check-not-deterministic", text)
