"""What travels between the job queue, the stage engine and a store: one frozen value per table, as in ``rows``."""

from __future__ import annotations

import enum

import msgspec

from recovery.clock import Microseconds


class JobStatus(enum.StrEnum):
    """Where a job is in its life. The last two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(msgspec.Struct, frozen=True):
    """One run, or several attempts at one, of an agent.

    ``attempts`` counts the starts, at most ``max_attempts``. ``claim`` is the fencing token: it rises with every claim,
    and when a job is fenced off from its executor. ``pid`` and ``process_start`` name the executor, ``monitor_pid`` and
    ``monitor_start`` the process that watches it (``recovery.liveness``); they are the newest attempt's, as are
    ``run_id`` and ``started_at``.
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

    An advance leaves ``stage``, which the task entered at ``entered_at``. An alert says ``text``; ``taken_by`` names
    the process that is sending it, ``tries`` counts how often one has begun to.
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
