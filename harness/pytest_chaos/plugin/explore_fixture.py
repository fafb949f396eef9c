"""The fixture ``explore``: an exploration as part of a run, in its matrix row and evidence pack.

Each family becomes a receipt and a key assertion with its coverage, each finding a finding of the
run. The recording, the failing states and their reproductions go into the evidence pack.
"""

from __future__ import annotations

import inspect
import os
import shlex
from typing import TYPE_CHECKING, Any

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.families import FAMILIES
from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import (
    ALL,
    CHECK_TIMEOUT_S,
    CONFIRMATIONS,
    IO_RUNS,
    RECOVERIES,
    RUN_TIMEOUT_S,
    Options,
)
from pytest_chaos.explore.report import INTERRUPTED, Exploration, Family
from pytest_chaos.explore.simulate.power import SAMPLES, Model
from pytest_chaos.explore.target import load_subject, subject_of
from pytest_chaos.model.values import Assertion, Receipt, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_chaos.explore.report import FamilyResult
    from pytest_chaos.runtime.run import Run

FAULTS: tuple[str, ...] = tuple(str(family) for family in Family)


class Explore:
    """Explores targets within a run. Tests get it as the fixture ``explore`` and call it."""

    def __init__(self, run: Run, *, cluster: str = "") -> None:
        self._run = run
        self._cluster = cluster
        self._count = 0

    def __call__(
        self,
        target: object,
        *,
        check: Callable[..., Any] | None = None,
        name: str = "",
        faults: Iterable[str] = FAULTS,
        watch: Iterable[str] = (),
        model: str = "both",
        jobs: int = 1,
        budget_s: float | None = None,
        samples: int = SAMPLES,
        confirmations: int = CONFIRMATIONS,
        recoveries: int = RECOVERIES,
        io_runs: int = IO_RUNS,
        schedules: int = 0,
        victim: str = ALL,
        ignore: Iterable[str] = (),
        volatile: Iterable[str] = (),
        run_timeout_s: float = RUN_TIMEOUT_S,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        cluster: str | None = None,
        judge: bool = True,
    ) -> Exploration:
        """Explore ``target``, make the result part of the run, and return it.

        ``target`` is a class, an object, ``"module:Target"``, or a function together with
        ``check``; ``model`` is strict, ext4 or both; ``ignore`` and ``volatile`` are patterns of
        files that are no data; ``watch="sqlite"`` finds what corrupts a SQLite database.
        ``cluster`` is the address of a cluster that judges, by default that of the session
        (``--chaos-cluster``); with an empty one this machine does. With
        ``judge=False`` violations are returned and do not fail the run, for a test that expects
        them; an undecided exploration fails it all the same. Raises UsageError for a target that
        cannot be explored and for wrong options.
        """
        subject = load_subject(target) if isinstance(target, str) else subject_of(target, check=check, name=name)
        self._count += 1
        iteration = f".{self._run.iteration}" if self._run.iteration else ""
        options = Options(
            seed=f"{self._run.seed}{iteration}",
            families=_families(faults),
            watch=_patterns(watch),
            models=_models(model),
            jobs=jobs,
            budget_s=budget_s,
            samples=samples,
            confirmations=confirmations,
            recoveries=recoveries,
            io_runs=io_runs,
            schedules=schedules,
            victim=victim,
            ignore=_patterns(ignore),
            volatile=_patterns(volatile),
            run_timeout_s=run_timeout_s,
            check_timeout_s=check_timeout_s,
            kept=self._run.attachments / f"exploration-{self._count}",
            kept_as=f"attachments/exploration-{self._count}",
            command=_command_for(target),
            cluster=self._cluster if cluster is None else cluster,
        )
        explored = launch(subject, options)
        self._take_over(explored, judge=judge)
        if any(finding.signature == INTERRUPTED for finding in explored.findings):
            raise KeyboardInterrupt  # Ctrl-C is for the session, not only this test
        return explored

    def _take_over(self, explored: Exploration, *, judge: bool) -> None:
        for family in explored.families:
            if family.unexplored:  # the note says why; where it is all there is, so does a finding
                continue
            self._run.receive(_receipt(explored, family))
            if judge:
                holds = family.verdict is not Verdict.VIOLATED
                name = f"{explored.target}: {FAMILIES[family.family].TITLE}"
                self._run.receive_assertion(Assertion(name=name, observed=family.outcome, holds=holds))
        findings = [each for each in explored.all_findings if judge or each.kind == "harness"]
        self._run.check(list(dict.fromkeys(findings)))
        self._run.note(f"exploration {self._count}: {explored.target}", _noted(explored))


def _command_for(target: object) -> str:
    """Return the start of the command that explores this target outside the test, or empty."""
    if isinstance(target, str):
        return f"chaos explore {shlex.quote(target)}"
    if not inspect.isclass(target) or "<locals>" in target.__qualname__:
        return ""
    try:
        file = os.path.relpath(inspect.getfile(target))
    except (TypeError, OSError, ValueError):  # it was not defined in a file
        return ""
    return f"chaos explore {shlex.quote(f'{file}:{target.__qualname__}')}"


def _families(faults: Iterable[str]) -> tuple[Family, ...]:
    asked = (faults,) if isinstance(faults, str) else tuple(faults)
    if unknown := sorted(set(asked) - set(FAULTS)):
        msg = f"faults must be some of {', '.join(FAULTS)}; got {unknown[0]!r}"
        raise UsageError(msg)
    return tuple(family for family in Family if str(family) in asked)


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _models(model: str) -> tuple[Model, ...]:
    if model == "both":
        return tuple(Model)
    if model not in set(Model):
        msg = f"model must be strict, ext4 or both; got {model!r}"
        raise UsageError(msg)
    return (Model(model),)


def _receipt(explored: Exploration, family: FamilyResult) -> Receipt:
    """Return the receipt of a family: it fired when something was really judged."""
    confirmed = f"{family.confirmed} of them by real processes" if family.confirmed else "as modelled"
    return Receipt(
        kind=f"explore:{family.family}",
        agent=explored.target,
        when=f"at each of {explored.steps} durable steps",
        fired=family.points > 0,
        evidence=f"{family.coverage}; {family.states:,} states judged, {confirmed}",
    )


def _noted(explored: Exploration) -> dict[str, object]:
    reproductions: Sequence[str] = [found.reproduction for found in explored.discoveries[:10]]
    return {
        "coverage": explored.coverage,
        "verdict": str(explored.verdict),
        "steps": explored.steps,
        "seed": explored.seed,
        "source": explored.source,
        "duration_s": round(explored.duration_s, 3),
        "notes": list(explored.notes),
        "reproductions": list(reproductions),
    }
