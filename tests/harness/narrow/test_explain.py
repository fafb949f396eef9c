"""The curve over the moments of a fault, and the neighbour that holds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos import after_mark, at_delivery, at_moment, at_step, deliver, hold_lock, kill
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtStep, Plan
from pytest_chaos.narrow.explain import explain, faults_to_move, sweep
from pytest_chaos.narrow.shrink import faults_of
from pytest_chaos.narrow.trial import Trials
from pytest_chaos.narrow.variant import AgentMoment, RunVariant, TrialOutcome, TrialRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.model.values import Fault, When
    from pytest_chaos.narrow.variant import Narrowed


def writes(count: int) -> tuple[AgentMoment, ...]:
    """Return the moments of a program that writes and then acknowledges so many times."""
    return tuple(
        AgentMoment(kind="step", name="write", agent="a", text=f"write {at}", line=f"a.py:{at}")
        if at % 2
        else AgentMoment(kind="mark", name="ack", agent="a", text=f"ack put {at}", operation="put")
        for at in range(1, 2 * count + 1)
    )


def number_of(when: When) -> int:
    """Return the number of a moment of ``writes``."""
    return 2 * when.occurrence - 1 if isinstance(when, AtStep) else 2 * getattr(when, "count", 0)


def explained(
    is_violated: Callable[[When], bool | None],
    moments: tuple[AgentMoment, ...] = (),
    *,
    fault: Fault | None = None,
    many: int = 80,
    how: str = "explain",
    deliveries: int = 0,
) -> tuple[Narrowed, list[When]]:
    """Explain a program of which it is known when it is violated; None: the fault does not come."""
    made: list[When] = []
    start = RunVariant(plan=Plan(seed="s", scenario="x", faults=(fault or kill("a", at_step("write")),)))

    def execute(variant: RunVariant) -> TrialRun:
        seen = moments if variant.survey else ()
        if not faults_of(variant):
            return TrialRun(outcome=TrialOutcome.HELD, moments=seen, agents={"a": 2.0}, deliveries=deliveries)
        when = faults_of(variant)[0].when
        made.append(when)
        is_wrong = True if len(made) <= 4 else is_violated(when)
        if is_wrong is None:
            return TrialRun(outcome=TrialOutcome.UNANSWERED, unfired=1, why="it did not come")
        return TrialRun(outcome=TrialOutcome.SAME if is_wrong else TrialOutcome.HELD, moments=seen)

    trials = Trials(execute, tries=2000, seconds=60, clock=itertools.count(0, 0.001).__next__)
    if how == "sweep":
        made += [at_step("write")] * 4
        return sweep(trials, start, fault=None, moments=many), made
    return explain(trials, start, fault=None, each=3, moments=many), made


def test_the_neighbours_of_a_window_are_named() -> None:
    """A kill at 7 to 9 of 20 moments is fatal: both ends of the window are said, with the line."""
    answer, _ = explained(lambda when: 7 <= number_of(when) <= 9, writes(10))
    assert answer.curve is not None
    assert [point.at for point in answer.curve.points if point.violated] == [7, 8, 9]
    assert all(point.runs == 3 for point in answer.curve.points if not point.violated)
    first, last = answer.curve.neighbours
    assert first == (
        "survives at moment 6, lost at moment 7: write 7 (a.py:7). The kill comes after mark 6 (ack put 6), "
        "and before step 7"
    )
    assert last.startswith("lost at moment 9, survives at moment 10: ack put 10. The kill comes after step 9 (write 9")


def test_of_many_moments_the_edges_are_still_found() -> None:
    """Of 2,000 moments some 100 are tried, and the edge is where it is."""
    answer, made = explained(lambda when: number_of(when) >= 777, writes(1000), many=100)
    assert answer.curve is not None
    assert len(answer.curve.points) < 101
    assert len(made) < 320
    (edge,) = answer.curve.neighbours
    assert edge.startswith("survives at moment 776, lost at moment 777: write 777")
    assert "not tried" not in edge


def test_steps_alone_have_their_unit() -> None:
    """Without marks the numbers are those of steps."""
    steps = tuple(each for each in writes(4) if each.kind == "step")
    answer, _ = explained(lambda when: getattr(when, "occurrence", 0) == 2, steps)
    assert answer.curve is not None
    assert answer.curve.unit == "step"
    assert answer.curve.neighbours[0].startswith("survives at step 1, lost at step 2: write 3 (a.py:3)")


def test_moments_without_an_answer_are_no_points() -> None:
    """A fault that does not come says nothing, and that is said."""
    answer, _ = explained(lambda when: None if number_of(when) < 3 else number_of(when) == 5, writes(4))
    assert answer.curve is not None
    assert [point.at for point in answer.curve.points] == [3, 4, 5, 6, 7, 8]
    assert answer.notes == ("no run came to an answer at 1, 2: it did not come",)


def test_without_steps_or_marks_moments_are_times() -> None:
    """They are spread over the life of the agent, in milliseconds."""
    answer, made = explained(
        lambda when: isinstance(when, AtMoment) and when.delay_s >= 1.0, fault=kill("a", at_moment(1.9))
    )
    assert answer.curve is not None
    assert (answer.curve.unit, answer.curve.points[-1].at) == ("ms", 1900)
    assert answer.curve.neighbours == ("survives at ms 900, lost at ms 1000",)
    assert all(isinstance(when, AtMoment) for when in made)


def test_a_delivery_is_moved_over_the_deliveries() -> None:
    """A toxic has numbers of deliveries in place of moments."""
    fault = deliver("proxy", "lose", at_delivery(2))
    answer, _ = explained(lambda when: isinstance(when, AtDelivery) and when.number == 2, fault=fault, deliveries=3)
    assert answer.curve is not None
    assert answer.curve.unit == "delivery"
    assert [(point.at, point.violated > 0) for point in answer.curve.points] == [(1, False), (2, True), (3, False)]


def test_a_fault_that_an_agent_of_its_own_time_meets_is_moved_in_that_time() -> None:
    """The moments of a fault at another agent's time are those of the other agent."""
    fault = kill("b", after_mark("put", agent="a"))
    answer, made = explained(lambda when: number_of(when) == 2, writes(2), fault=fault)
    assert answer.curve is not None
    assert all(isinstance(when, AfterMark | AtStep) and when.agent == "a" for when in made)


def test_a_curve_without_an_edge_has_no_neighbour() -> None:
    """Where every moment is fatal there is nothing to name."""
    answer, _ = explained(lambda _: True, writes(3))
    assert answer.curve is not None
    assert answer.curve.neighbours == ()


def test_a_sweep_ends_at_the_first_violation() -> None:
    """It says at which moment that was; without one, at how many it held."""
    answer, _ = explained(lambda when: number_of(when) == 4, writes(10), how="sweep")
    assert (answer.repeated, answer.where) == (1, "with the kill at ack put 4")
    answer, _ = explained(lambda _: False, writes(10), how="sweep")
    assert (answer.repeated, answer.repeats) == (0, 20)


def test_a_kill_that_others_wait_for_is_passed_over() -> None:
    """Moved, it leaves no run to judge: then the next kill is moved, and that is said."""
    first = kill("a", at_step("sync"))
    start = RunVariant(plan=Plan(seed="s", scenario="x", faults=(first, kill("a", at_step("write", occurrence=2)))))

    def execute(variant: RunVariant) -> TrialRun:
        seen = writes(2) if variant.survey else ()
        if first not in faults_of(variant):
            return TrialRun(outcome=TrialOutcome.UNANSWERED, unfired=1, why="agent b waited", moments=seen)
        return TrialRun(outcome=TrialOutcome.SAME, moments=seen)

    trials = Trials(execute, tries=2000, seconds=60, clock=itertools.count(0, 0.001).__next__)
    answer = explain(trials, start, fault=None, each=1, moments=10)
    assert answer.curve is not None
    *_, passed_over, moved = answer.notes
    assert passed_over.startswith("fault 1 (kill a at the step sync), moved: no run at any moment came")
    assert passed_over.endswith("agent b waited")
    assert moved == "fault 2 of 2 was moved; --fault moves another one"
    answer = explain(trials, start, fault=1, each=1, moments=10)
    assert answer.curve is None
    assert "no run came to an answer at 1, 2, 3, 4" in answer.problem


def test_the_faults_that_are_moved_are_the_kills() -> None:
    """Another one may be asked for; a plan without faults, and a wrong number, are refused."""
    faults = [hold_lock("a", at_step("write"), database="x", duration_s=1.0), kill("a", at_step("sync"))]
    assert faults_to_move(faults, None) == [1]
    assert faults_to_move(faults, 1) == [0]
    assert faults_to_move(faults[:1], None) == [0]
    with pytest.raises(UsageError, match=r"--fault must be 1 to 2; got 3"):
        faults_to_move(faults, 3)
    with pytest.raises(UsageError, match=r"must have a plan with a fault to move; got none"):
        faults_to_move([], None)


def test_an_answer_travels() -> None:
    """The answer of another process is read as it was."""
    answer, _ = explained(lambda when: number_of(when) == 3, writes(3))
    assert msgspec.json.decode(msgspec.json.encode(answer), type=type(answer)) == answer
