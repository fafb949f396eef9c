"""Liveness and coverage checkers: what did not come in time, and what no run ever reached."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.checkers import coverage, liveness
from pytest_chaos.errors import UsageError
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Key, Mark, MarkKind, Verdict


def _history(*marks: tuple[str, str, Key]) -> History:
    return History.from_lines(
        History(
            tuple(Mark(kind=MarkKind(kind), operation=operation, key=key, agent="w") for kind, operation, key in marks)
        ).to_lines()
    )


BEFORE_AND_AFTER = _history(
    ("intent", "put", 1), ("ack", "put", 1), ("intent", "put", 2), ("intent", "put", 3), ("ack", "put", 3)
)


@pytest.mark.parametrize(("healed", "count"), [(0, 2), (2, 1), (4, 1), (5, 0)])
def test_progress_after_the_heal_passes(healed: int, count: int) -> None:
    """As many acks after the heal as were asked for are progress;
    the mark at the heal's own place counts.
    """
    assert liveness.progress_after(BEFORE_AND_AFTER, "put", healed=healed, count=count) == ()


@pytest.mark.parametrize(("healed", "count", "acks"), [(5, 1, 0), (2, 2, 1), (0, 3, 2)])
def test_too_little_progress_after_the_heal_is_found(healed: int, count: int, acks: int) -> None:
    """Acks from before the heal are no progress, and intents never are."""
    (finding,) = liveness.progress_after(BEFORE_AND_AFTER, "put", healed=healed, count=count)

    assert (finding.signature, finding.kind, finding.verdict) == (
        "liveness:no-progress",
        "liveness",
        Verdict.VIOLATED,
    )
    assert finding.text == f"{acks} acks of put after the heal (mark {healed}), expected at least {count}"


def test_progress_of_one_agent_is_not_that_of_another() -> None:
    """With an agent's name, that agent has to move."""
    assert liveness.progress_after(BEFORE_AND_AFTER, "put", healed=2, agent="w") == ()
    (finding,) = liveness.progress_after(BEFORE_AND_AFTER, "put", healed=2, agent="v")
    assert finding.text.startswith("0 acks of put by v after the heal")


def test_what_was_begun_after_the_heal_must_be_finished() -> None:
    """An open intent is unknown while faults may strike, and a finding once they are gone."""
    assert liveness.nothing_unfinished(BEFORE_AND_AFTER, "put", healed=3) == ()
    (finding,) = liveness.nothing_unfinished(BEFORE_AND_AFTER, "put", healed=2)
    assert (finding.signature, finding.kind, finding.orders) == ("liveness:unfinished", "liveness", (2,))
    assert finding.text == "1 put begun after the heal and not finished: 2"


@pytest.mark.parametrize("observed_s", [0.0, 1.99, 2.0])
def test_what_comes_within_its_bound_passes(observed_s: float) -> None:
    """The bound itself is in time."""
    assert liveness.progress_within("the first checkpoint", observed_s=observed_s, bound_s=2.0) == ()


@pytest.mark.parametrize(
    ("observed_s", "seen"), [(2.5, "took 2.5 s"), (None, "has not come"), (math.nan, "took nan s")]
)
def test_an_expired_bound_is_found(observed_s: float | None, seen: str) -> None:
    """Too late and not at all are told apart; a time that is no number is not in time."""
    (finding,) = liveness.progress_within("the first checkpoint", observed_s=observed_s, bound_s=2.0)

    assert (finding.signature, finding.kind) == ("liveness:bound-expired", "liveness")
    assert finding.text == f"the first checkpoint {seen}, expected within 2 s after the heal"


@pytest.mark.parametrize("bound_s", [-1.0, math.inf, math.nan])
def test_a_bound_that_bounds_nothing_is_refused(bound_s: float) -> None:
    """A wait without end could never be a finding."""
    with pytest.raises(UsageError) as caught:
        liveness.progress_within("it", observed_s=None, bound_s=bound_s)

    assert str(caught.value) == (
        f"the bound of it must be a finite number of seconds, 0 or more; got {bound_s}. Give such a bound"
    )


@given(
    st.dictionaries(st.text("ab", max_size=2), st.integers(0, 2)), st.dictionaries(st.text("cd", min_size=1), st.none())
)
def test_a_steady_state_that_is_regained_passes(before: dict[str, object], more: dict[str, object]) -> None:
    """The same observations as before pass, and further ones do not matter."""
    assert liveness.steady_state_regained(before, before | more) == ()


def test_a_steady_state_that_is_not_regained_is_found() -> None:
    """Each observation that differs or is missing is shown as it was and as it is."""
    before = {"healthy": True, "workers": 3, "queue": "empty"}

    (finding,) = liveness.steady_state_regained(before, {"healthy": True, "workers": 2})

    assert (finding.signature, finding.kind) == ("liveness:steady-state-not-regained", "liveness")
    assert finding.text == (
        "2 observations differ from the steady state: workers was 3, is 2, queue was 'empty', is not observed"
    )


def test_reaching_every_expected_point_passes() -> None:
    """Points beyond the expected ones do not matter, nor does how often each was passed."""
    assert coverage.all_reached(["begin", "commit"], ["commit", "begin", "commit", "other"]) == ()


def test_a_point_that_no_run_reached_leaves_the_matter_open() -> None:
    """Nothing wrong was seen there, because nothing was seen there."""
    (finding,) = coverage.all_reached(["begin", "commit", "ack"], ["begin"], "crash points")

    assert finding.signature == "coverage:never-reached"
    assert finding.text == "2 of 3 crash points never reached: 'commit', 'ack'"
    assert finding.verdict is Verdict.INCONCLUSIVE


def test_expecting_nothing_is_no_pass() -> None:
    """An empty list of points, from a target that names none, would pass whatever happens."""
    (finding,) = coverage.all_reached([], ["begin"])

    assert (finding.signature, finding.verdict) == ("coverage:nothing-expected", Verdict.INCONCLUSIVE)


def test_a_claim_must_hold_in_one_run_of_all() -> None:
    """A claim that held once passes; one that was made in every run and held in none is found."""
    runs = [{"taken over": False, "retried": False}, {"taken over": True, "retried": False}, {}]

    (finding,) = coverage.sometimes(runs)

    assert finding.signature == "coverage:never-held"
    assert finding.text == "1 claims never held in any run (claim: runs that asked): 'retried': 2"
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert coverage.sometimes([]) == ()


def test_agents_say_with_notes_where_they_were() -> None:
    """The places of all runs together are the keys of their ``reached`` notes."""
    histories = [
        _history(("note", "reached", "begin"), ("note", "pragmas", "commit")),
        _history(("note", "reached", 2), ("note", "reached", None), ("ack", "reached", "ack")),
    ]

    assert coverage.places_reached(histories) == {"begin", "2"}
