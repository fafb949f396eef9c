"""Exploration without seccomp: a Python program is really killed at its audit events.

Audit events do not say what is written, so no state can be built. Crash points and I/O errors are
made for real, one run each; recoveries and power losses are out of reach, and reported so.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.families import FAMILIES
from pytest_chaos.explore.judge import Judgement, Pool, StateTask
from pytest_chaos.explore.record import (
    Known,
    check_marks,
    check_run,
    clean_run,
    findings_of_run,
    of_clean_run,
    prepared,
)
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, CONFIRMED_BY_A_RUN, Family, FamilyResult
from pytest_chaos.explore.session import Session
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.folder import read_folder
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.explore.target import CommandSubject
from pytest_chaos.trace.source import InjectError, KillBefore, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.session import Collector, Progress
    from pytest_chaos.explore.simulate.state import Item
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Finding
    from pytest_chaos.trace.source import Directive, Observation, StepSource
    from pytest_chaos.trace.step import Step

NOTE = "the steps are named audit events, not system calls: no state between them was looked at"


class _Event(NamedTuple):
    step: Step
    directive: Directive


def observe_events(subject: Subject, source: StepSource, options: Options, folder: Path) -> Observation:
    """Run the target without any fault, and return its audit events.

    Raises ExplorationError, and StepsUnavailable for a target that is a command.
    """
    if isinstance(subject, CommandSubject):
        msg = "a command has no audit events, which are Python's own: to see its steps takes seccomp"
        raise StepsUnavailable(msg)
    seen = clean_run(subject, source, folder, "clean", timeout_s=options.run_timeout_s)
    check_run(seen)
    check_marks(folder / "clean.marks")
    return seen


def explore_events(
    subject: Subject,
    source: StepSource,
    options: Options,
    folder: Path,
    seen: Observation,
    deadline_s: float,
    listen: Callable[[Progress], None],
) -> tuple[list[FamilyResult], tuple[Finding, ...]]:
    """Explore a target at its audit events.

    Return the results of its families, and the findings of its clean run.
    """
    known = Known(subject, source, (), seen.steps)
    begun = prepared(subject, folder / "begun", timeout_s=options.run_timeout_s)
    with (
        contextlib.closing(PageStore(folder)) as store,
        Pool(known, folder, jobs=options.jobs, timeout_s=options.check_timeout_s) as pool,
    ):
        task = _Task(read_folder(begun, store), options)
        findings = [each for each in findings_of_run(seen) if "blind-spot" not in each.signature]
        clean = pool.judge(task.of(Watch()))
        findings += map(of_clean_run, clean.findings)
        if findings:
            return [], tuple(findings)
        session = Session(options, pool, folder, deadline_s=deadline_s, listen=listen)
        steps = [step for step in seen.steps if not step.is_mark]
        return [_explore_family(session, family, steps, task) for family in options.families], ()


class _Task(NamedTuple):
    """A run of the target in a folder that holds what its setup left."""

    items: Mapping[str, Item]
    options: Options

    def of(self, directive: Directive) -> StateTask:
        """Return the task of a run that is killed, failed or watched as the directive says."""
        return StateTask(self.items, directive=directive, run_timeout_s=self.options.run_timeout_s, is_compared=False)


def _explore_family(session: Session, family: Family, steps: list[Step], task: _Task) -> FamilyResult:
    if family is Family.CRASH:
        found = session.collector(family, _coverage)
        return _explored(found, task, [_Event(step, KillBefore(number=step.number)) for step in steps])
    found = session.collector(family, FAMILIES[family].coverage)
    if family is Family.IO:
        return _explored(
            found, task, [_Event(step, InjectError(number=step.number, error="EIO")) for step in steps if step.path]
        )
    text = f"{family} needs a recording, and so seccomp: named audit events give kills and errors only"
    found.fail(f"harness:needs-seccomp:{family}", text)
    return found.finish()


def _coverage(result: FamilyResult) -> str:
    return f"{result.points:,} of {result.points_total:,} named events"


def _explored(found: Collector, task: _Task, events: list[_Event]) -> FamilyResult:
    found.total = found.points_total = len(events)
    for event, judgement in found.answers(events, lambda event: task.of(event.directive)):
        _judge(found, event.step, judgement)
    return found.finish()


def _judge(found: Collector, step: Step, judgement: Judgement) -> None:
    if not judgement.fired:
        text = f"nothing happened at event {step}: {judgement.failure or 'the program never came there'}"
        found.fail("harness:diverged", text)
        return
    found.done += 1
    found.states += 1
    found.confirmed += 1
    found.count_violated(judgement.findings)
    is_kill = found.family is Family.CRASH
    code = f"{found.family}:{step.number}" + ("" if is_kill else ":EIO")
    text = f"killed at event {step}" if is_kill else f"event {step} failed with EIO"
    state = State(code, step.number, judgement.marks, {}, text=text)
    for finding in judgement.findings:
        found.note(finding, state, label=CONFIRMED_BY_A_KILL if is_kill else CONFIRMED_BY_A_RUN)
