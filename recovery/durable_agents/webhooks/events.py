"""What deliveries say, whoever sent them: four kinds of events, and how each sender's payload becomes one.

The tracker sends Standard Webhooks payloads, ``{"type": "issue.state_changed", "data": {...}}``;
GitHub and Gitea send ``push`` and ``status``, named by a header. Handlers know only the events, and
the reconciler makes the same ones from what it has asked for. Fields that are not needed are
ignored, since senders add some at any time.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from durable_agents.errors import InvalidDelivery

KEY_CHARACTERS_MAX: Final = 200
_HEADS: Final = "refs/heads/"


class TrackerState(enum.StrEnum):
    """The states of the tracker that mean something to a pipeline."""

    IN_PROGRESS = "In Progress"
    APPROVED = "Approved"
    REJECTED = "Rejected"


class CiState(enum.StrEnum):
    """What continuous integration says of a commit."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    PENDING = "pending"


class StartRequested(msgspec.Struct, frozen=True):
    """Somebody moved an issue to In Progress: its task is to be there, once."""

    tracker_key: str
    repo: str


class VerdictGiven(msgspec.Struct, frozen=True):
    """A person said yes or no at a gate that is a person's."""

    tracker_key: str
    is_approved: bool


class CiStatus(msgspec.Struct, frozen=True):
    """Continuous integration has come to a commit. ``branch`` is empty where the sender does not say it."""

    repo: str
    sha: str
    branch: str
    state: CiState


class Pushed(msgspec.Struct, frozen=True):
    """A branch has a new commit."""

    repo: str
    branch: str
    sha: str


Event: TypeAlias = StartRequested | VerdictGiven | CiStatus | Pushed


class _Issue(msgspec.Struct):
    key: str
    state: str
    repo: str = ""


class _TrackerPayload(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Repository(msgspec.Struct):
    full_name: str


class _Branch(msgspec.Struct):
    name: str


class _Push(msgspec.Struct):
    ref: str
    after: str
    repository: _Repository


class _Status(msgspec.Struct):
    sha: str
    state: str
    repository: _Repository
    branches: list[_Branch] = []


def parse(source: str, event: str, body: str) -> Event | None:
    """Return what a delivery says; None where it is of a kind that nobody here needs.

    Raises InvalidDelivery for a body that is not JSON, or lacks what its kind of event needs.
    """
    try:
        if source == "tracker":
            return _of_tracker(body)
        return _of_forge(event, body)
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"Expected the JSON of a delivery from {source!r} but it cannot be read ({error}); send its payload."
        raise InvalidDelivery(message) from error


def of_issue(key: str, state: str, repo: str) -> Event | None:
    """Return what it means that an issue is in this state; None where it means nothing to a pipeline."""
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        message = f"Expected an issue's key, printable and up to {KEY_CHARACTERS_MAX} characters, but got {key!r:.80}."
        raise InvalidDelivery(message)
    if state == TrackerState.IN_PROGRESS:
        return StartRequested(key, repo)
    if state in {TrackerState.APPROVED, TrackerState.REJECTED}:
        return VerdictGiven(key, is_approved=state == TrackerState.APPROVED)
    return None


def _of_tracker(body: str) -> Event | None:
    payload = msgspec.json.decode(body, type=_TrackerPayload)
    if payload.type != "issue.state_changed":
        return None
    issue = msgspec.json.decode(payload.data, type=_Issue)
    return of_issue(issue.key, issue.state, issue.repo)


def _of_forge(event: str, body: str) -> Event | None:
    if event == "push":
        push = msgspec.json.decode(body, type=_Push)
        if not push.ref.startswith(_HEADS) or not push.after.strip("0"):  # a tag, or a branch that was deleted
            return None
        return Pushed(push.repository.full_name, push.ref.removeprefix(_HEADS), push.after)
    if event == "status":
        status = msgspec.json.decode(body, type=_Status)
        branch = status.branches[0].name if len(status.branches) == 1 else ""
        if status.state not in set(CiState):
            return None
        return CiStatus(status.repository.full_name, status.sha, branch, CiState(status.state))
    msgspec.json.decode(body)  # what nobody needs is JSON all the same
    return None
