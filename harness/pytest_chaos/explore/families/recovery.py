"""The family *recovery*: the restart after a crash is itself recorded, and interrupted at each of its own steps.

One level deep: what a recovery leaves when it is killed has to be recovered by the next one. The
recoveries from states that need none make no durable step, and cost one run each.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.record import recorded_run
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, Discovery, Family, FamilyResult, grouped
from pytest_chaos.explore.session import Hearing
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.crash import crash_states, find_crash
from pytest_chaos.explore.simulate.disk import RecordingError
from pytest_chaos.explore.simulate.folder import StateFolder, read_folder
from pytest_chaos.explore.simulate.state import State, durable_digest
from pytest_chaos.model.history import History
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Session
    from pytest_chaos.trace.source import Observation, Program

_PREFIX: Final = "recovery:"
_SEPARATOR: Final = "/"


def explore_recoveries(session: Session) -> FamilyResult:
    """Record the recovery from each crash state, or from a sample, and judge every state that a kill in it leaves."""
    return _Recoveries(session).explore()


class _Recoveries:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._hearing = Hearing(session, Family.RECOVERY)
        self._folder = session.folder / "recovery"
        self._points = 0
        self._distinct = 0
        self._confirmed = 0

    def explore(self) -> FamilyResult:
        bases = self._chosen()
        self._hearing.total, self._hearing.points_total = len(bases), self._distinct
        recorded = self._session.recorded
        is_complete = True
        for state in crash_states(recorded.recording, recorded.store):
            if state.code not in bases:
                continue
            if self._session.is_over:
                is_complete = False
                break
            self._explore_from(state)
            self._points += 1
            self._hearing.done = self._points
        self._hearing.settle()
        if is_complete and self._hearing.discoveries:
            self._folder.mkdir(exist_ok=True)
            self._confirm()
        shutil.rmtree(self._folder, ignore_errors=True)
        result = FamilyResult(
            family=Family.RECOVERY,
            points=self._points,
            points_total=self._distinct,
            confirmed=self._confirmed,
            is_sampled=len(bases) < self._distinct,
            is_complete=is_complete,
        )
        return self._hearing.finish(result)

    def _chosen(self) -> set[str]:
        """Return the codes of the states to recover from: each distinct one, or a sample."""
        recorded = self._session.recorded
        codes: dict[bytes, str] = {}
        for state in crash_states(recorded.recording, recorded.store):
            codes[durable_digest(state.items)] = state.code  # of equal folders that with the most promises
        self._distinct = len(codes)
        distinct = list(codes.values())
        randomness = stream(self._session.options.seed, "explore", "recovery")
        order = sorted(range(len(distinct)), key=lambda _: randomness.random())
        return {distinct[place] for place in order[: self._session.options.recoveries]}

    def _explore_from(self, base: State) -> None:
        recording = self.record_from(base)
        if recording is None:
            return
        store = PageStore(self._folder)
        try:
            for state in crash_states(recording, store):
                self._hearing.judge(_within(base, state))
            self._session.pool.drain()  # the states hold pages of this store
        except RecordingError as error:
            self._hearing.fail("harness:replay-differs", f"the recovery from {base.code}: {error}")
        finally:
            recording.close()
            store.close()

    def record_from(self, base: State) -> Recording | None:
        """Record the recovery from a state; None when it makes no durable step."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        recorder = Recorder(self._folder / "recording", self._session.source.name)
        try:
            seen = self._observe(base, recorder)
        finally:
            recorder.close()
        if seen.is_timed_out:
            text = f"the recovery did not end within {self._session.options.run_timeout_s:g} s"
            finding = Finding(signature="liveness:recovery-hangs", text=text, kind="liveness", checker="explore")
            self._hearing.note(finding, base)
            return None
        if seen.failure:
            self._hearing.fail("harness:recovery-not-seen", f"the recovery from {base.code}: {seen.failure}")
            return None
        return Recording(self._folder / "recording") if seen.count else None

    def _program(self, base: State, directory: Path, marks: Path) -> Program:
        """Put the state there, with the marks that were seen before it, and return the recovery."""
        seen = self._session.recorded.marks[: base.marks]
        StateFolder(directory).put(base.items)
        marks.write_bytes(History(seen).to_json_lines())
        return self._session.subject.recovery(directory, marks, seen)

    def _observe(self, base: State, recorder: Recorder) -> Observation:
        directory, marks = self._folder / "state", self._folder / "marks"
        program = self._program(base, directory, marks)
        timeout_s = self._session.options.run_timeout_s
        return self._session.source.observe(program, directory, marks=marks, recorder=recorder, timeout_s=timeout_s)

    def _confirm(self) -> None:
        """Really kill the recovery where something was found, and see that the state is the one that was built."""
        for found in grouped(self._hearing.discoveries)[: self._session.options.confirmations]:
            outer, _, inner = found.code.removeprefix(_PREFIX).partition(_SEPARATOR)
            base = find_crash(self._session.recorded, outer)
            number = inner.removeprefix("crash:")
            if base is not None and number.isdigit():
                self._kill_at(base, int(number), found)

    def _kill_at(self, base: State, number: int, found: Discovery) -> None:
        directory, marks = self._folder / "state", self._folder / "marks"
        source, program = self._session.source, self._program(base, directory, marks)
        with contextlib.closing(source.runner(lambda *_: program)) as standing:
            seen, unlike = recorded_run(
                standing,
                source.name,
                directory,
                marks=marks,
                directive=KillBefore(number=number),
                timeout_s=self._session.options.run_timeout_s,
                folder=self._folder / "recording",
            )
        if unlike:
            text = f"a real kill at step {number} of the recovery from {base.code}: {'; '.join(unlike)}"
            self._hearing.fail("harness:replay-differs", text)
        elif seen.fired:
            self._judge_real(base, found)

    def _judge_real(self, base: State, found: Discovery) -> None:
        def done(judgement: Judgement, _: Path) -> None:
            self._confirmed += 1
            state = State(found.code, found.step, found.marks, {}, lost=found.lost, text=found.state)
            for finding in judgement.findings:
                self._hearing.note(finding, state, label=CONFIRMED_BY_A_KILL)

        store = PageStore(self._folder)
        self._session.pool.check(read_folder(self._folder / "state", store), base.marks, done)
        self._session.pool.drain()
        store.close()


def _within(base: State, state: State) -> State:
    """Return a state of an interrupted recovery, with the marks that were seen before the crash it recovers from."""
    text = f"{base}, and the recovery {state}"
    code = f"{_PREFIX}{base.code}{_SEPARATOR}{state.code}"
    return State(code, base.step, base.marks, state.items, lost=state.step, text=text, kill=state.kill)


def find_recovery(session: Session, code: str) -> State | None:
    """Return the state that a code names; None where there is none."""
    outer, _, inner = code.removeprefix(_PREFIX).partition(_SEPARATOR)
    base = find_crash(session.recorded, outer)
    if base is None:
        return None
    recoveries = _Recoveries(session)
    recording = recoveries.record_from(base)
    if recording is None:
        return None
    store = PageStore(session.folder)  # the state has its pages there: it is let go with the folder
    with recording:
        return next((_within(base, state) for state in crash_states(recording, store) if state.code == inner), None)
