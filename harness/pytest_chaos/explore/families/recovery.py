"""The recovery family: the restart after a crash is recorded, and dies at each of its own steps.

One level deep: the next recovery has to recover what a killed one leaves. A recovery that has
nothing to do makes no durable step, and costs one run.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.families.stores import judge_stores
from pytest_chaos.explore.judge import StateTask, why_unended
from pytest_chaos.explore.record import recorded_run
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, Discovery, FamilyResult
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
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.session import Collector
    from pytest_chaos.trace.source import Observation, Program

TITLE: Final = "survives a kill in its recovery"
_PREFIX: Final = "recovery:"
_SEPARATOR: Final = "/"


def explore(recorded: Recorded, found: Collector) -> None:
    """Record the recovery from each crash state, or from a sample, and judge its crash states."""
    _Recoveries(recorded, found).explore()


def rebuild(recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Build the state of a code again."""
    outer, _, inner = code.removeprefix(_PREFIX).partition(_SEPARATOR)
    base = find_crash(recorded.recording, recorded.store, outer, recorded.seed)
    if base is None:
        return None
    recovery = _Recovery(recorded, base, folder / "recovery", timeout_s)
    recording = recovery.recording(recovery.record())
    if recording is None:
        return None
    store = PageStore(folder)  # not closed: the state's pages are in it
    with recording:
        state = find_crash(recording, store, inner, recorded.seed)
    return None if state is None else recorded.rebuilt(_within(base, state))


def coverage(result: FamilyResult) -> str:
    """Return the coverage in words."""
    points = f"{result.points:,} of {result.points_total:,} recoveries{result.extent}"
    if result.is_complete and not result.states:
        return f"no recovery makes a durable step ({points}), so there is nothing to interrupt"
    return f"{points}, interrupted in {result.states:,} state{'' if result.states == 1 else 's'}"


class _Recovery:
    """The recovery from one crash state, run in a folder of its own, which is emptied first."""

    def __init__(self, recorded: Recorded, base: State, folder: Path, timeout_s: float) -> None:
        self._recorded = recorded
        self._base = base
        self._folder = folder
        self._timeout_s = timeout_s
        self.directory = folder / "state"
        self._marks = folder / "marks"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def _program(self) -> Program:
        """Write the state and the marks before it, and return the recovery."""
        seen = self._recorded.marks[: self._base.marks]
        StateFolder(self.directory).put(self._base.items)
        self._marks.write_bytes(History(seen).to_json_lines())
        return self._recorded.subject.recovery(self.directory, self._marks, seen)

    def record(self) -> Observation:
        """Run and record the recovery."""
        with contextlib.closing(Recorder(self._folder / "recording", self._recorded.source.name)) as recorder:
            return self._recorded.source.observe(
                self._program(), self.directory, marks=self._marks, recorder=recorder, timeout_s=self._timeout_s
            )

    def recording(self, seen: Observation) -> Recording | None:
        """Return the recording; None if the run was not seen in full, or made no durable step."""
        return Recording(self._folder / "recording") if seen.count and not seen.failure else None

    def kill_before(self, number: int) -> tuple[Observation, tuple[str, ...]]:
        """Run the recovery and kill it before a step.

        Return also the differences between the folder that it left and the run's own recording.
        """
        program, source = self._program(), self._recorded.source
        with contextlib.closing(source.runner(lambda *_: program)) as runner:
            return recorded_run(
                runner,
                source.name,
                self.directory,
                marks=self._marks,
                directive=KillBefore(number=number),
                timeout_s=self._timeout_s,
                folder=self._folder / "recording",
            )


class _Recoveries:
    def __init__(self, recorded: Recorded, found: Collector) -> None:
        self._recorded = recorded
        self._found = found
        self._pool = found.session.pool
        self._options = found.session.options
        self._folder = found.session.folder / "recovery"

    def explore(self) -> None:
        found = self._found
        bases = self._chosen()
        for base in crash_states(self._recorded.recording, self._recorded.store, self._recorded.seed):
            if base.code not in bases:
                continue
            if found.is_over:
                found.is_complete = False
            if not found.is_complete:
                break
            bases.discard(base.code)  # a mark that is written in two pieces has two moments of one code
            self._explore_from(base)
            found.done += found.is_complete
        if found.is_complete:
            self._confirm()
        found.has_nothing = not found.states
        shutil.rmtree(self._folder, ignore_errors=True)

    def _chosen(self) -> set[str]:
        """Return the codes of the states to recover from: all distinct ones, or a sample."""
        codes: dict[bytes, str] = {}
        for state in crash_states(self._recorded.recording, self._recorded.store, self._recorded.seed):
            if state.stored is None:
                codes[durable_digest(state.items, self._recorded.recording.files)] = (
                    state.code
                )  # of equal folders the one with the most marks
        distinct = list(codes.values())
        randomness = stream(self._options.seed, "explore", "recovery")
        order = sorted(range(len(distinct)), key=lambda _: randomness.random())
        chosen = {distinct[place] for place in order[: self._options.recoveries]}
        self._found.total, self._found.points_total = len(chosen), len(distinct)
        self._found.is_sampled = len(chosen) < len(distinct)
        return chosen

    def _recovery(self, base: State) -> _Recovery:
        return _Recovery(self._recorded, base, self._folder, self._found.limited_s(self._options.run_timeout_s))

    def _explore_from(self, base: State) -> None:
        recovery = self._recovery(base)
        seen = recovery.record()
        if seen.is_timed_out and self._found.is_over:
            self._found.is_complete = False
        elif seen.is_timed_out:
            text = f"the recovery {why_unended(seen.waits, self._options.run_timeout_s)}"
            finding = Finding(signature="liveness:recovery-hangs", text=text, kind="liveness", checker="explore")
            self._found.note(finding, base)
        elif seen.failure:
            self._found.fail("harness:recovery-not-seen", f"the recovery from {base.code}: {seen.failure}")
        elif (recording := recovery.recording(seen)) is not None:
            with recording, contextlib.closing(PageStore(self._folder)) as store:
                self._found.judge(each for each in self._states(base, recording, store) if each.stored is None)
                if any(step.look for step in recording.steps):
                    judge_stores(self._found, self._states(base, recording, store))

    def _states(self, base: State, recording: Recording, store: PageStore) -> Iterator[State]:
        try:
            for state in crash_states(recording, store, self._recorded.seed):
                yield _within(base, state)
        except RecordingError as error:
            self._found.fail("harness:replay-differs", f"the recovery from {base.code}: {error}")

    def _confirm(self) -> None:
        """Kill a real recovery at each finding, and compare its state with the built one."""
        for found in self._found.grouped()[: self._options.confirmations]:
            outer, _, inner = found.code.removeprefix(_PREFIX).partition(_SEPARATOR)
            base = find_crash(self._recorded.recording, self._recorded.store, outer, self._recorded.seed)
            number = inner.removeprefix("crash:")
            if base is not None and number.isdigit():
                self._kill_at(base, int(number), found)

    def _kill_at(self, base: State, number: int, found: Discovery) -> None:
        recovery = self._recovery(base)
        seen, unlike = recovery.kill_before(number)
        if unlike:
            text = f"a real kill at step {number} of the recovery from {base.code}: {'; '.join(unlike)}"
            self._found.fail("harness:replay-differs", text)
        elif seen.fired:
            with contextlib.closing(PageStore(self._folder)) as store:
                judgement = self._pool.judge(StateTask(read_folder(recovery.directory, store), base.marks))
            self._found.confirmed += 1
            state = State(found.code, found.step, found.marks, {}, lost=found.lost, text=found.state)
            for finding in judgement.findings:
                self._found.note(finding, state, label=CONFIRMED_BY_A_KILL, states=0)


def _within(base: State, state: State) -> State:
    """Return a state of an interrupted recovery, with the marks from before the first crash."""
    text = f"{base}, and the recovery {state}"
    code = f"{_PREFIX}{base.code}{_SEPARATOR}{state.code}"
    return State(
        code, base.step, base.marks, state.items, lost=state.step, text=text, kill=state.kill, stored=state.stored
    )
