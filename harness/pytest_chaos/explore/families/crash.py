"""What a killed process leaves: the state before each durable step, and the parts of a large write that got there.

A kill takes back nothing that the kernel was given: whatever was written stays, synced or not. Only
a write of several pages can be cut, and only between pages (measured: SIGKILL within writes of 4 MB
tore 18 of 150 on ext4).

The family *crash*: the process dies at each durable step. What is built is compared with what real
kills leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, Family, FamilyResult, grouped
from pytest_chaos.explore.session import Hearing
from pytest_chaos.explore.simulate.content import PAGE_BYTES, PageStore
from pytest_chaos.explore.simulate.disk import Disk, Writing
from pytest_chaos.explore.simulate.state import Item, State, live_items
from pytest_chaos.model.history import MarkParser
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.session import Session
    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.disk import Effect
    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Step

TEARS_MAX: Final = 64
"""Of a write of more pages than this, so many prefixes are built, spread evenly; a report then says ``sampled``."""


class Moment(NamedTuple):
    """The program between two steps: what ``step`` is about to do, and how many marks were written so far.

    ``step`` is None where the next thing is a mark (``precedes_mark``: a process can be killed
    there too, with the work done and not acknowledged) and at the end of the run.
    """

    number: int
    marks: int
    step: Step | None
    precedes_mark: bool


def moments(recording: Recording, disk: Disk) -> Iterator[tuple[Moment, Effect | None]]:
    """Apply the recording to the disk; return each moment, before what follows it happens, with what that changes.

    The effect is None for a mark and at the end.
    """
    parser = MarkParser()
    number = 1
    for item in recording.steps:
        if item.is_mark:
            yield Moment(number, parser.count, None, precedes_mark=True), None
            parser.feed(recording.content(item))
            continue
        number = item.number
        effect = disk.effect_of(item)
        yield Moment(number, parser.count, item, precedes_mark=False), effect
        disk.perform(effect)
        number += 1
    yield Moment(number, parser.count, None, precedes_mark=False), None


def crash_states(recording: Recording, store: PageStore, *, prefix: str = "crash") -> Iterator[State]:
    """Return every state that a kill may leave, in the order of the run, each once where a mark changes nothing else.

    The state before the first step is among them; the end of the run is the clean run's, and is
    not.
    """
    disk = Disk(recording, store)
    for moment, effect in moments(recording, disk):
        if moment.step is None and not moment.precedes_mark:
            return
        at = "before a mark" if moment.step is None else f"before step {moment.step}"
        code = f"{prefix}:{moment.number}"
        if moment.step is None:
            code += f"m{moment.marks}"
        yield State(
            code, moment.number, moment.marks, live_items(disk), text=f"killed {at}", kill=moment.step is not None
        )
        if isinstance(effect, Writing) and effect.is_write:
            yield from _torn(disk, moment, effect, code)


def find_crash(recorded: Recorded, code: str) -> State | None:
    """Return the state of a recorded run that a code names; None where there is none."""
    return next((state for state in crash_states(recorded.recording, recorded.store) if state.code == code), None)


def _torn(disk: Disk, moment: Moment, effect: Writing, code: str) -> Iterator[State]:
    before = disk.contents[effect.node]
    for upto in tears(effect.offset, effect.length):
        torn = disk.written(before, effect, upto=upto)

        def content_of(node: int, torn: Content = torn) -> Content:
            return torn if node == effect.node else disk.contents[node]

        items: dict[str, Item] = live_items(disk, content_of)
        text = f"killed within step {moment.step}, after {upto} bytes"
        yield State(f"{code}+{upto}", moment.number, moment.marks, items, lost=1, text=text)


def tears(offset: int, length: int) -> list[int]:
    """Return after how many bytes a write may be cut: at each boundary of a page, or at 64 of them, spread evenly."""
    first = PAGE_BYTES - offset % PAGE_BYTES
    cuts = range(first, length, PAGE_BYTES)
    if len(cuts) <= TEARS_MAX:
        return list(cuts)
    return [cuts[place * (len(cuts) - 1) // (TEARS_MAX - 1)] for place in range(TEARS_MAX)]


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
