"""Plans: what they say, what is wrong with them, and that a seed alone decides what is drawn."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model import plan as plans
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import AfterMark, AtMoment, AtPoint, Fault, MarkKind, Now, Plan, When

KINDS = ("kill", "terminate", "pause", "resume", "restart")
Names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
AfterMarks = st.builds(AfterMark, kind=st.sampled_from(MarkKind), operation=Names, count=st.integers(1, 1_000))
Whens = st.one_of(
    st.just(Now()),
    AfterMarks,
    st.builds(AtPoint, point=Names, occurrence=st.integers(1, 1_000)),
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
            plans.kill("writer", plans.at_point("recovery.checkpoint.after_commit", occurrence=2)),
            "kill writer at recovery.checkpoint.after_commit (2nd time)",
        ),
        (plans.kill("writer", plans.at_point("app.saved")), "kill writer at app.saved"),
        (plans.terminate("w", plans.now()), "terminate w at once"),
        (plans.pause("w", duration_s=2.5), "pause w for 2.5 s at once"),
        (plans.pause("w", plans.after_mark("put", kind="intent", count=3)), "pause w after its 3rd intent of put"),
        (plans.resume("w", plans.at_moment(0.125)), "resume w 0.125 s after its start"),
        (
            plans.restart("w", plans.at_moment(1, after=plans.after_mark("put", count=11))),
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
    with pytest.raises(UsageError, match=r"^there is no kind of mark called 'done': give one of intent, ack, note$"):
        plans.after_mark("put", kind="done")


def test_a_plan_that_can_be_carried_out_passes() -> None:
    """Every builder's fault is valid as built, whether or not the agents are known yet."""
    plan = _plan(
        plans.kill("writer", plans.at_point("app.saved")),
        plans.pause("reader", plans.at_moment(0.0, after=plans.after_mark("get")), duration_s=0.5),
        plans.resume("reader"),
        plans.restart("writer"),
        plans.terminate("writer"),
    )

    plans.validate(plan, kinds=KINDS, agents={"writer", "reader"})
    plans.validate(plan, kinds=KINDS)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (
            Fault(kind="kil", agent="w"),
            "there is no fault called 'kil', did you mean 'kill'? Known: kill, pause, restart, resume, terminate",
        ),
        (
            Fault(kind="meteor", agent="w"),
            "there is no fault called 'meteor': Known: kill, pause, restart, resume, terminate",
        ),
        (plans.kill("writr"), "there is no agent called 'writr', did you mean 'writer'? Known: w, writer"),
        (plans.kill("w", plans.at_point(" ")), "the crash point has no name: give the name of an audit event"),
        (plans.kill("w", plans.at_point("p", occurrence=0)), "occurrence counts from 1, so it cannot be 0"),
        (
            plans.kill("w", plans.after_mark("")),
            "the mark's operation has no name: give the operation that the agent marks",
        ),
        (plans.kill("w", plans.after_mark("put", count=-1)), "count counts from 1, so it cannot be -1"),
        (
            plans.kill("w", plans.at_moment(-0.5)),
            "delay_s must be a finite number of seconds, 0 or more, not -0.5",
        ),
        (
            plans.kill("w", plans.at_moment(math.nan)),
            "delay_s must be a finite number of seconds, 0 or more, not nan",
        ),
        (
            plans.kill("w", plans.at_moment(math.inf)),
            "delay_s must be a finite number of seconds, 0 or more, not inf",
        ),
        (
            plans.kill("w", plans.at_moment(1, after=plans.after_mark("put", count=0))),
            "count counts from 1, so it cannot be 0",
        ),
        (plans.pause("w", duration_s=-1), "duration_s must be a finite number of seconds, 0 or more, not -1"),
        (
            Fault(kind="pause", agent="w", parameters={"duration_s": "long"}),
            "duration_s must be a finite number of seconds, 0 or more, not 'long'",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused(fault: Fault, problem: str) -> None:
    """Each mistake in a plan is named with the fault it is in, what came, and what to do."""
    with pytest.raises(UsageError) as caught:
        plans.validate(_plan(fault), kinds=KINDS, agents=["w", "writer"])

    assert str(caught.value) == f"the plan cannot be carried out: fault 1 ({plans.describe(fault)}): {problem}"


def test_all_problems_are_reported_together() -> None:
    """Nobody has to correct a plan one error at a time: two faults with three mistakes give three lines."""
    plan = _plan(plans.kill("nobody", plans.at_point("")), plans.kill("w"), Fault(kind="meteor", agent="w"))

    with pytest.raises(UsageError) as caught:
        plans.validate(plan, kinds=KINDS, agents=["w"])

    head, *lines = str(caught.value).splitlines()
    assert head == "the plan cannot be carried out: "
    assert [line.partition(" (")[0] for line in lines] == ["- fault 1", "- fault 1", "- fault 3"]


def test_with_no_agents_at_all_the_error_says_so() -> None:
    """A plan made before the first spawn says that there is no agent, rather than an empty list of them."""
    with pytest.raises(UsageError, match=r"there is no agent called 'w': none is known$"):
        plans.validate(_plan(plans.kill("w")), kinds=KINDS, agents=())


@pytest.mark.parametrize(
    "fault",
    [
        plans.kill("w", plans.at_moment("soon")),  # type: ignore[arg-type]
        plans.kill("w", plans.at_point(7)),  # type: ignore[arg-type]
        Fault(kind="kill", agent="w", parameters={"lock": object()}),
    ],
)
def test_values_of_the_wrong_type_are_refused(fault: Fault) -> None:
    """What a type checker would have refused is an error of the user's too, not a traceback from within."""
    with pytest.raises(UsageError, match=r"^the plan is not made of plain values of the right types: "):
        plans.validate(_plan(fault), kinds=KINDS)


@given(Plans)
def test_a_plan_survives_being_written_and_read(plan: Plan) -> None:
    """JSON out and in again gives the plan that was written: what an evidence pack replays is what ran."""
    assert plans.from_json(plans.to_json(plan)) == plan
    assert all(plans.describe(fault) for fault in plan.faults)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "Input data was truncated"),
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"seed": "7"}', "Object missing required field `scenario`"),
        ('{"seed": "7", "scenario": "s", "faults": [{"kind": "kill"}]}', "required field `agent` - at `$.faults[0]`"),
        (
            '{"seed": "7", "scenario": "s", "faults": [{"kind": "kill", "agent": "w", "when": {"when": "never"}}]}',
            "Invalid value 'never' - at `$.faults[0].when.when`",
        ),
        (b"\xff", "malformed"),
        ("[" * 100_000, "this is not a plan"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_place(text: str | bytes, wrong: str) -> None:
    """A damaged or foreign file says what is wrong with it and where, in one sentence."""
    with pytest.raises(UsageError) as caught:
        plans.from_json(text)

    message = str(caught.value)
    assert message.startswith("this is not a plan: ")
    assert wrong in message
    assert message.endswith("; expected the JSON of a plan as an evidence pack holds it")


@pytest.mark.parametrize("value", [object(), "half \ud800"])
def test_a_plan_that_json_cannot_hold_is_refused(value: object) -> None:
    """A parameter that could not be read back is refused when it is written."""
    plan = _plan(Fault(kind="kill", agent="w", parameters={"x": value}))

    with pytest.raises(UsageError, match=r"^the plan holds a value that JSON cannot hold \(.+\): use text, numbers"):
        plans.to_json(plan)


WIDE = plans.Capabilities(
    kinds=("kill", "pause"),
    agents=("a", "b", "c"),
    points=("app.begun", "app.saved"),
    occurrence_max=3,
    moment_window_s=(0.25, 0.75),
    after=AfterMark(kind=MarkKind.INTENT, operation="put"),
)


def test_the_same_seed_draws_the_same_plan_for_ever() -> None:
    """The pinned faults hold on every machine and version of Python: a reported seed repeats its plan."""
    drawn = plans.draw(WIDE, stream("7", "plan", "01-kill-9", 0), count=3)

    assert [plans.describe(fault) for fault in drawn] == [
        "kill a 0.571926 s after its 1st intent of put",
        "kill a at app.saved",
        "kill a 0.677466 s after its 1st intent of put",
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=4), st.integers(0, 8))
def test_every_drawn_plan_can_be_carried_out(seed: str, count: int) -> None:
    """Whatever the seed, as many faults as asked for are drawn, within all bounds."""
    faults = plans.draw(WIDE, stream(seed), count=count)

    assert len(faults) == count
    plans.validate(_plan(*faults), kinds=WIDE.kinds, agents=WIDE.agents)
    for fault in faults:
        assert _within_bounds(fault.when)
    assert plans.draw(WIDE, stream(seed), count=count) == faults


def test_everything_that_can_be_drawn_is_drawn() -> None:
    """In a long plan each kind, agent, point and occurrence turns up, and moments in both halves of the window."""
    faults = plans.draw(WIDE, stream("7"), count=400)

    assert {fault.kind for fault in faults} == set(WIDE.kinds)
    assert {fault.agent for fault in faults} == set(WIDE.agents)
    points = {(fault.when.point, fault.when.occurrence) for fault in faults if isinstance(fault.when, AtPoint)}
    assert points == {(point, occurrence) for point in WIDE.points for occurrence in (1, 2, 3)}
    delays_s = [fault.when.delay_s for fault in faults if isinstance(fault.when, AtMoment)]
    assert min(delays_s) < 0.5 < max(delays_s)


def test_without_points_and_moments_faults_fire_at_once() -> None:
    """A target of which nothing is known can still be killed."""
    capabilities = plans.Capabilities(kinds=("kill",), agents=("w",))

    assert plans.draw(capabilities, stream("7")) == (plans.kill("w"),)


@pytest.mark.parametrize(
    ("capabilities", "count", "problem"),
    [
        (plans.Capabilities(kinds=(), agents=("w",)), 1, "name at least one kind of fault"),
        (plans.Capabilities(kinds=("kill",), agents=()), 1, "name at least one agent"),
        (plans.Capabilities(kinds=("kill",), agents=("w",)), -1, "their number must be 0 or more, not -1"),
        (
            plans.Capabilities(kinds=("kill",), agents=("w",), occurrence_max=0),
            1,
            "occurrence_max must be 1 or more, not 0",
        ),
        (
            plans.Capabilities(kinds=("kill",), agents=("w",), moment_window_s=(2.0, 1.0)),
            1,
            "moment_window_s must run from 0 or more to no less, in seconds, not from 2.0 to 1.0",
        ),
        (
            plans.Capabilities(kinds=("kill",), agents=("w",), moment_window_s=(0.0, math.nan)),
            1,
            "moment_window_s must run from 0 or more to no less, in seconds, not from 0.0 to nan",
        ),
    ],
)
def test_nothing_to_draw_from_is_an_error(capabilities: plans.Capabilities, count: int, problem: str) -> None:
    """An empty or senseless choice is refused: a campaign without faults would prove nothing."""
    with pytest.raises(UsageError) as caught:
        plans.draw(capabilities, stream("7"), count=count)

    assert str(caught.value) == f"no faults can be drawn: {problem}"


def _within_bounds(when: When) -> bool:
    if isinstance(when, AtMoment):
        return 0.25 <= when.delay_s <= 0.75 and when.after == WIDE.after
    return isinstance(when, AtPoint) and when.point in WIDE.points and 1 <= when.occurrence <= 3
