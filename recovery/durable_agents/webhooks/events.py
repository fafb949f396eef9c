"""Events: the content of a delivery, in one form for all senders.

The tracker sends Standard Webhooks payloads, ``{"type": "issue.state_changed", "data": {...}}``.
GitHub and Gitea send ``push`` and ``status``, named by a header. Handlers know only the events, and
the reconciler makes the same ones from what it polls. Fields that are not needed are ignored, since
senders add some at any time.
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
    """The result of continuous integration for a commit."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    PENDING = "pending"


class StartRequested(msgspec.Struct, frozen=True):
    """An issue was moved to In Progress: its task is to exist, once."""

    tracker_key: str
    repo: str


class VerdictGiven(msgspec.Struct, frozen=True):
    """A person has approved or rejected at a human gate."""

    tracker_key: str
    is_approved: bool


class CiStatus(msgspec.Struct, frozen=True):
    """Continuous integration has a result for a commit. ``branch`` is empty if not named."""

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
    """Return the event of a delivery, or None for a kind of event that no handler needs.

    Raises InvalidDelivery for a body that is not JSON, or lacks a field of its kind of event.

    >>> body = '{"type": "issue.state_changed", "data": {"key": "ORCH-1", "state": "Approved"}}'
    >>> parse("tracker", "", body)
    VerdictGiven(tracker_key='ORCH-1', is_approved=True)
    """
    try:
        return _of_tracker(body) if source == "tracker" else _of_forge(event, body)
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"The body from {source!r} must be JSON of its event; got '{error}'. Send its payload."
        raise InvalidDelivery(message) from error


def of_issue(key: str, state: str, repo: str) -> Event | None:
    """Return the event of an issue in this state, or None. Raises InvalidDelivery for its key."""
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        message = f"An issue's key must be 1 to {KEY_CHARACTERS_MAX} printable characters; got {key!r:.80}. Correct it."
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
    msgspec.json.decode(body)  # an event that is not needed must be JSON, too
    return None
