"""Plans: what they say, and what is wrong with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, strategies as st
from pytest_chaos import kill, pause, restart, resume, terminate
from pytest_chaos.errors import UsageError
from pytest_chaos.model import plan as plans
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, AtStep, Fault, MarkKind, Now, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pytest_chaos.model.values import When


class Rules:
    """A kind of fault that fires at any time but a delivery, and takes one parameter."""

    takes: Collection[type[When]] = (Now, AfterMark, AtPoint, AtMoment)
    advice = "Deliveries are another's."

    def problems(self, fault: Fault) -> Iterator[str]:
        """Refuse any parameter but ``duration_s``."""
        yield from (f"{name} must not be there" for name in fault.parameters if name != "duration_s")


NO_DELIVERIES = "the time of kill must be now(), after_mark(...), at_point(...) or at_moment(...)"
KINDS: dict[str, plans.FaultRules] = dict.fromkeys(("kill", "terminate", "pause", "resume", "restart"), Rules())
Names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
AfterMarks = st.builds(AfterMark, kind=st.sampled_from(MarkKind), operation=Names, count=st.integers(1, 1_000))
Whens = st.one_of(
    st.just(Now()),
    AfterMarks,
    st.builds(AtPoint, point=Names, occurrence=st.integers(1, 1_000)),
    st.builds(AtStep, step=st.sampled_from(plans.STEPS), path=Names, agent=Names),
    st.builds(AtMoment, delay_s=st.floats(0, 1e6), after=st.none() | AfterMarks),
)
Parameters = st.dictionaries(Names, st.integers(-(2**53), 2**53) | Names, max_size=2)
Faults = st.builds(Fault, kind=Names, agent=Names, when=Whens, parameters=Parameters)
Plans = st.builds(
    Plan, seed=Names, scenario=Names, iteration=st.integers(0, 50), faults=st.lists(Faults, max_size=4).map(tuple)
)


def _plan(*faults: Fault) -> Plan:
    return Plan(seed="7", scenario="01-kill-9", faults=faults)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            kill("writer", plans.at_point("recovery.checkpoint.after_commit", occurrence=2)),
            "kill writer at recovery.checkpoint.after_commit (2nd time)",
        ),
        (kill("writer", plans.at_point("app.saved")), "kill writer at app.saved"),
        (terminate("w", plans.now()), "terminate w at once"),
        (pause("w", duration_s=2.5), "pause w for 2.5 s at once"),
        (pause("w", plans.after_mark("put", kind="intent", count=3)), "pause w after its 3rd intent of put"),
        (resume("w", plans.at_moment(0.125)), "resume w 0.125 s after its start"),
        (
            restart("w", plans.at_moment(1, after=plans.after_mark("put", count=11))),
            "restart w 1 s after its 11th ack of put",
        ),
        (Fault(kind="fill-disk", agent="w", parameters={"free_bytes": 0}), "fill-disk w at once (free_bytes=0)"),
    ],
)
def test_a_fault_is_said_in_a_few_words(fault: Fault, text: str) -> None:
    """The text names the fault, the agent and the time, as a person would say it."""
    assert plans.describe(fault) == text


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1st"), (2, "2nd"), (4, "4th"), (12, "12th"), (21, "21st"), (103, "103rd"), (111, "111th")]
)
def test_occurrences_are_counted_in_words(number: int, text: str) -> None:
    """A count reads as English ordinals do, the teens among them."""
    assert plans.describe_when(plans.after_mark("put", count=number)) == f"after its {text} ack of put"


def test_a_mark_of_no_known_kind_is_refused() -> None:
    """A misspelt kind of mark says which there are."""
    with pytest.raises(UsageError, match=r"^the kind of a mark must be one of intent, ack, note; got 'done'$"):
        plans.after_mark("put", kind="done")


def test_a_plan_that_can_be_carried_out_passes() -> None:
    """Every builder's fault is valid as built."""
    plan = _plan(
        kill("writer", plans.at_point("app.saved")),
        pause("reader", plans.at_moment(0.0, after=plans.after_mark("get")), duration_s=0.5),
        resume("reader"),
        restart("writer"),
        terminate("writer"),
    )

    plans.validate(plan, kinds=KINDS)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (
            Fault(kind="kil", agent="w"),
            "the fault must be one of kill, pause, restart, resume, terminate; got 'kil'. Did you mean 'kill'?",
        ),
        (
            Fault(kind="meteor", agent="w"),
            (
                "the fault must be one of kill, pause, restart, resume, terminate; got 'meteor'. "
                "Install what brings it, again if it is new"
            ),
        ),
        (kill("w", plans.at_point(" ")), "the crash point must have a name; got ' '. Give the name of an audit event"),
        (kill("w", plans.at_point("p", occurrence=0)), "occurrence must be 1 or more; got 0. Count from 1"),
        (
            kill("w", plans.after_mark("")),
            "the mark's operation must have a name; got ''. Give the operation of a mark",
        ),
        (kill("w", plans.after_mark("put", count=-1)), "count must be 1 or more; got -1. Count from 1"),
        (
            kill("w", plans.at_moment(-0.5)),
            "delay_s must be a finite number of seconds, 0 to 1,000,000; got -0.5. Give such a delay",
        ),
        (
            kill("w", plans.at_moment(math.nan)),
            "delay_s must be a finite number of seconds, 0 to 1,000,000; got nan. Give such a delay",
        ),
        (
            kill("w", plans.at_moment(math.inf)),
            "delay_s must be a finite number of seconds, 0 to 1,000,000; got inf. Give such a delay",
        ),
        (
            kill("w", plans.at_moment(1, after=plans.after_mark("put", count=0))),
            "count must be 1 or more; got 0. Count from 1",
        ),
        (Fault(kind="pause", agent="w", parameters={"x": 1}), "x must not be there"),
        (
            Fault(kind="kill", agent="w", when=AtDelivery()),
            f"{NO_DELIVERIES}; got at_delivery(...). Deliveries are another's.",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused(fault: Fault, problem: str) -> None:
    """Each mistake in a plan is named with the fault it is in, what came, and what to do."""
    with pytest.raises(UsageError) as caught:
        plans.validate(_plan(fault), kinds=KINDS)

    assert str(caught.value) == f"the plan cannot be carried out: fault 1 ({plans.describe(fault)}): {problem}"


def test_all_problems_are_reported_together() -> None:
    """Nobody has to correct a plan one error at a time:
    two faults with three mistakes give three lines.
    """
    plan = _plan(kill("w", plans.at_point("", occurrence=0)), kill("w"), Fault(kind="meteor", agent="w"))

    with pytest.raises(UsageError) as caught:
        plans.validate(plan, kinds=KINDS)

    head, *lines = str(caught.value).splitlines()
    assert head == "the plan cannot be carried out: "
    assert [line.partition(" (")[0] for line in lines] == ["- fault 1", "- fault 1", "- fault 3"]


@pytest.mark.parametrize(
    "fault",
    [
        kill("w", plans.at_moment("soon")),  # type: ignore[arg-type]
        kill("w", plans.at_point(7)),  # type: ignore[arg-type]
        Fault(kind="kill", agent="w", parameters={"lock": object()}),
    ],
)
def test_values_of_the_wrong_type_are_refused(fault: Fault) -> None:
    """What a type checker would have refused is an error of the user's too,
    not a traceback from within.
    """
    with pytest.raises(UsageError, match=r"^a plan must be made of plain values of the right types; got: "):
        plans.validate(_plan(fault), kinds=KINDS)


@given(Plans)
def test_a_plan_survives_being_written_and_read(plan: Plan) -> None:
    """JSON out and in again gives the plan that was written:
    what an evidence pack replays is what ran.
    """
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert all(plans.describe(fault) for fault in plan.faults)
