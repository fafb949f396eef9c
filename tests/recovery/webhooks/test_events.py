"""What deliveries say: each sender's payload becomes the same few events,
and nothing else gets through.
"""

from __future__ import annotations

import json

import pytest
from durable_agents.errors import InvalidDelivery
from durable_agents.webhooks import events
from durable_agents.webhooks.events import CiState, CiStatus, Pushed, StartRequested, VerdictGiven
from hypothesis import given, strategies as st


def issue(state: str, key: str = "ORCH-1", repo: str = "shop") -> str:
    """Return the tracker's payload."""
    return json.dumps({"type": "issue.state_changed", "data": {"key": key, "state": state, "repo": repo, "x": 1}})


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("In Progress", StartRequested("ORCH-1", "shop")),
        ("Approved", VerdictGiven("ORCH-1", is_approved=True)),
        ("Rejected", VerdictGiven("ORCH-1", is_approved=False)),
        ("Backlog", None),
    ],
)
def test_the_trackers_states_are_events(state: str, event: object) -> None:
    """Three states mean something to a pipeline; another is none of its business."""
    assert events.parse("tracker", "", issue(state)) == event


@pytest.mark.parametrize("source", ["github", "gitea"])
def test_a_push_is_of_a_branch(source: str) -> None:
    """Tags, and branches that were deleted, are passed over."""
    push = {"ref": "refs/heads/feature/x", "after": "a1", "repository": {"full_name": "org/shop"}}
    assert events.parse(source, "push", json.dumps(push)) == Pushed("org/shop", "feature/x", "a1")
    assert events.parse(source, "push", json.dumps(push | {"ref": "refs/tags/v1"})) is None
    assert events.parse(source, "push", json.dumps(push | {"after": "0" * 40})) is None


@pytest.mark.parametrize(
    ("branches", "branch"), [([{"name": "x"}], "x"), ([], ""), ([{"name": "x"}, {"name": "y"}], "")]
)
def test_a_status_names_its_branch_if_there_is_one(branches: list[object], branch: str) -> None:
    """None, or several, leave it open: a guess could move the wrong task."""
    status = {"sha": "a1", "state": "success", "branches": branches, "repository": {"full_name": "org/shop"}}
    expected = CiStatus("org/shop", "a1", branch, CiState.SUCCESS)
    assert events.parse("github", "status", json.dumps(status)) == expected
    assert events.parse("github", "status", json.dumps(status | {"state": "stale"})) is None


def test_other_kinds_of_events_are_nobodys() -> None:
    """They are JSON all the same."""
    assert events.parse("github", "issue_comment", "{}") is None
    assert events.parse("tracker", "", '{"type": "comment.created"}') is None
    with pytest.raises(InvalidDelivery):
        events.parse("github", "issue_comment", "<html>")


@pytest.mark.parametrize(
    ("source", "event", "body"),
    [
        ("tracker", "", "not json"),
        ("tracker", "", "[]"),
        ("tracker", "", '{"type": "issue.state_changed"}'),
        ("tracker", "", '{"type": "issue.state_changed", "data": {"key": 7, "state": "Approved"}}'),
        ("tracker", "", issue("In Progress", key="")),
        ("tracker", "", issue("In Progress", key="x" * 201)),
        ("tracker", "", issue("In Progress", key="a\nb")),
        ("github", "push", "{}"),
        ("github", "push", '{"ref": 1, "after": "a", "repository": {"full_name": "x"}}'),
        ("github", "status", '{"sha": "a1"}'),
        ("github", "push", "[" * 100_000),
    ],
)
def test_what_cannot_be_meant_is_refused(source: str, event: str, body: str) -> None:
    """Not JSON, or without what the event needs: one sentence."""
    with pytest.raises(InvalidDelivery):
        events.parse(source, event, body)


@given(st.sampled_from(["tracker", "github", "gitea"]), st.sampled_from(["", "push", "status"]), st.text())
def test_no_body_breaks_the_parser(source: str, event: str, body: str) -> None:
    """Any text is an event, nothing, or refused."""
    try:
        events.parse(source, event, body)
    except InvalidDelivery as error:
        assert str(error)  # noqa: PT017 - most texts are refused, a few are not
