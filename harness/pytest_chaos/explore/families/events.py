"""Exploring without a recording: where there is no seccomp, a Python program is really killed at its audit events.

Audit events do not tell what is written, so no state can be built: crash points and I/O errors are
made for real, one run each, and recoveries and power losses are told to be out of reach.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.judge import Known, Pool
from pytest_chaos.explore.record import check_run, findings_of_run, of_clean_run, prepared
from pytest_chaos.explore.report import (
    CONFIRMED_BY_A_KILL,
    CONFIRMED_BY_A_RUN,
    Discovery,
    Family,
    FamilyResult,
    grouped,
)
from pytest_chaos.explore.target import CommandSubject
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.source import InjectError, KillBefore, Watch

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Options
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.source import Directive, Observation, StepSource
    from pytest_chaos.trace.step import Step

NOTE = "the steps are named audit events, not system calls: no state between them was looked at"


class EventExploration:
    """Explores a target of which only audit events are seen. ``seen`` is its clean run."""

    def __init__(self, subject: Subject, source: StepSource, options: Options, folder: Path) -> None:
        if isinstance(subject, CommandSubject):
            msg = "audit events are Python's own, and of a command only the system calls are seen: that takes seccomp"
            raise StepsUnavailable(msg)
        self._options = options
        self._steps: tuple[Step, ...] = ()
        directory = prepared(subject, folder / "clean", timeout_s=options.run_timeout_s)
        marks = folder / "clean.marks"
        self.seen: Observation = source.observe(
            subject.program(directory, marks), directory, marks=marks, timeout_s=options.run_timeout_s
        )
        check_run(self.seen)
        self._steps = tuple(step for step in self.seen.steps if not step.is_mark)
        self._known = Known(subject, source, (), self.seen.steps)
        self._folder = folder

    def explore(self) -> tuple[list[FamilyResult], tuple[Finding, ...]]:
        """Return what came of each family, and what was found of the clean run."""
        pool = Pool(self._known, self._folder, jobs=self._options.jobs, timeout_s=self._options.check_timeout_s)
        with pool:
            findings = [each for each in findings_of_run(self.seen) if "blind-spot" not in each.signature]
            findings += self._clean(pool)
            if findings:
                return [], tuple(findings)
            return [self._family(pool, family) for family in self._options.families], ()

    def _clean(self, pool: Pool) -> list[Finding]:
        found: list[Finding] = []

        def done(judgement: Judgement, _: Path) -> None:
            found.extend(map(of_clean_run, judgement.findings))

        pool.run(Watch(), done, timeout_s=self._options.run_timeout_s, compare=False)
        pool.drain()
        return found

    def _family(self, pool: Pool, family: Family) -> FamilyResult:
        if family is Family.CRASH:
            kills: list[tuple[Step, Directive]] = [(step, KillBefore(number=step.number)) for step in self._steps]
            return _Runs(pool, self._options, family, kills).explore()
        if family is Family.IO:
            errors: list[tuple[Step, Directive]] = [
                (step, InjectError(number=step.number, error="EIO")) for step in self._steps if step.path
            ]
            return _Runs(pool, self._options, family, errors).explore()
        text = f"{family} needs a recording, and so seccomp: named audit events give kills and errors only"
        problem = Finding(signature=f"harness:needs-seccomp:{family}", text=text, kind="harness", checker="explore")
        return FamilyResult(family=family, problems=(problem,))


class _Runs:
    """Real runs of one family, each under its directive."""

    def __init__(self, pool: Pool, options: Options, family: Family, planned: list[tuple[Step, Directive]]) -> None:
        self._pool = pool
        self._options = options
        self._family = family
        self._planned = planned
        self._discoveries: list[Discovery] = []
        self._problems: dict[str, Finding] = {}
        self._points = 0

    def explore(self) -> FamilyResult:
        budget_s = self._options.budget_s
        ends_s = time.monotonic() + budget_s / len(self._options.families) if budget_s is not None else float("inf")
        planned = iter(self._planned)
        while time.monotonic() < ends_s and (each := next(planned, None)) is not None:
            self._run(*each)
        self._pool.drain()
        return FamilyResult(
            family=self._family,
            states=self._points,
            points=self._points,
            points_total=len(self._planned),
            confirmed=self._points,
            is_complete=next(planned, None) is None,
            is_named=True,
            discoveries=grouped(self._discoveries),
            problems=tuple(self._problems.values()),
        )

    def _run(self, step: Step, directive: Directive) -> None:
        def done(judgement: Judgement, _: Path) -> None:
            self._judge(step, judgement)

        self._pool.run(directive, done, timeout_s=self._options.run_timeout_s, compare=False)

    def _judge(self, step: Step, judgement: Judgement) -> None:
        if not judgement.fired:
            text = f"nothing happened at event {step}: {judgement.failure or 'the program never came there'}"
            finding = Finding(signature="harness:diverged", text=text, kind="harness", checker="explore")
            self._problems.setdefault(finding.signature, finding)
            return
        self._points += 1
        for found in judgement.findings:
            if found.kind == "harness":
                self._problems.setdefault(found.signature, found)
            else:
                self._discoveries.append(self._discovery(step, judgement, found))

    def _discovery(self, step: Step, judgement: Judgement, found: Finding) -> Discovery:
        is_kill = self._family is Family.CRASH
        return Discovery(
            signature=found.signature,
            kind=found.kind,
            text=found.text,
            step=step.number,
            code=f"{self._family}:{step.number}" + ("" if is_kill else ":EIO"),
            state=f"killed at event {step}" if is_kill else f"event {step} failed with EIO",
            label=CONFIRMED_BY_A_KILL if is_kill else CONFIRMED_BY_A_RUN,
            marks=judgement.marks,
        )
