"""The smallest variant is found with few runs, also where the violation comes and goes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos import after_mark, at_moment, at_step, kill, pause
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import AfterMark, AtMoment, AtStep, Finding, Plan
from pytest_chaos.narrow.shrink import faults_of, repeat, shrink
from pytest_chaos.narrow.trial import BASELINE, Trials
from pytest_chaos.narrow.variant import RunVariant, TrialOutcome, TrialRun, cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.model.values import Fault
    from pytest_chaos.narrow.variant import Narrowed


def plan(*faults: Fault) -> RunVariant:
    """Return a variant with these faults."""
    return RunVariant(plan=Plan(seed="s", scenario="x", faults=faults))


def shrunk(
    start: RunVariant,
    is_violated: Callable[[RunVariant], bool],
    *,
    sizes: dict[str, tuple[int, int]] | None = None,
    tries: int = 1000,
) -> tuple[Narrowed, list[RunVariant]]:
    """Shrink with a program of which it is known when it is violated; return all its runs."""
    made: list[RunVariant] = []

    def execute(variant: RunVariant) -> TrialRun:
        made.append(variant)
        now = {name: (variant.sizes.get(name, number), least) for name, (number, least) in (sizes or {}).items()}
        return TrialRun(outcome=TrialOutcome.SAME if is_violated(variant) else TrialOutcome.HELD, sizes=now)

    trials = Trials(execute, tries=tries, seconds=60, clock=itertools.count(0, 0.001).__next__)
    return shrink(trials, start, smallest=as_it_is), made


def as_it_is(name: str, is_wrong: object, known: object) -> object:
    """Shrink no drawn value."""
    del name, is_wrong
    return known


def kills(variant: RunVariant) -> list[Fault]:
    """Return the kills of a variant."""
    return [each for each in faults_of(variant) if each.kind == "kill"]


def test_faults_that_do_nothing_are_left_out() -> None:
    """Of ten faults the one that matters is left, and is found with far fewer runs than subsets."""
    faults = [pause("a", after_mark("put", count=n), duration_s=0.1) for n in range(1, 10)]
    start = plan(*faults[:6], kill("a", at_step("write")), *faults[6:])
    answer, made = shrunk(start, lambda variant: bool(kills(variant)))
    assert answer.variant is not None
    assert [each.kind for each in faults_of(answer.variant)] == ["kill"]
    assert len(made) < 60
    assert answer.shrunk is not None
    assert answer.shrunk.faults_before == 10
    assert answer.shrunk.necessary == (
        "without kill a at the step write: 0 of 3 runs violated, all held: it is necessary",
    )


def test_faults_that_need_each_other_stay() -> None:
    """Two that are violated only together are left; a third that does nothing is not."""
    start = plan(kill("a", at_step("write")), pause("b", after_mark("x"), duration_s=0.0), kill("c", at_step("sync")))
    answer, _ = shrunk(start, lambda variant: len(kills(variant)) == 2)
    assert answer.shrunk is not None
    assert len(answer.shrunk.faults) == 2
    assert all("it is necessary" in text for text in answer.shrunk.necessary)


def test_a_pause_and_its_end_go_together() -> None:
    """Neither can go alone, where the other one would not come; both can."""
    start = plan(
        pause("a", after_mark("x")),
        kill("b", at_step("write")),
        pause("c", after_mark("x")),
        kill("d", at_step("sync")),
    )

    def is_violated(variant: RunVariant) -> bool:
        kinds = [each.agent for each in faults_of(variant)]
        return "d" in kinds and "b" in kinds and ("a" in kinds) == ("c" in kinds)

    answer, _ = shrunk(start, is_violated)
    assert answer.variant is not None
    assert [each.agent for each in faults_of(answer.variant)] == ["b", "d"]


def test_a_violation_without_any_fault_needs_none() -> None:
    """A race that comes without faults is shrunk to none."""
    answer, _ = shrunk(plan(kill("a", at_step("write"))), lambda _: True)
    assert answer.shrunk is not None
    assert answer.shrunk.faults == ()


def test_times_and_pauses_get_smaller() -> None:
    """The first write from 5 on, the mark from 2 on, the delay to none, the pause to its half."""
    start = plan(
        kill("a", at_step("write", occurrence=90)),
        kill("b", at_moment(0.8, after=after_mark("put", count=7))),
        pause("c", after_mark("put"), duration_s=8.0),
    )

    def is_violated(variant: RunVariant) -> bool:
        faults = {each.agent: each for each in faults_of(variant)}
        if set(faults) != {"a", "b", "c"}:
            return False
        first, second = faults["a"].when, faults["b"].when
        assert isinstance(first, AtStep)
        assert isinstance(second, AtMoment)
        assert isinstance(second.after, AfterMark)
        return first.occurrence >= 5 and second.after.count >= 2 and faults["c"].parameters["duration_s"] >= 3

    answer, made = shrunk(start, is_violated)
    assert answer.variant is not None
    first, second, third = faults_of(answer.variant)
    assert first.when == AtStep(step="write", occurrence=5)
    assert second.when == AtMoment(delay_s=0.0, after=AfterMark(kind=after_mark("put").kind, operation="put", count=2))
    assert third.parameters == {"duration_s": 4.0}
    assert len(made) < 120


def test_sizes_get_smaller_and_not_below_their_least() -> None:
    """Of 1,000 orders 17 are left, and of eight workers two, which is the least."""
    answer, made = shrunk(
        plan(kill("a", at_step("write"))),
        lambda variant: bool(kills(variant)) and variant.sizes.get("orders", 1000) >= 17,
        sizes={"orders": (1000, 1), "workers": (8, 2)},
    )
    assert answer.shrunk is not None
    assert answer.shrunk.sizes == {"orders": (1000, 17), "workers": (8, 2)}
    assert len(made) < 60


@pytest.mark.parametrize("seed", ["a", "b", "c", "d"])
def test_a_flaky_violation_is_shrunk_too(seed: str) -> None:
    """Where it comes in half of the runs, a variant is tried more often; nothing else is taken."""
    chance = stream(seed, "flaky")
    start = plan(pause("a", after_mark("x"), duration_s=0.0), kill("b", at_step("write", occurrence=8)))

    def is_violated(variant: RunVariant) -> bool:
        return bool(kills(variant)) and chance.random() < 0.5

    answer, _ = shrunk(start, is_violated)
    if answer.problem:  # five runs in a row held
        assert answer.problem == f"of {BASELINE} runs {BASELINE} held"
        return
    assert answer.variant is not None
    assert kills(answer.variant)


def test_what_does_not_come_back_is_said() -> None:
    """Runs that held, and runs of another finding, are counted; nothing is shrunk."""
    answer, made = shrunk(plan(kill("a", at_step("write"))), lambda _: False)
    assert (answer.shrunk, len(made)) == (None, BASELINE)
    assert answer.problem == "of 5 runs 5 held"


def test_a_budget_keeps_what_was_found() -> None:
    """When no run is left, the smallest so far is the answer, and said not to be the last word."""
    faults = [kill("a", at_step("write", occurrence=n)) for n in range(1, 9)]
    answer, made = shrunk(plan(*faults), lambda variant: len(faults_of(variant)) > 0, tries=9)
    assert len(made) == 9
    assert answer.variant is not None
    assert len(faults_of(answer.variant)) < 8
    assert not answer.is_whole


def test_a_variant_whose_fault_does_not_come_is_not_taken() -> None:
    """A violation with a fault that did not come says nothing about that fault's earlier time."""
    start = plan(kill("a", at_step("write", occurrence=4)))

    def execute(variant: RunVariant) -> TrialRun:
        when = faults_of(variant)[0].when if faults_of(variant) else None
        came = isinstance(when, AtStep) and when.occurrence == 4
        return TrialRun(outcome=TrialOutcome.SAME if faults_of(variant) else TrialOutcome.HELD, unfired=int(not came))

    trials = Trials(execute, tries=100, seconds=60, clock=itertools.count(0, 0.001).__next__)
    answer = shrink(trials, start, smallest=as_it_is)
    assert answer.variant == start


def test_a_repetition_counts_and_may_stop() -> None:
    """Outcomes are counted; the first violation ends it where that is enough."""
    outcomes = iter([TrialOutcome.HELD, TrialOutcome.SAME, TrialOutcome.SAME])
    trials = Trials(lambda _: TrialRun(outcome=next(outcomes)), tries=9, seconds=9, clock=lambda: 0.0)
    answer = repeat(trials, plan(), 3, stop_at_first=True)
    assert (answer.repeated, answer.repeats, answer.problem) == (1, 2, "")


def test_the_same_finding_is_known_by_its_cause() -> None:
    """Numbers and keys do not matter; the words of a bare assertion do."""

    def of(signature: str, text: str = "") -> str:
        return cause(Finding(signature=signature, text=text))

    assert of("expectation:order 7 is kept") == of("expectation:order 9 is kept")
    assert of("expectation:kept") != of("expectation:sent")
    assert of("assertion", "assert [1, (2, 3)] == []") == of("assertion", "assert [] == []\n + more")
    assert of("assertion", "lost: {1: 2}") != of("assertion", "sent twice: {1: 2}")


def test_values_survive_json() -> None:
    """An order with a variant travels to another process and back."""
    variant = plan(kill("a", at_step("write")))
    assert msgspec.json.decode(msgspec.json.encode(variant), type=RunVariant) == variant
