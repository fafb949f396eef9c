"""One process dies and the others live on: a part of the family *crash*, with ``--victim each``.

What the others do then is theirs, so nothing can be built: the program really runs, for each step
and each of its processes. It ends when the others have ended; others that wait for the dead one
for ever are a finding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.families.rerun import rebuilt_by_run
from pytest_chaos.explore.judge import StateTask, why_unended
from pytest_chaos.explore.report import CONFIRMED_BY_A_RUN
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.session import Collector

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


def victims(recorded: Recorded) -> list[Victim]:
    """Return each process at each step from its first one on; of one process alone, none."""
    known = {1}
    found = []
    for step in recorded.recording.steps:
        known.add(step.process)
        if not step.is_mark and not step.look:
            found += [Victim(step.number, process) for process in sorted(known)]
    return found if len(known) > 1 else []


def explore_victims(recorded: Recorded, found: Collector) -> None:
    """Run the program for each victim, or for a sample, and judge what the others left."""
    options = found.session.options
    planned = chosen = victims(recorded)
    if len(planned) > options.io_runs:
        order = stream(options.seed, "explore", "victims").sample(range(len(planned)), options.io_runs)
        chosen = [planned[place] for place in sorted(order)]
        found.is_sampled = True
    found.total += len(chosen)
    found.points_total += len(planned)

    def task_of(victim: Victim) -> StateTask:
        return StateTask(
            recorded.before,
            directive=victim.directive,
            run_timeout_s=options.run_timeout_s,
            is_compared=False,
            is_expected=recorded.is_repeatable,
        )

    def handed_in() -> Iterator[Victim]:
        for victim in chosen:
            yield victim
            found.done += 1

    for victim, judgement in found.answers(handed_in(), task_of):
        _judge(found, victim, judgement)


def _judge(found: Collector, victim: Victim, judgement: Judgement) -> None:
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
    for finding in findings:
        found.note(finding, state, label=CONFIRMED_BY_A_RUN, folder=judgement.kept)


def rebuild_victim(recorded: Recorded, victim: Victim, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Kill the process once more; return what the others left. None if it did not come to that."""
    return rebuilt_by_run(recorded, victim.directive, victim.text, folder, timeout_s=timeout_s)
