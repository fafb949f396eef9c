"""What travels between the job queue, the stage engine and a store: one frozen value per table, as in ``rows``.

What travels between managers and a store: one frozen value per table, fields in the order of its
columns.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from durable_agents.clock import Microseconds


class JobStatus(enum.StrEnum):
    """Where a job is in its life. The last two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(msgspec.Struct, frozen=True):
    """One run, or several attempts at one, of an agent.

    ``attempts`` counts the starts, at most ``max_attempts``. ``claim`` is the fencing token: it
    rises with every claim, and when a job is fenced off from its executor. ``pid`` and
    ``process_start`` name the executor, ``monitor_pid`` and ``monitor_start`` the process that
    watches it (``durable_agents.processes``); they are the newest attempt's, as are ``run_id`` and
    ``started_at``.
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
    """One attempt at a job. ``exit_code`` is that of the executor, -n for an end by signal n; None while unknown."""

    run_id: int
    job_id: int
    claim: int
    task_id: str | None
    agent: str
    started_at: Microseconds
    finished_at: Microseconds | None
    exit_code: int | None


class RunningJob(msgspec.Struct, frozen=True):
    """What a reaper needs to know of a job that is running, its run and its own count of dead ticks included.

    ``run_claim`` is the claim that the newest run was started under.
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
        """Whether the executor, and who watches it, are refused already."""
        return self.run_claim < self.claim


class DeadTicks(msgspec.Struct, frozen=True):
    """In how many consecutive ticks a reaper saw the executor of a claim dead; 0 forgets it."""

    job_id: int
    claim: int
    ticks: int


class OutboxKind(enum.StrEnum):
    """What is intended: a stage is to be left, or somebody is to be told."""

    ADVANCE = "advance"
    ALERT = "alert"


class OutboxEntry(msgspec.Struct, frozen=True):
    """Something that a job's end has decided and that is still to be done; the row goes when it is.

    An advance leaves ``stage``, which the task entered at ``entered_at``. An alert says ``text``;
    ``taken_by`` names the process that is sending it, ``tries`` counts how often one has begun to.
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


Scalar: TypeAlias = str | int | float | None
"""What a column can hold, but for bytes, which JSON cannot."""


class TaskStatus(enum.StrEnum):
    """Where a task is in its life. The last three are final."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Task(msgspec.Struct, frozen=True):
    """A piece of work that an agent sees through.

    ``tracker_key`` is its name in an issue tracker (ORCH-1), at most one task has it. ``stage`` is
    where it is in the user's own pipeline; ``stage_entered_at`` moves with the stage only,
    ``updated_at`` with every change.
    """

    task_id: str
    tracker_key: str | None
    status: TaskStatus
    stage: str
    stage_entered_at: Microseconds
    created_at: Microseconds
    updated_at: Microseconds


class TaskSource(msgspec.Struct, frozen=True):
    """Where a task comes from: its repository, its branch, and the newest commit there, empty while none is known."""

    task_id: str
    repo: str
    branch: str
    sha: str = ""


class WaitingTask(msgspec.Struct, frozen=True):
    """A task in whose stage nobody is at work. ``repo`` is empty for one that comes from nowhere."""

    task: Task
    repo: str


class StoredCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint as it is stored. ``snapshot`` is JSON in UTF-8, ``content_hash`` its SHA-256 in hexadecimal."""

    task_id: str
    sequence_number: int
    type: str
    snapshot: bytes
    content_hash: str
    created_at: Microseconds


class WorkStatus(enum.StrEnum):
    """Where a work item is in its life. The last two are final."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class WorkItem(msgspec.Struct, frozen=True):
    """A piece of a task that one holder at a time may work on.

    ``retries`` counts the attempts after the first, at most ``max_retries``; ``lease_token`` is
    that of its newest grant, 0 before the first: tokens rise with every grant of any item, and none
    is given out twice; holder and expiry are there exactly while it is in progress.
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
    """What a sweep reads of an item whose lease has run out: less than the item, since it reads very many."""

    work_item_id: int
    task_id: str
    lease_holder: str
    lease_token: int
    lease_expires_at: Microseconds
    retries: int
    max_retries: int


class Expiry(msgspec.Struct, frozen=True):
    """What a sweep makes of one lease: it ends, if its token and its expiry are still those that were read."""

    work_item_id: int
    token: int
    expires_at: Microseconds
    status: WorkStatus
    retries: int
    error: str


class Audit(msgspec.Struct, frozen=True):
    """What happened to a task: ``event`` names it, ``before`` and ``after`` are the values that it changed, if any."""

    task_id: str
    event: str
    before: str | None
    after: str | None
    detail: str
    created_at: Microseconds


class StoredEvidence(msgspec.Struct, frozen=True):
    """The evidence of a checkpoint and how it was judged when it was saved.

    ``required`` of its items had to verify, ``verdicts`` is a JSON array in UTF-8 of the items and
    what came of each. For a checkpoint without evidence, ``required`` is 0, ``verified`` False and
    ``verdicts`` empty.
    """

    task_id: str
    sequence_number: int
    required: int
    verified: bool
    verdicts: bytes


class DeliveryStatus(enum.StrEnum):
    """Where a delivery is: accepted and waiting, handled, or put aside after it could not be."""

    PENDING = "pending"
    HANDLED = "handled"
    FAILED = "failed"


class StoredDelivery(msgspec.Struct, frozen=True):
    """A delivery in the inbox. ``identity`` is what it is known by within its ``source``, so it is there once.

    ``body`` is JSON; ``delivery_number`` is 0 as long as it has none.
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
    """What is kept under a key of a group. ``value`` is JSON in UTF-8."""

    group: str
    key: str
    value: bytes


class Cycle(msgspec.Struct, frozen=True):
    """The marker of a committed cycle: ``cycle_id`` is its alone, ``name`` may have been used before."""

    cycle_id: str
    name: str
    committed_at: Microseconds


class CycleEntry(msgspec.Struct, frozen=True):
    """What a committed cycle found: ``place`` counts from 1 within the cycle, ``value`` is JSON in UTF-8."""

    cycle_id: str
    place: int
    kind: str
    value: bytes


class KeyStatus(enum.StrEnum):
    """Where the one execution under a key is. ``in_doubt`` is nobody's: it began, and what came of it is not known."""

    EXECUTING = "executing"
    IN_DOUBT = "in_doubt"
    DONE = "done"
    FAILED = "failed"


class StoredKey(msgspec.Struct, frozen=True):
    """A key and what is known under it. A key that nobody has claimed has no row.

    ``token`` and ``owner`` are those of the newest claim, whose ``claim_expires_at`` is there
    exactly while it is executing; ``result`` and ``expires_at`` exactly when it has ended, as
    ``done`` or ``failed``. ``used_at`` is there where the key may be evicted.
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
    """The columns of an ended key that a hit needs."""

    request_hash: str
    expires_at: Microseconds
    result: bytes


class Usage(msgspec.Struct, frozen=True):
    """Counts of a scope, or what is to be added to them: results handed out again, executions, and what that saved."""

    hits: int = 0
    misses: int = 0
    tokens_saved: int = 0
    time_saved_us: int = 0
