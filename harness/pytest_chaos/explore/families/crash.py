"""The family *crash*: the process dies at each durable step. What is built is compared with what real kills leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, Family, FamilyResult, grouped
from pytest_chaos.explore.session import Hearing
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Session


class _Built(NamedTuple):
    """What a real kill before one step has to come to: so many marks, and the state of this code."""

    marks: int
    code: str


def explore_crashes(session: Session) -> FamilyResult:
    """Judge the state before each step and within each large write; confirm findings, and a sample of the rest."""
    return _Crashes(session).explore()


class _Crashes:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._hearing = Hearing(session, Family.CRASH)
        self._hearing.total = self._hearing.points_total = session.recorded.steps
        self._built: dict[int, _Built] = {}
        self._shown: dict[str, int] = {}
        self._confirmed = 0

    def explore(self) -> FamilyResult:
        is_complete = self._build()
        self._hearing.settle()
        if self._built:
            self._confirm()
        return self._hearing.finish(
            FamilyResult(
                family=Family.CRASH,
                points=len(self._built),
                points_total=self._session.recorded.steps,
                confirmed=self._confirmed,
                is_complete=is_complete,
            )
        )

    def _build(self) -> bool:
        recorded = self._session.recorded
        for state in crash_states(recorded.recording, recorded.store):
            if self._session.is_over:
                return False
            self._hearing.judge(state, heard=self._remember)
            if state.kill:
                self._built[state.step] = _Built(state.marks, state.code)
                self._hearing.done = len(self._built)
        return True

    def _remember(self, state: State, judgement: Judgement) -> None:
        """Keep the first step at which a real kill leaves the state that shows a signature."""
        if state.kill:
            for finding in judgement.findings:
                self._shown[finding.signature] = min(state.step, self._shown.get(finding.signature, state.step))

    def _confirm(self) -> None:
        """Really kill the program where something was found, and at some other steps."""
        signatures = {found.signature for found in grouped(self._hearing.discoveries)}
        shown = [(signature, step) for signature, step in self._shown.items() if signature in signatures]
        for signature, step in sorted(shown)[: self._session.options.confirmations]:
            self._kill_at(step, signature)
        for step in self._sample():
            if self._session.is_over:
                break
            self._kill_at(step, "")
        self._session.pool.drain()

    def _sample(self) -> list[int]:
        randomness = stream(self._session.options.seed, "explore", "confirm")
        steps = sorted(self._built, key=lambda _: randomness.random())
        return sorted(steps[: self._session.options.confirmations])

    def _kill_at(self, step: int, signature: str) -> None:
        session = self._session

        def heard(judgement: Judgement, _: Path) -> None:
            self._compare(step, judgement, signature)

        directive = KillBefore(number=step)
        session.pool.run(directive, heard, timeout_s=session.options.run_timeout_s, items=session.recorded.before)

    def _compare(self, step: int, judgement: Judgement, signature: str) -> None:
        built = self._built[step]
        if not judgement.fired or judgement.diverged_at is not None:
            at = judgement.diverged_at or step
            reason = judgement.failure or f"it took another way at step {at}"
            text = f"the real kill at step {step} did not come about: {reason}; the program is not deterministic"
            self._hearing.fail("harness:diverged", text)
        elif judgement.differences or judgement.marks != built.marks:
            why = "; ".join(judgement.differences) or f"{judgement.marks} marks against {built.marks}"
            text = (
                f"a real kill before step {step} left another state than its recording gives ({why}): the program "
                "writes in a way that cannot be seen"
            )
            self._hearing.fail("harness:replay-differs", text)
        else:
            self._confirmed += 1
            self._agree(step, judgement, signature)

    def _agree(self, step: int, judgement: Judgement, signature: str) -> None:
        """Take over what the real state was found guilty of; it may be less, or more, than the built one was."""
        for finding in judgement.findings:
            state = _state_at(step, self._built[step])
            self._hearing.note(finding, state, label=CONFIRMED_BY_A_KILL)
        if signature and signature not in {finding.signature for finding in judgement.findings}:
            text = (
                f"what the check says of the state before step {step} ({signature}) it does not say of the same "
                "state after a real kill: the check depends on more than the directory and the marks"
            )
            self._hearing.fail("harness:check-not-deterministic", text)


def _state_at(step: int, built: _Built) -> State:
    return State(built.code, step, built.marks, {}, text=f"killed before step {step}", kill=True)
