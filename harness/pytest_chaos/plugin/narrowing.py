"""Narrowing: a replayed test is executed again and again, with a variant each time.

The first execution is the run of the pack as it is. Then ``narrow`` asks for one variant after the
other, and the whole protocol of the test is executed for each, with fixtures of its own. No
evidence is packed, nothing is replayed, and the answer goes into a pipe.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from pytest_chaos.errors import ChaosError
from pytest_chaos.faults.proxy import DELIVERY_NOTE
from pytest_chaos.model.values import Verdict
from pytest_chaos.narrow import explain, python, session as sessions, shrink
from pytest_chaos.narrow.trial import Spent, Trials
from pytest_chaos.narrow.variant import (
    AgentMoment,
    Heard,
    Narrowed,
    NarrowOrder,
    RunVariant,
    TrialOutcome,
    TrialRun,
    cause,
    of_pack,
    of_record,
    violations,
)
from pytest_chaos.plugin.runs import REPORTED, RUN, VARIANT
from pytest_chaos.workloads.given import smallest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pytest_chaos.model.values import Json
    from pytest_chaos.plugin.session import ChaosSession
    from pytest_chaos.runtime.run import Run

_NARROWED: Final = pytest.StashKey[bool]()
_LINE_S: Final = 0.2
"""How often it is told how far the narrowing is."""
_INSTALLED: Final = {"site-packages", "dist-packages"}


class Narrowing:
    """The hooks that execute a test with variants, as an order asks."""

    def __init__(self, session: ChaosSession, order: NarrowOrder, pipe: int) -> None:
        self._session = session
        self._order = order
        self._pipe = pipe
        self._told_s = 0.0
        self._wanted = order.finding
        self._seen: TrialRun | None = None
        self._strategies: dict[str, Any] = {}
        self._nextitem: pytest.Item | None = None

    @classmethod
    def ordered(cls, session: ChaosSession) -> Narrowing | None:
        """Return the narrowing that this process was started for, if any."""
        try:
            given = sessions.order_from_environment()
            if given is None:
                return None
            pipe, path = given
            order = msgspec.json.decode(path.read_bytes(), type=NarrowOrder)
        except (ChaosError, OSError, msgspec.DecodeError) as error:
            raise pytest.UsageError(str(error)) from None
        return cls(session, order, pipe)

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Stay in this process, also where the project's options ask for xdist."""
        if hasattr(config.option, "numprocesses"):
            config.option.numprocesses = None
            config.option.dist, config.option.tx = "no", []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Execute the test of the pack with one variant after the other."""
        if _NARROWED in item.stash or self._session.replayed is None:
            return (yield)
        item.stash[_NARROWED] = True
        self._nextitem = nextitem
        pack = self._session.replayed
        item.stash[VARIANT] = start = self._order.start or of_pack(pack)
        found = violations(pack.findings)
        self._wanted = self._wanted or (cause(found[0]) if found else "")
        result = yield
        made = [self._take(item)] if self._order.kind != "sweep" else []  # its first run is a survey

        def execute(variant: RunVariant) -> TrialRun:
            seen = made.pop() if made else self._execute(item, variant)
            self._tell(trials, variant)
            return seen

        trials = Trials(execute, tries=self._order.tries, seconds=self._order.seconds, clock=time.monotonic)
        try:
            answer = self._answer(item, trials, start)
        except ChaosError as error:
            answer = Narrowed(problem=str(error), is_whole=False)
        except Spent:
            why = f"the budget of {self._order.tries} runs and {self._order.seconds:g} s is used up"
            answer = Narrowed(
                problem=f"{why} before there was an answer", outcomes=dict(trials.outcomes), is_whole=False
            )
        if not self._session.interrupts.came:
            self._write(Heard(runs=trials.runs, answer=self._checked(answer)))
        return result

    def _answer(self, item: pytest.Item, trials: Trials, start: RunVariant) -> Narrowed:
        order = self._order
        if order.kind == "repeat":
            return shrink.repeat(trials, start, order.each, stop_at_first=order.stop_at_first)
        if order.kind == "explain":
            return explain.explain(trials, start, fault=order.fault, each=order.each, moments=order.moments)
        if order.kind == "sweep":
            return explain.sweep(trials, start, fault=order.fault, moments=order.moments)
        answer = shrink.shrink(trials, start, smallest=self._smallest)
        if answer.shrunk is None or answer.variant is None:
            return answer
        shrunk = msgspec.structs.replace(answer.shrunk, test=self._pasted(item, answer.variant))
        return msgspec.structs.replace(answer, shrunk=shrunk)

    def _smallest(self, name: str, is_wrong: Callable[[Json], bool], known: Json) -> Json:
        from pytest_chaos.model.seed import stream

        pack = self._session.replayed
        assert pack is not None  # noqa: S101 - a narrowing is a replay
        randomness = stream(pack.seed, pack.node_id, pack.iteration, "draw", name)
        return smallest(self._strategies[name], is_wrong, known, randomness)

    def _execute(self, item: pytest.Item, variant: RunVariant) -> TrialRun:
        item.stash[VARIANT] = variant
        with contextlib.suppress(KeyError):
            del item.stash[RUN]
        item.stash[REPORTED] = False
        item.user_properties.clear()
        self._seen = None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=self._nextitem)
        return self._take(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take what a run showed, before its fixtures are torn down."""
        report = yield
        run = item.stash.get(RUN, None)
        if run is not None and call.when == "call":
            self._seen = self._seen_in(run, is_survey=item.stash[VARIANT].survey)
            self._strategies |= run.given.strategies
        elif self._seen is None and report.outcome != "passed":
            self._seen = TrialRun(outcome=TrialOutcome.UNANSWERED, why=_said(report))
        return report

    def _take(self, item: pytest.Item) -> TrialRun:
        if self._seen is None:
            return TrialRun(outcome=TrialOutcome.UNANSWERED, why=f"{item.name} made no run")
        return self._seen

    def _seen_in(self, run: Run, *, is_survey: bool) -> TrialRun:
        record = run.conclude()
        if record.verdict is Verdict.INCONCLUSIVE and self._session.interrupts.came:
            raise KeyboardInterrupt
        seen = of_record(record, self._wanted)
        marks = run.history.marks
        deliveries = sum(mark.operation == DELIVERY_NOTE for mark in marks)
        if not is_survey:
            return msgspec.structs.replace(seen, deliveries=deliveries)
        moments = tuple(_moments(run))
        problem = run.steps.problem
        return msgspec.structs.replace(seen, deliveries=deliveries, moments=moments, problem=problem)

    def _pasted(self, item: pytest.Item, variant: RunVariant) -> str:
        """Return the test to paste, with what is to be known of it in comments."""
        pack = self._session.replayed
        function = getattr(item, "function", None)
        if function is None or pack is None:
            return ""
        function = inspect.unwrap(function)
        code = python.pasted(
            function, variant, node_id=pack.node_id, seed=pack.seed, iteration=pack.iteration,
            parameters=_direct_parameters(item),
        )  # fmt: skip
        file = pack.node_id.partition("::")[0]
        return f"# Paste it into {python.where_to_paste(function, file)}.\n{code}"

    def _checked(self, answer: Narrowed) -> Narrowed:
        """Return the answer, or a problem if code came from a folder that is not to be judged."""
        if not self._order.checkout:
            return answer
        checkout = Path(self._order.checkout)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not file or (path := Path(file)).parts is None or _INSTALLED & set(path.parts):
                continue
            if path.is_relative_to(checkout):
                problem = f"the module {name} was imported from the checkout ({file}), not from the commit"
                return Narrowed(problem=problem, outcomes=answer.outcomes, is_whole=False)
        return answer

    def _tell(self, trials: Trials, variant: RunVariant) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < _LINE_S:
            return
        self._told_s = now_s
        faults = len(shrink.faults_of(variant))
        self._write(Heard(runs=trials.runs, text=f"{faults} fault{'' if faults == 1 else 's'}"))

    def _write(self, line: Heard) -> None:
        try:
            left = msgspec.json.encode(line) + b"\n"
            while left:
                left = left[os.write(self._pipe, left) :]
        except BrokenPipeError:
            pytest.exit("nobody listens to the narrowing any more", returncode=2)


def _direct_parameters(item: pytest.Item) -> dict[str, object]:
    """Return the parameters of a test that are arguments of its function, and no fixture's."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    names: set[str] = set()
    for mark in item.iter_markers("parametrize"):
        argnames = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
        listed = [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)
        indirect = mark.kwargs.get("indirect", False)
        by_fixture = listed if indirect is True else list(indirect or ())
        names |= set(listed) - set(by_fixture)
    return {name: value for name, value in given.items() if name in names}


def _moments(run: Run) -> Iterator[AgentMoment]:
    """Yield the steps and marks of a survey in their order; marks alone where no step is seen."""
    from pytest_chaos.model.values import MarkKind

    items, lines = run.trail()
    seen = items or [(None, mark) for mark in run.history.marks]
    for step, mark in seen:
        if step is not None:
            text = f"{step.name} {step.path or '.'}"
            yield AgentMoment(kind=explain.STEP, name=step.name, agent=step.agent, text=text, line=step.line)
        elif mark is not None and mark.kind is not MarkKind.NOTE:
            key = "" if mark.key is None else f" {mark.key}"
            yield AgentMoment(
                kind="mark", name=str(mark.kind), agent=mark.agent, text=f"{mark.kind} {mark.operation}{key}",
                operation=mark.operation, line=lines.get(mark.order, ""),
            )  # fmt: skip


def _said(report: pytest.TestReport) -> str:
    text = report.longreprtext.strip() if report.failed else str(report.longrepr)
    lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
    return " ".join(lines[-1].split())[:300] if lines else str(report.outcome)
