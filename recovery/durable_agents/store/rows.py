"""The values between managers and a store: one frozen value per table, fields in column order."""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from durable_agents.clock import Microseconds

Scalar: TypeAlias = str | int | float | None
"""A value of a column that JSON can hold too: no bytes."""


class JobStatus(enum.StrEnum):
    """The status of a job. The last two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(msgspec.Struct, frozen=True):
    """A run of an agent, in one or several attempts.

    ``attempts`` counts the starts, at most ``max_attempts``. ``claim`` is the fencing token: it
    rises with every claim, and when a job is fenced off from its executor. ``pid`` and
    ``process_start`` identify the executor, ``monitor_pid`` and ``monitor_start`` the process that
    watches it (``durable_agents.processes``). They belong to the newest attempt, as do ``run_id``
    and ``started_at``.
    """

    job_id: int
    agent: str
    repo: str
    task_id: str | None
    status: JobStatus
    attempts: int
    max_attempts: int
    claim: int
    run_id: int | None
    pid: int | None
    process_start: str | None
    monitor_pid: int | None
    monitor_start: str | None
    started_at: Microseconds | None
    error: str
    created_at: Microseconds
    updated_at: Microseconds


class AgentRun(msgspec.Struct, frozen=True):
    """One attempt at a job.

    ``exit_code`` is the executor's, -n after signal n, None while unknown.
    """

    run_id: int
    job_id: int
    claim: int
    task_id: str | None
    agent: str
    started_at: Microseconds
    finished_at: Microseconds | None
    exit_code: int | None


class RunningJob(msgspec.Struct, frozen=True):
    """A running job as a reaper reads it, with its run and this reaper's count of dead ticks.

    ``run_claim`` is the claim under which the newest run was started.
    """

    job_id: int
    agent: str
    repo: str
    task_id: str | None
    attempts: int
    max_attempts: int
    claim: int
    pid: int | None
    process_start: str | None
    monitor_pid: int | None
    monitor_start: str | None
    started_at: Microseconds
    exit_code: int | None
    finished_at: Microseconds | None
    dead_ticks: int
    run_claim: int

    @property
    def is_fenced(self) -> bool:
        """Whether the executor and its monitor are refused already."""
        return self.run_claim < self.claim


class DeadTicks(msgspec.Struct, frozen=True):
    """Consecutive ticks in which a reaper saw the executor of a claim dead.

    With 0 ticks, the count is forgotten.
    """

    job_id: int
    claim: int
    ticks: int


class OutboxKind(enum.StrEnum):
    """The intention of an entry: leave a stage, or send an alert."""

    ADVANCE = "advance"
    ALERT = "alert"


class OutboxEntry(msgspec.Struct, frozen=True):
    """A consequence of a job's end that is not delivered yet; its delivery deletes the row.

    An advance leaves ``stage``, which the task entered at ``entered_at``. An alert has a ``text``;
    ``taken_by`` names the process that is sending it, ``tries`` counts the attempts.
    """

    outbox_id: int
    kind: OutboxKind
    job_id: int
    claim: int
    agent: str
    repo: str
    task_id: str | None
    stage: str
    entered_at: Microseconds
    text: str
    tries: int
    taken_by: str | None
    created_at: Microseconds


class TaskStatus(enum.StrEnum):
    """The status of a task. The last three are final."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Task(msgspec.Struct, frozen=True):
    """A task of the user's pipeline.

    ``tracker_key`` is its unique name in an issue tracker (ORCH-1). ``stage`` is its stage in the
    pipeline; ``stage_entered_at`` moves with the stage only, ``updated_at`` with every change.
    """

    task_id: str
    tracker_key: str | None
    status: TaskStatus
    stage: str
    stage_entered_at: Microseconds
    created_at: Microseconds
    updated_at: Microseconds


class TaskSource(msgspec.Struct, frozen=True):
    """The source of a task: repository, branch, and the newest commit there.

    The commit is empty while it is unknown.
    """

    task_id: str
    repo: str
    branch: str
    sha: str = ""


class WaitingTask(msgspec.Struct, frozen=True):
    """A task that waits in its stage. ``repo`` is empty for a task without a source."""

    task: Task
    repo: str


class StoredCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint as it is stored. ``snapshot`` is JSON, ``content_hash`` its SHA-256 in hex."""

    task_id: str
    sequence_number: int
    type: str
    snapshot: bytes
    content_hash: str
    created_at: Microseconds


class WorkStatus(enum.StrEnum):
    """The status of a work item. The last two are final."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class WorkItem(msgspec.Struct, frozen=True):
    """A piece of a task that one holder at a time may work on.

    ``retries`` counts the attempts after the first, at most ``max_retries``. ``lease_token`` is the
    fencing token of its newest grant, 0 before the first; tokens rise with every grant of any item.
    Holder and expiry are set exactly while it is in progress.
    """

    work_item_id: int
    task_id: str
    type: str
    priority: int
    status: WorkStatus
    retries: int
    max_retries: int
    lease_token: int
    lease_holder: str | None
    lease_expires_at: Microseconds | None
    heartbeat_at: Microseconds | None
    error: str
    created_at: Microseconds
    updated_at: Microseconds


class ExpiredLease(msgspec.Struct, frozen=True):
    """The columns of an item with an expired lease that a sweep needs: it reads very many."""

    work_item_id: int
    task_id: str
    lease_holder: str
    lease_token: int
    lease_expires_at: Microseconds
    retries: int
    max_retries: int


class Expiry(msgspec.Struct, frozen=True):
    """The end of one lease by a sweep.

    It holds if the token and the expiry are still those that were read.
    """

    work_item_id: int
    token: int
    expires_at: Microseconds
    status: WorkStatus
    retries: int
    error: str


class Audit(msgspec.Struct, frozen=True):
    """A row of a task's audit trail.

    ``before`` and ``after`` are the values of a change, or None.
    """

    task_id: str
    event: str
    before: str | None
    after: str | None
    detail: str
    created_at: Microseconds


class StoredEvidence(msgspec.Struct, frozen=True):
    """The evidence of a checkpoint, with its verdicts when it was saved.

    ``required`` is the number of items that had to verify, ``verdicts`` a JSON array in UTF-8 of
    the items and their results. For a checkpoint without evidence, ``required`` is 0, ``verified``
    False and ``verdicts`` empty.
    """

    task_id: str
    sequence_number: int
    required: int
    verified: bool
    verdicts: bytes


class DeliveryStatus(enum.StrEnum):
    """The status of a delivery: accepted, handled, or put aside after its handler failed."""

    PENDING = "pending"
    HANDLED = "handled"
    FAILED = "failed"


class StoredDelivery(msgspec.Struct, frozen=True):
    """A delivery in the inbox. ``identity`` is unique within its ``source``, so it is there once.

    ``body`` is JSON; ``delivery_number`` is 0 before it is accepted.
    """

    delivery_number: int
    source: str
    identity: str
    delivery_id: str
    event: str
    body: str
    received_at: Microseconds
    status: DeliveryStatus = DeliveryStatus.PENDING
    attempts: int = 0
    error: str = ""


class StateEntry(msgspec.Struct, frozen=True):
    """The value under a key of a group, as JSON in UTF-8."""

    group: str
    key: str
    value: bytes


class Cycle(msgspec.Struct, frozen=True):
    """The marker of a committed cycle.

    ``cycle_id`` is unique. ``name`` may have been used before.
    """

    cycle_id: str
    name: str
    committed_at: Microseconds


class CycleEntry(msgspec.Struct, frozen=True):
    """An entry of a committed cycle.

    ``place`` counts from 1 within the cycle. ``value`` is JSON in UTF-8.
    """

    cycle_id: str
    place: int
    kind: str
    value: bytes


class KeyStatus(enum.StrEnum):
    """The status of the one execution under a key.

    ``in_doubt``: it began, and its outcome is unknown.
    """

    EXECUTING = "executing"
    IN_DOUBT = "in_doubt"
    DONE = "done"
    FAILED = "failed"


class StoredKey(msgspec.Struct, frozen=True):
    """An idempotency key with its claim or result. An unclaimed key has no row.

    ``token`` and ``owner`` belong to the newest claim, whose ``claim_expires_at`` is set exactly
    while it is executing; ``result`` and ``expires_at`` are set exactly when it has ended, as
    ``done`` or ``failed``. ``used_at`` is set if the key may be evicted.
    """

    key: str
    scope: str
    request_hash: str
    status: KeyStatus
    token: int
    owner: str
    claim_expires_at: Microseconds | None
    expires_at: Microseconds | None
    used_at: Microseconds | None
    created_at: Microseconds
    result: bytes | None


class StoredResult(msgspec.Struct, frozen=True):
    """The columns of an ended key that a cache hit needs."""

    request_hash: str
    expires_at: Microseconds
    result: bytes


class Usage(msgspec.Struct, frozen=True):
    """Hit counters of a scope, or an addition to them."""

    hits: int = 0
    misses: int = 0
    tokens_saved: int = 0
    time_saved_us: int = 0
