"""One process dies and the others live on: a part of *crash*, with ``--victim each`` or a name.

What the others do then is theirs, so nothing can be built: the program really runs, for each step
and each of its processes. It ends when the others have ended; others that wait for the dead one
for ever are a finding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.families.rerun import rebuilt_by_run
from pytest_chaos.explore.families.sites import planned, settle
from pytest_chaos.explore.judge import StateTask, why_unended
from pytest_chaos.explore.options import ALL, EACH
from pytest_chaos.explore.report import CONFIRMED_BY_A_RUN, ExplorationError
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.session import Collector
    from pytest_chaos.trace.step import ProcessSeen

HANGS: Final = "liveness:hangs-without-a-process"
_CODE: Final = re.compile(r"crash:(\d+)!(\d+)")


class Victim(NamedTuple):
    """The death of process number ``process`` before a step."""

    step: int
    process: int

    @property
    def code(self) -> str:
        """The code of the state that it leaves: ``crash:12!2``."""
        return f"crash:{self.step}!{self.process}"

    @property
    def text(self) -> str:
        """The death in words."""
        return f"process {self.process} alone was killed before step {self.step}"

    @property
    def directive(self) -> KillBefore:
        """The directive to the source of steps."""
        return KillBefore(number=self.step, process=self.process)


def victim_of(code: str) -> Victim | None:
    """Return the victim of a code; None for the code of another state.

    >>> victim_of("crash:12!2")
    Victim(step=12, process=2)
    """
    match = _CODE.fullmatch(code)
    return Victim(int(match[1]), int(match[2])) if match else None


def named(recorded: Recorded, name: str) -> list[ProcessSeen]:
    """Return the processes of this name; none for ``all`` and ``each``.

    Raises ExplorationError for a name that no process has.
    """
    if name in {ALL, EACH}:
        return []
    if found := [process for process in recorded.processes if process.is_called(name)]:
        return found
    there = ", ".join(map(str, recorded.processes))
    msg = f"victim must be {ALL}, {EACH}, or the name of a process; got {name!r}. This program has {there}"
    raise ExplorationError(msg, signature="harness:unknown-victim")


def victims(recorded: Recorded, name: str) -> list[Victim]:
    """Return each process at each step from its first one on; of one process alone, none.

    With a name, that of processes of this name only; they need not make a step.
    """
    since = {1: 1} if name == EACH else {each.number: each.since for each in named(recorded, name)}
    if name == EACH:
        for step in recorded.recording.steps:
            since.setdefault(step.process, step.number)
    if name == EACH and len(since) == 1:
        return []
    calls = [step for step in recorded.recording.durable() if not step.look]
    return [
        Victim(step.number, process)
        for step in calls
        for process, first in sorted(since.items())
        if first <= step.number
    ]


def explore_victims(recorded: Recorded, found: Collector) -> None:
    """Run the program for each victim, or for a sample, and judge what the others left."""
    options = found.session.options
    every = victims(recorded, options.victim)
    plan = planned(recorded, found, every, lambda victim: victim.step, lambda victim: victim.process)
    found.is_sampled |= len(plan.faults) < len(every)
    found.total += len(plan.faults)
    found.points_total += len(every)
    is_first_complete = found.is_complete
    tried: list[int] = []
    bounds_s: dict[int, float] = {}

    def task_of(numbered: tuple[int, Victim]) -> StateTask:
        bounds_s[numbered[0]] = found.bound_s(recorded)
        return StateTask(
            recorded.before,
            directive=numbered[1].directive,
            run_timeout_s=bounds_s[numbered[0]],
            is_compared=False,
            is_expected=recorded.is_repeatable,
            code=numbered[1].code,
        )

    def handed_in() -> Iterator[tuple[int, Victim]]:
        for numbered in enumerate(plan.faults):
            yield numbered
            found.done += 1

    for (place, victim), judgement in found.answers(handed_in(), task_of):
        if not found.is_cut_short(judgement, bounds_s[place]):
            _judge(recorded, found, victim, judgement)
        tried.append(place)
    if is_first_complete:
        settle(found, plan, tried)


def _judge(recorded: Recorded, found: Collector, victim: Victim, judgement: Judgement) -> None:
    if not judgement.fired:  # the process had ended before: nobody died, so there is no such point
        found.done -= 1
        found.total -= 1
        found.points_total -= 1
        return
    found.states += 1
    found.confirmed += 1
    state = State(victim.code, victim.step, judgement.marks, {}, text=victim.text)
    findings = list(judgement.findings)
    if judgement.is_timed_out:
        why = why_unended(judgement.waits, found.session.options.run_timeout_s)
        text = f"the other processes {why} once {victim.text}"
        findings.append(Finding(signature=HANGS, text=text, kind="liveness", checker="explore"))
    found.count_violated(findings)
    place = found.place(recorded, judgement)
    for finding in findings:
        found.note(finding, state, label=CONFIRMED_BY_A_RUN, folder=judgement.kept, place=place)


def rebuild_victim(recorded: Recorded, victim: Victim, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Kill the process once more; return what the others left. None if it did not come to that."""
    return rebuilt_by_run(recorded, victim.directive, victim.text, folder, timeout_s=timeout_s)
