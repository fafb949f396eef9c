"""What the families of one exploration share: workers, the time that is left, and the file to go on from.

A family hands states to its ``Collector`` and gets judgements back. The collector skips states that
were judged before, ends when the time is over, keeps the findings, and saves how far it is, so that
a stopped exploration goes on from there.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.judge import Judgement, Pool, Task
from pytest_chaos.explore.report import (
    HANGS,
    MODELLED,
    NOT_EXPLORED,
    Discovery,
    Family,
    FamilyResult,
    grouped,
    harness_finding,
    one_of_each,
)
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.simulate.state import State

PROGRESS: Final = "progress-*.json"
"""The progress files in the folder of a target: one for each choice of options, and seed."""
HANGS_MAX: Final = 10
"""After so many states that hang a family is ended:
each costs a timeout, and thousands would cost days.
"""
_HANGS: Final = frozenset({"liveness:check-hangs", "liveness:recovery-hangs", "liveness:hangs-on-error"})
_DISCOVERIES_MAX: Final = 1000
"""More discoveries than this are grouped by their signatures."""
_SAVE_EVERY_S: Final = 2.0
_TELL_EVERY_S: Final = 0.05
"""Minimum interval between progress updates: redrawing the bar costs more than judging a state."""
_Found = TypeVar("_Found", Discovery, Finding)
_Thing = TypeVar("_Thing")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an exploration is. ``total`` is 0 if it is not known."""

    family: str
    states: int
    done: int
    total: int
    findings: int


class Saved(msgspec.Struct, kw_only=True):
    """The progress file: the families that are finished, and how far the next one is."""

    fingerprint: str
    seed: str = ""
    choice: str = ""
    """See ``Options.choice``."""
    finished: list[FamilyResult] = []
    family: str = ""
    consumed: int = 0
    states: int = 0
    violated: int = 0
    discoveries: list[Discovery] = []
    problems: list[Finding] = []
    drawn: list[str] = []
    """The names that the recorded run has drawn, in the order of their use."""

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


class _Begun(msgspec.Struct):
    """What is asked of a progress file before anything is explored."""

    seed: str = ""
    choice: str = ""


def unfinished_seed(folder: Path, choice: str) -> str | None:
    """Return the seed of the newest exploration with this choice that was stopped, None if there is none."""
    begun: list[tuple[float, str]] = []
    for path in folder.glob(PROGRESS):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            saved = msgspec.json.decode(path.read_bytes(), type=_Begun)
            if saved.choice == choice and saved.seed:
                begun.append((path.stat().st_mtime, saved.seed))
    return max(begun)[1] if begun else None


def set_aside(path: Path) -> None:
    """Rename a progress file that will not be gone on from: what it found is kept."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.before-{number}")).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)


def _renamed(found: _Found, pairs: Sequence[tuple[str, str]]) -> _Found:
    told = {field: getattr(found, field, "") for field in ("signature", "text", "state")}
    for before, now in pairs:
        told = {field: words.replace(before, now) for field, words in told.items()}
    return msgspec.structs.replace(found, **{field: told[field] for field in told if field in found.__struct_fields__})


class Session:
    """One exploration under way. ``listen`` gets its progress; ``saved`` is where an earlier one stopped."""

    def __init__(
        self,
        options: Options,
        pool: Pool,
        folder: Path,
        *,
        saved: Saved | None = None,
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.options = options
        self.pool = pool
        self.folder = folder
        self.listen = listen
        self.saved = saved or Saved(fingerprint="")
        self._is_saving = saved is not None and options.progress is not None
        self._deadline_s = time.monotonic() + (options.budget_s if options.budget_s is not None else float("inf"))

    def collector(self, family: Family, coverage: Callable[[FamilyResult], str]) -> Collector:
        """Return the collector of the next family, which gets its share of the time that is left."""
        now_s = time.monotonic()
        families_left = len(self.options.families) - self.options.families.index(family)
        return Collector(self, family, coverage, now_s + (self._deadline_s - now_s) / families_left)

    def save(self) -> None:
        """Write the progress file, whole or not at all."""
        path = self.options.progress
        if path is None or not self._is_saving:
            return
        fresh = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(self.saved))
            fresh.replace(path)
        except OSError as error:
            msg = f"the progress cannot be written to {path} ({error.strerror}): give another --results"
            raise UsageError(msg) from error

    def forget(self) -> None:
        """Remove the progress file: everything is done."""
        if self.options.progress is not None and self._is_saving:
            self.options.progress.unlink(missing_ok=True)


class Collector:
    """Has the states of one family judged, and collects its result.

    The family sets ``total`` (what is to be done), ``points_total`` (all there is, which is more if
    only a sample is to be done), ``is_sampled``, and counts ``done`` and ``confirmed``.
    """

    def __init__(
        self, session: Session, family: Family, coverage: Callable[[FamilyResult], str], deadline_s: float
    ) -> None:
        self.session = session
        self.family = family
        self._coverage = coverage
        self._deadline_s = deadline_s
        saved = session.saved
        if saved.family != str(family):
            saved.family, saved.consumed, saved.states, saved.discoveries, saved.problems = str(family), 0, 0, [], []
            saved.violated = 0
        self.skipped = saved.consumed
        """How many tasks an earlier exploration has done."""
        self._consumed = 0
        self.states = saved.states
        self.violated = saved.violated
        """The states in which something was found."""
        self.discoveries: list[Discovery] = list(saved.discoveries)
        self.problems: dict[str, Finding] = {each.signature: each for each in saved.problems}
        # Of millions of states 64 bits of each digest are kept, and under which models it was seen:
        # a hundred bytes a state. That two different ones of ten million share them has a
        # probability of one in 400,000.
        self._seen: dict[int, int] = {}
        self._guilty: dict[int, tuple[Finding, ...]] = {}
        self._models: list[str] = []
        # States that an earlier exploration has judged: what it said of each is not known any more.
        self._judged_before: set[int] = set()
        self._judged_again: set[int] = set()
        self._saved_s = time.monotonic()
        self._told_s = 0.0
        self._hangs = 0
        self.total = 0
        self.points_total = 0
        self.done = 0
        self.confirmed = 0
        self.is_sampled = False
        self.is_complete = True
        self.has_nothing = False
        """Whether there is nothing to explore, and that is in order; the coverage says why."""

    @property
    def is_over(self) -> bool:
        """Whether this family has had its time, or has cost too many timeouts."""
        return time.monotonic() >= self._deadline_s or self._hangs >= HANGS_MAX

    def answers(
        self, things: Iterable[_Thing], task_of: Callable[[_Thing], Task | None]
    ) -> Iterator[tuple[_Thing, Judgement]]:
        """Have the tasks of things done until the time is over, and return each thing with its judgement.

        None is the task of a thing that needs none. Things of an earlier exploration are skipped.
        In a generator of things, the code after a ``yield`` runs once that thing was handed in.
        """
        pool = self.session.pool
        for thing in things:
            if self.is_over:
                self.is_complete = False
                break
            self._consumed += 1
            task = task_of(thing)
            if task is None or self._consumed <= self.skipped:
                continue
            yield from pool.submit(task, thing)
            if (now_s := time.monotonic()) - self._saved_s > _SAVE_EVERY_S:
                yield from pool.drain()
                self.save()  # the consumer has taken in everything by now
                self._saved_s = now_s
            if now_s - self._told_s > _TELL_EVERY_S:
                self._told_s = now_s
                self.session.listen(self.progress())
        yield from pool.drain()
        self.save()

    def judged(self, states: Iterable[State], *, model: str = "") -> Iterator[tuple[State, Judgement]]:
        """Have states judged, except those that equal an earlier one; keep the findings, and return the judgements."""
        for state, judgement in self.answers(states, partial(self._task_of, model=model)):
            self.states += _number(state) not in self._judged_again
            if found := one_of_each(judgement.findings):
                self._guilty[_number(state)] = found
            self.count_violated(found)
            for finding in found:
                self.note(finding, state, model=model)
            yield state, judgement

    def judge(self, states: Iterable[State], *, model: str = "") -> None:
        """Have states judged, and keep the findings."""
        for _ in self.judged(states, model=model):
            pass

    def _task_of(self, state: State, *, model: str) -> Task | None:
        """Return a state as a task; None if an equal one was judged, whose findings hold for this model, too."""
        digest = _number(state)
        if model not in self._models:
            self._models.append(model)
        bit = 1 << self._models.index(model)
        seen = self._seen.get(digest, 0)
        self._seen[digest] = seen | bit
        if self._consumed <= self.skipped:
            self._judged_before.add(digest)
        elif digest in self._judged_before and not seen & bit:  # judged again, for this model
            self._judged_before.discard(digest)
            self._judged_again.add(digest)
            return Task(state.items, state.marks)
        if seen and not seen & bit:
            for finding in self._guilty.get(digest, ()):
                self.note(finding, state, model=model)
        return None if seen else Task(state.items, state.marks)

    def note(self, finding: Finding, state: State, *, model: str = "", label: str = MODELLED, states: int = 1) -> None:
        """Keep a finding: about the harness as a problem, every other one as a discovery.

        ``states`` is 0 for the state of a real kill, which was counted when it was built.
        """
        if finding.kind == "harness":
            text = f"{finding.text}; it was so when {state} (--state '{state.code}')"
            self.problems.setdefault(finding.signature, msgspec.structs.replace(finding, text=text))
            return
        if finding.signature in _HANGS:
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
            states=states,
        )
        self.discoveries.append(found)
        if len(self.discoveries) > _DISCOVERIES_MAX:
            self.discoveries = list(grouped(self.discoveries))

    def count_violated(self, findings: Iterable[Finding]) -> None:
        """Count a state if anything was found in it."""
        self.violated += any(finding.kind != "harness" for finding in findings)

    def _count_hang(self) -> None:
        self._hangs += 1
        if self._hangs == HANGS_MAX:
            text = (
                f"in {HANGS_MAX} states something hung, and the rest of this family was not explored: see why "
                "first, or give a shorter --check-timeout or --run-timeout"
            )
            self.fail(HANGS, text)

    def fail(self, signature: str, text: str) -> None:
        """Keep a problem of the harness's own, once for each signature."""
        self.problems.setdefault(signature, harness_finding(signature, text))

    def progress(self) -> Progress:
        """Return how far it is."""
        found = len({each.signature for each in self.discoveries})
        return Progress(family=str(self.family), states=self.states, done=self.done, total=self.total, findings=found)

    def save(self) -> None:
        """Save how far it is; nothing may be under way."""
        self.discoveries = list(grouped(self.discoveries))
        saved = self.session.saved
        saved.consumed = max(self._consumed, self.skipped)
        saved.states = self.states
        saved.violated = self.violated
        saved.discoveries = self.discoveries
        saved.problems = list(self.problems.values())
        self.session.save()

    def result(self) -> FamilyResult:
        """Return the result as far as it is."""
        result = FamilyResult(
            family=self.family,
            states=self.states,
            points=self.done,
            points_total=self.points_total,
            confirmed=self.confirmed,
            violated=self.violated,
            is_sampled=self.is_sampled,
            is_complete=self.is_complete,
            discoveries=grouped(self.discoveries),
            problems=tuple(self.problems.values()),
        )
        coverage = self._coverage(result)
        if self.has_nothing and self.is_complete and not self.problems and not self.discoveries:
            return msgspec.structs.replace(result, coverage=f"{NOT_EXPLORED}: {coverage}", unexplored=coverage)
        return msgspec.structs.replace(result, coverage=coverage)

    def finish(self) -> FamilyResult:
        """Return the result, and save it if the family is complete."""
        finished = self.result()
        if finished.is_complete:
            self.session.saved.finished.append(finished)
            self.session.saved.family = ""
        self.session.save()
        return finished


def _number(state: State) -> int:
    return int.from_bytes(state.digest[:8], "little")
