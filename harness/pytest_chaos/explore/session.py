"""State shared by the families of one exploration: workers, budget and progress file.

A family hands states to its ``Collector`` and gets judgements back. The collector skips states that
were judged before, ends when the time is over, keeps the findings, and saves its progress, so that
a stopped exploration goes on from there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.judge import Judgement, Pool, StateTask
from pytest_chaos.explore.lines.noted import line_of
from pytest_chaos.explore.order import Order
from pytest_chaos.explore.report import (
    HANGS,
    MODELLED,
    NOT_EXPLORED,
    TEXTS_MAX,
    Discovery,
    Family,
    FamilyResult,
    grouped,
    harness_finding,
    one_of_each,
    other_texts,
)
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.calls.reads import WatchedReads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.server.reads import LookedAt
    from pytest_chaos.explore.simulate.state import State

PROGRESS: Final = "progress-*.json"
"""The progress files in the folder of a target: one for each choice of options, and seed."""
HANGS_MAX: Final = 10
"""A family is ended after so many states that hang: each costs a timeout."""
_HANGS_OF_RUNS: Final = frozenset({"liveness:hangs-on-error", "liveness:hangs-without-a-process"})
_HANGS: Final = frozenset(
    {"liveness:check-hangs", "liveness:recovery-hangs", "liveness:hangs-on-error", "liveness:hangs-without-a-process"}
    | {"liveness:not-ready"}
)
_SHORT_S: Final = 5.0
_TIMES_A_RUN: Final = 10
"""Once a run of a family has hung, later ones have so many times the clean run's time, and this."""
GRACE_S: Final = 0.5
"""Time after the end of a family's share in which the tasks under way may still end."""
_DISCOVERIES_MAX: Final = 1000
"""More discoveries than this are grouped by their signatures."""
_TELL_EVERY_S: Final = 0.05
"""Minimum interval between progress updates: redrawing the bar costs more than judging a state."""
_Found = TypeVar("_Found", Discovery, Finding)
_Thing = TypeVar("_Thing")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of an exploration. ``total`` is 0 if it is not known."""

    family: str
    states: int
    done: int
    total: int
    findings: int


class StruckPlace(NamedTuple):
    """A step that no recording has, in words, and the line of the program that makes it."""

    at: str = ""
    line: str = ""


NOWHERE: Final = StruckPlace()


class Saved(msgspec.Struct, kw_only=True):
    """The progress file: the finished families, and the progress of the next one."""

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
    is_ordered: bool = False
    """Whether the states have the order of ``explore.order``."""
    reads: WatchedReads | None = None
    """What a start reads, by which they are ordered, too."""
    drawn: list[str] = []
    """The names that the recorded run has drawn, in the order of their use."""

    def renamed(self, drawn: list[str]) -> Saved:
        """Return the progress with the drawn names replaced by those of another run."""
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
            reads=self.reads.renamed(pairs) if self.reads is not None else None,
            drawn=drawn,
        )


class _Begun(msgspec.Struct):
    """The fields of a progress file that are read before anything is explored."""

    seed: str = ""
    choice: str = ""


def unfinished_seed(folder: Path, choice: str) -> str | None:
    """Return the seed of the newest stopped exploration with this choice of options, or None."""
    begun: list[tuple[float, str]] = []
    for path in folder.glob(PROGRESS):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            saved = msgspec.json.decode(path.read_bytes(), type=_Begun)
            if saved.choice == choice and saved.seed:
                begun.append((path.stat().st_mtime, saved.seed))
    return max(begun)[1] if begun else None


def set_aside(path: Path) -> None:
    """Rename a progress file of another recording, to keep what it found."""
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
    """One exploration under way.

    ``listen`` gets its progress; ``saved`` is the progress of an earlier one that was stopped.
    ``deadline_s`` is when its budget ends, as ``time.monotonic`` counts. If checks are slow,
    ``look`` is asked what a start reads, which was watched on the states ``looked``.
    """

    def __init__(
        self,
        options: Options,
        pool: Pool,
        folder: Path,
        *,
        saved: Saved | None = None,
        deadline_s: float = float("inf"),
        is_slow: bool = False,
        look: Callable[[], WatchedReads | None] = lambda: None,
        looked: Sequence[LookedAt] = (),
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.options = options
        self.pool = pool
        self.folder = folder
        self.listen = listen
        self.saved = saved or Saved(fingerprint="")
        if not self.saved.family and not self.saved.finished:  # else it goes on in the order in which it began
            self.saved.is_ordered = is_slow
            self.saved.reads = look() if is_slow else None
        self.looked = looked
        self._is_saving = saved is not None and options.progress is not None
        self._deadline_s = deadline_s

    def collector(self, family: Family, coverage: Callable[[FamilyResult], str]) -> Collector:
        """Return the collector of the next family, with its share of the remaining time."""
        now_s = time.monotonic()
        families_left = len(self.options.families) - self.options.families.index(family)
        share_s = max(0.0, self._deadline_s - now_s) / families_left
        self.pool.until_s = now_s + share_s + GRACE_S
        return Collector(self, family, coverage, now_s + share_s)

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
            msg = f"the progress file must be writable; got {path}: {error.strerror}. Give another --results"
            raise UsageError(msg) from error

    def forget(self) -> None:
        """Remove the progress file of a complete exploration."""
        if self.options.progress is not None and self._is_saving:
            self.options.progress.unlink(missing_ok=True)


class Collector:
    """The collector of one family: has its states judged, and collects its result.

    The family sets ``total`` (the points that are planned), ``points_total`` (all points, more than
    that for a sample) and ``is_sampled``, and counts ``done`` and ``confirmed``.
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
        """The number of tasks that an earlier exploration has done."""
        self._consumed = 0
        self._undone: float = float("inf")
        """The first task that was ended for want of time, where a resumed exploration begins."""
        self.states = saved.states
        self.violated = saved.violated
        """The states in which something was found."""
        self.discoveries: list[Discovery] = list(saved.discoveries)
        self.problems: dict[str, Finding] = {each.signature: each for each in saved.problems}
        # For each state: 64 bits of its digest, and the models under which it was seen, some
        # hundred bytes. Among ten million states two share a digest with a probability of one in
        # 400,000.
        self._seen: dict[int, int] = {}
        self._kinds: Counter[object] = Counter()
        self._guilty: dict[int, tuple[Finding, ...]] = {}
        self._models: list[str] = []
        self._turn = 0
        """The place, among the things handed in, of the one whose judgement is taken in."""
        self._turns: dict[str, int] = {}
        """The places of discoveries by their codes: of two that are as good the first is told."""
        self._texts: dict[str, dict[str, None]] = {}
        """Texts of the check by their signature: one state may name many keys."""
        # States that an earlier exploration has judged: the findings of each were not saved.
        self._judged_before: set[int] = set()
        self._judged_again: set[int] = set()
        self._saved_s = time.monotonic()
        self._told_s = 0.0
        self._hangs = self._cut = 0
        self._has_hung_run = False
        self._orders: list[Order] = []
        self.total = 0
        self.points_total = 0
        self.done = 0
        self.confirmed = 0
        self.is_sampled = False
        self.is_complete = True
        self.sites = 0
        self.sites_total = 0
        self.has_nothing = False
        """Whether the family has, rightly, nothing to explore; the coverage says why."""

    def limited_s(self, time_s: float) -> float:
        """Return a time limit of a run, or the rest of the family's time if that is less."""
        return min(time_s, max(0.0, self._deadline_s - time.monotonic()) + GRACE_S)

    def bound_s(self, recorded: Recorded) -> float:
        """Return the time limit of the next run: once one has hung, later ones have less time."""
        full_s = self.session.options.run_timeout_s
        return min(full_s, max(_SHORT_S, recorded.took_s * _TIMES_A_RUN)) if self._has_hung_run else full_s

    def is_cut_short(self, judgement: Judgement, bound_s: float) -> bool:
        """Whether a run was ended at less than the full time limit, which decides nothing.

        It counts as one that hung, and is told. A deadlock is one after any time.
        """
        full_s = self.session.options.run_timeout_s
        if not judgement.is_timed_out or judgement.waits or bound_s >= full_s:
            return False
        self._cut += 1
        text = (
            f"after a run had hung for {full_s:.3g} s, later ones had {bound_s:.3g} s; {self._cut:,} did not end "
            "within that, and are not decided: they may hang, too, or be slow"
        )
        self.problems["harness:cut-short"] = harness_finding("harness:cut-short", text)
        self._count_hang()
        return True

    @property
    def is_hanging(self) -> bool:
        """Whether this family has met too many timeouts."""
        return self._hangs >= HANGS_MAX

    @property
    def is_over(self) -> bool:
        """Whether this family has used its time, has met too many timeouts, or nobody can judge."""
        return time.monotonic() >= self._deadline_s or self.is_hanging or bool(self.session.pool.gone)

    def place(self, recorded: Recorded, judgement: Judgement) -> StruckPlace:
        """Return the step that met the fault in a run that may have gone its own way."""
        step = judgement.struck
        if recorded.is_repeatable or step is None or not (judgement.findings or judgement.is_timed_out):
            return NOWHERE
        session = self.session
        timeout_s = self.limited_s(session.options.run_timeout_s)
        line = "" if self.is_over else line_of(step, recorded, session.folder, timeout_s=timeout_s)
        return StruckPlace(str(step), line)

    def in_order(self, states: Callable[[], Iterable[State]]) -> Iterable[State]:
        """Return states as they come; if each takes long to judge, those first that tell most."""
        if not self.session.saved.is_ordered:
            return states()
        self._orders.append(order := Order(self.session.saved.reads, self.session.looked))
        return order.of(states, is_over=lambda: self.is_over)

    def answers(
        self, things: Iterable[_Thing], task_of: Callable[[_Thing], StateTask | None]
    ) -> Iterator[tuple[_Thing, Judgement]]:
        """Have the task of each thing done, and yield the thing with its judgement.

        Ends when the time is over. A thing whose task is None is skipped, and so is one that an
        earlier exploration has done. In a generator of things, the code after a ``yield`` runs once
        that thing was handed in.
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
            yield from self._in_time(pool.submit(task, (self._consumed, thing)))
            if (now_s := time.monotonic()) - self._saved_s > pool.save_every_s:
                yield from self._in_time(pool.drain())
                self.save()  # the consumer has taken in everything by now
                self._saved_s = now_s
            if now_s - self._told_s > _TELL_EVERY_S:
                self._told_s = now_s
                self.session.listen(self.progress())
        yield from self._in_time(pool.drain())
        self.save()

    def _in_time(self, judged: Iterable[tuple[tuple[int, _Thing], Judgement]]) -> Iterator[tuple[_Thing, Judgement]]:
        """Yield the judgements, but for those of tasks that were ended for want of time."""
        for (number, thing), judgement in judged:
            if judgement.is_out_of_time:
                self.is_complete = False
                self._undone = min(self._undone, number)
            else:
                self._turn = number
                yield thing, judgement

    def judged(self, states: Iterable[State], *, model: str = "") -> Iterator[tuple[State, Judgement]]:
        """Have states judged, keep the findings, and yield the judgements.

        A state that equals an earlier one is not judged again.
        """
        for state, judgement in self.answers(states, partial(self._task_of, model=model)):
            self.states += _number(state) not in self._judged_again
            if found := one_of_each(judgement.findings):
                self._guilty[_number(state)] = found
            self.count_violated(judgement.findings)
            for finding in found:
                self.note(finding, state, model=model)
            yield state, judgement

    def judge(self, states: Iterable[State], *, model: str = "") -> None:
        """Have states judged, and keep the findings."""
        for _ in self.judged(states, model=model):
            pass

    def _task_of(self, state: State, *, model: str) -> StateTask | None:
        """Return the task of judging a state; None if an equal one was judged.

        The findings of the equal state are then noted for this model, too.
        """
        digest = _number(state)
        if model not in self._models:
            self._models.append(model)
        bit = 1 << self._models.index(model)
        seen = self._seen.get(digest, 0)
        if not seen and state.kind:
            self._kinds[state.kind] += 1
        self._seen[digest] = seen | bit
        if self._consumed <= self.skipped:
            self._judged_before.add(digest)
        elif digest in self._judged_before and not seen & bit:  # judged again, for this model
            self._judged_before.discard(digest)
            self._judged_again.add(digest)
            return StateTask(state.items, state.marks, family=self.family, state=state)
        if seen and not seen & bit:
            self._turn = self._consumed
            for finding in self._guilty.get(digest, ()):
                self.note(finding, state, model=model)
        return None if seen else StateTask(state.items, state.marks, family=self.family, state=state)

    def note(
        self,
        finding: Finding,
        state: State,
        *,
        model: str = "",
        label: str = MODELLED,
        states: int = 1,
        folder: str = "",
        output: str = "",
        place: StruckPlace = NOWHERE,
    ) -> None:
        """Keep a finding: one about the harness as a problem, every other one as a discovery.

        ``states`` is 0 for the state of a real kill, which was counted when it was built.
        ``folder`` holds a state that no recording gives; ``output`` is what that run printed, and
        ``place`` the step of it that met the fault.
        """
        if finding.kind == "harness":
            text = f"{finding.text}; it was so when {state} (--state '{state.code}')"
            self.problems.setdefault(finding.signature, msgspec.structs.replace(finding, text=text))
            return
        if finding.signature in _HANGS:
            self._has_hung_run |= finding.signature in _HANGS_OF_RUNS
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
            folder=folder,
            output=output,
            at=place.at,
            line=place.line,
            struck=(state.step,),
        )
        self.discoveries.append(found)
        self._turns[found.code] = min(self._turn, self._turns.get(found.code, self._turn))
        if len(self.discoveries) > _DISCOVERIES_MAX:
            self.discoveries = list(self.grouped())
            self._turns = {each.code: self._turns.get(each.code, 0) for each in self.discoveries}

    def count_violated(self, findings: Iterable[Finding]) -> None:
        """Count a state if anything was found in it, and keep how it was told."""
        findings = tuple(findings)
        for finding in findings:
            texts = self._texts.setdefault(finding.signature, {})
            if len(texts) <= TEXTS_MAX:
                texts[finding.text] = None
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
        """Return the progress of this family."""
        found = len({each.signature for each in self.discoveries})
        return Progress(family=str(self.family), states=self.states, done=self.done, total=self.total, findings=found)

    def save(self) -> None:
        """Save the progress; no task may be under way."""
        self.discoveries = list(self._grouped())
        saved = self.session.saved
        saved.consumed = int(max(min(self._consumed, self._undone - 1), self.skipped))
        saved.states = self.states
        saved.violated = self.violated
        saved.discoveries = self.discoveries
        saved.problems = list(self.problems.values())
        self.session.save()

    def result(self) -> FamilyResult:
        """Return the result so far."""
        result = FamilyResult(
            family=self.family,
            states=self.states,
            points=self.done,
            points_total=self.points_total,
            confirmed=self.confirmed,
            violated=self.violated,
            kinds=len(self._kinds),
            kinds_once=sum(count == 1 for count in self._kinds.values()),
            unread=sum(order.unread - order.unread_yielded for order in self._orders),
            is_sampled=self.is_sampled,
            is_complete=self.is_complete,
            sites=self.sites,
            sites_total=self.sites_total,
            discoveries=self._grouped(),
            problems=tuple(self.problems.values()),
        )
        coverage = self._coverage(result)
        if self.has_nothing and self.is_complete and not self.problems and not self.discoveries:
            return msgspec.structs.replace(result, coverage=f"{NOT_EXPLORED}: {coverage}", unexplored=coverage)
        return msgspec.structs.replace(result, coverage=coverage)

    def grouped(self) -> tuple[Discovery, ...]:
        """Return the discoveries by their signatures, in whatever order workers answered."""
        return grouped(sorted(self.discoveries, key=lambda each: self._turns.get(each.code, 0)))

    def _grouped(self) -> tuple[Discovery, ...]:
        """Return the grouped discoveries, each with the other texts of its signature."""
        return tuple(
            msgspec.structs.replace(
                found, also=other_texts(found.text, (*found.also, *self._texts.get(found.signature, ())))
            )
            for found in self.grouped()
        )

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
