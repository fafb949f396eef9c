"""What the families of one exploration share: the recorded run, the workers, the time that is left, what was found.

A family asks the session to judge states and keeps what it hears; the session knows which states
were judged before, when the time is over, and writes down how far it is, so that an exploration
that was stopped goes on from there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.judge import CHECK_TIMEOUT_S, Judgement, Known, Pool
from pytest_chaos.explore.report import (
    CONFIRMED_BY_A_KILL,
    HANGS,
    MODELLED,
    Discovery,
    Family,
    FamilyResult,
    grouped,
    one_of_each,
)
from pytest_chaos.explore.simulate.power import SAMPLES, Model
from pytest_chaos.model.values import Finding, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.source import StepSource

RUN_TIMEOUT_S: Final = 60.0
CONFIRMATIONS: Final = 8
"""How many crash points that passed are also tried with a real kill."""
RECOVERIES: Final = 64
"""How many crash states have their recovery recorded and interrupted; of more, a sample is drawn."""
IO_RUNS: Final = 2000
"""How many I/O errors are tried for real; of more, a sample is drawn."""
POWER_STATES: Final = 100_000
HANGS_MAX: Final = 10
"""After so many states that hang a family is ended: each costs a whole timeout, and thousands would cost days."""
_WAITED_FOR: Final = frozenset({"liveness:check-hangs", "liveness:recovery-hangs", "liveness:hangs-on-error"})
_SAVE_EVERY_S: Final = 2.0
_TELL_EVERY_S: Final = 0.05
"""Whoever shows the progress hears of it so often: to draw a bar costs more than to judge a state."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to explore. Times in seconds; ``budget_s`` None is no limit.

    ``samples`` is how many states are built of a moment of a power loss that allows more than 64;
    of a run so long that this would give more than ``power_states`` of a model, only as many
    moments are looked at, spread evenly.
    """

    seed: str
    families: tuple[Family, ...] = tuple(Family)
    models: tuple[Model, ...] = tuple(Model)
    jobs: int = 1
    budget_s: float | None = None
    samples: int = SAMPLES
    power_states: int = POWER_STATES
    confirmations: int = CONFIRMATIONS
    recoveries: int = RECOVERIES
    io_runs: int = IO_RUNS
    run_timeout_s: float = RUN_TIMEOUT_S
    check_timeout_s: float = CHECK_TIMEOUT_S


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an exploration is, for whoever shows it. ``total`` is 0 where it is not known."""

    family: str
    states: int
    done: int
    total: int
    findings: int


class Saved(msgspec.Struct, kw_only=True):
    """What is written down of an exploration under way: families that are done, and how far the next one is."""

    fingerprint: str
    finished: list[FamilyResult] = []
    family: str = ""
    consumed: int = 0
    states: int = 0
    discoveries: list[Discovery] = []
    problems: list[Finding] = []
    extra: dict[str, Json] = {}
    drawn: list[str] = []
    """Names that the recorded run has drawn, in the order in which it used them."""

    def renamed(self, drawn: list[str]) -> Saved:
        """Return it as that of a run that has drawn these names instead."""
        pairs = [(before, now) for before, now in zip(self.drawn, drawn, strict=True) if before != now]
        finished = [
            msgspec.structs.replace(
                result,
                discoveries=tuple(_renamed(found, pairs) for found in result.discoveries),
                problems=tuple(_renamed(found, pairs) for found in result.problems),
            )
            for result in self.finished
        ]
        return msgspec.structs.replace(
            self,
            finished=finished,
            discoveries=[_renamed(found, pairs) for found in self.discoveries],
            problems=[_renamed(found, pairs) for found in self.problems],
            drawn=drawn,
        )


_Found = TypeVar("_Found", Discovery, Finding)


def _renamed(found: _Found, pairs: Sequence[tuple[str, str]]) -> _Found:
    told = {field: getattr(found, field, "") for field in ("signature", "text", "state")}
    for before, now in pairs:
        told = {field: words.replace(before, now) for field, words in told.items()}
    return msgspec.structs.replace(found, **{field: told[field] for field in told if field in found.__struct_fields__})


class Session:
    """One exploration under way. ``listen`` hears how far it is; ``saved_in`` is the progress file, if there is one."""

    def __init__(
        self,
        known: Known,
        recorded: Recorded,
        pool: Pool,
        options: Options,
        folder: Path,
        *,
        saved: Saved,
        saved_in: Path | None = None,
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.known = known
        self.recorded = recorded
        self.pool = pool
        self.options = options
        self.folder = folder
        self.listen = listen
        self.saved = saved
        self._saved_in = saved_in
        self._deadline_s = time.monotonic() + (options.budget_s if options.budget_s is not None else float("inf"))
        self._share_s = float("inf")
        self.hearing: Hearing | None = None
        """That of the family under way."""

    @property
    def subject(self) -> Subject:
        """The target."""
        return self.known.subject

    @property
    def source(self) -> StepSource:
        """What sees steps."""
        return self.known.source

    def share(self, families_left: int) -> None:
        """Give the next family its part of the time that is left."""
        now_s = time.monotonic()
        self._share_s = now_s + (self._deadline_s - now_s) / max(1, families_left)

    @property
    def is_over(self) -> bool:
        """Whether this family has had its time, or has cost too many timeouts."""
        return time.monotonic() >= self._share_s or (self.hearing is not None and self.hearing.hangs >= HANGS_MAX)

    def save(self) -> None:
        """Write down how far it is; whole or not at all."""
        if self._saved_in is None:
            return
        fresh = self._saved_in.with_name(self._saved_in.name + ".new")
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(self.saved))
            fresh.replace(self._saved_in)
        except OSError as error:
            msg = f"how far it is cannot be written to {self._saved_in} ({error.strerror}): give another --results"
            raise UsageError(msg) from error

    def forget(self) -> None:
        """Remove the progress file: there is nothing left to go on with."""
        if self._saved_in is not None:
            self._saved_in.unlink(missing_ok=True)


class Hearing:
    """Judges the states of one family and gathers what is found, from where a stopped exploration left off."""

    def __init__(self, session: Session, family: Family) -> None:
        self.session = session
        session.hearing = self
        self.family = family
        saved = session.saved
        if saved.family != str(family):
            saved.family, saved.consumed, saved.states = str(family), 0, 0
            saved.discoveries, saved.problems, saved.extra = [], [], {}
        self._skip = saved.consumed
        self._consumed = 0
        self.states = saved.states
        self.discoveries: list[Discovery] = list(saved.discoveries)
        self.problems: dict[str, Finding] = {each.signature: each for each in saved.problems}
        # Of millions of states 64 bits of each digest are kept, and under which models it was seen:
        # a hundred bytes a state. That two different ones of ten million share them has a
        # probability of one in 400,000.
        self._seen: dict[int, int] = {}
        self._guilty: dict[int, tuple[Finding, ...]] = {}
        self._models: list[str] = []
        self._saved_s = time.monotonic()
        self._told_s = 0.0
        self.hangs = 0
        self.total = 0
        """How much is to be done: what a bar is drawn of."""
        self.points_total = 0
        """How much there is, which is more where only a sample is to be done."""
        self.done = 0

    def judge(self, state: State, *, model: str = "", heard: Callable[[State, Judgement], None] | None = None) -> None:
        """Have a state judged unless an equal one was."""
        self._consumed += 1
        digest = int.from_bytes(state.digest[:8], "little")
        seen = self._seen.get(digest, 0)
        if seen & (bit := self._bit_of(model)):
            return
        self._seen[digest] = seen | bit
        if seen:
            for finding in self._guilty.get(digest, ()):
                self.note(finding, state, model=model)
            return
        if self._consumed <= self._skip:
            return

        def done(judgement: Judgement, _: Path) -> None:
            self.states += 1
            found = one_of_each(judgement.findings)
            if found:
                self._guilty[digest] = found
            for finding in found:
                self.note(finding, state, model=model)
            if heard is not None:
                heard(state, judgement)

        self.session.pool.check(state.items, state.marks, done)
        self._pause()

    def _bit_of(self, model: str) -> int:
        if model not in self._models:
            self._models.append(model)
        return 1 << self._models.index(model)

    def advance(self) -> None:
        """Count something that was handed out in another way than by ``judge``."""
        self._consumed += 1
        self._pause()

    def note(self, finding: Finding, state: State, *, model: str = "", label: str = MODELLED) -> None:
        """Keep a finding: one about the harness as a problem, every other one as a discovery."""
        if finding.kind == "harness":
            text = f"{finding.text}; it was so when {state} (--state '{state.code}')"
            self.problems.setdefault(finding.signature, msgspec.structs.replace(finding, text=text))
            return
        if finding.signature in _WAITED_FOR:
            self._count_hang()
        found = Discovery(
            signature=finding.signature,
            kind=finding.kind,
            text=finding.text,
            step=state.step,
            code=state.code,
            state=str(state),
            label=label,
            model=model,
            marks=state.marks,
            lost=state.lost,
            states=int(label != CONFIRMED_BY_A_KILL),  # a real kill leaves a state that was counted when it was built
        )
        self.discoveries.append(found)
        if len(self.discoveries) > 1000:
            self.discoveries = list(grouped(self.discoveries))

    def _count_hang(self) -> None:
        self.hangs += 1
        if self.hangs == HANGS_MAX:
            text = (
                f"in {HANGS_MAX} states something hung, and what was left of this family was not explored: see why "
                "first, or give a shorter --check-timeout or --run-timeout"
            )
            self.fail(HANGS, text)

    def fail(self, signature: str, text: str) -> None:
        """Keep a problem of the harness's own."""
        self.problems.setdefault(signature, Finding(signature=signature, text=text, kind="harness", checker="explore"))

    def _pause(self) -> None:
        """Say how far it is, and now and then write it down."""
        now_s = time.monotonic()
        if now_s - self._saved_s > _SAVE_EVERY_S:
            self.settle()
            self._saved_s = now_s
        if now_s - self._told_s > _TELL_EVERY_S:
            self._told_s = now_s
            self.session.listen(self.progress())

    def progress(self) -> Progress:
        """Return how far it is."""
        found = len({each.signature for each in self.discoveries})
        return Progress(family=str(self.family), states=self.states, done=self.done, total=self.total, findings=found)

    def settle(self) -> None:
        """Wait for all that was handed out, and write down how far it is."""
        self.session.pool.drain()
        self.discoveries = list(grouped(self.discoveries))
        saved = self.session.saved
        saved.consumed = max(self._consumed, self._skip)
        saved.states = self.states
        saved.discoveries = self.discoveries
        saved.problems = list(self.problems.values())
        self.session.save()

    def finish(self, result: FamilyResult) -> FamilyResult:
        """Return the family's result with what was found, and write it down where the family is complete."""
        finished = msgspec.structs.replace(
            result,
            states=self.states,
            discoveries=grouped(self.discoveries),
            problems=tuple(self.problems.values()),
        )
        if finished.is_complete:
            self.session.saved.finished.append(finished)
            self.session.saved.family = ""
        self.session.save()
        return finished
