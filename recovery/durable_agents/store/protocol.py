"""What jobs, the reaper and the stage engine ask of a store: a part of ``Transaction`` and ``Store``.

Every change of a running job names its claim: of two who believe that it is theirs, one changes a
row.

What handlers and the reconciler ask of a store: where tasks come from, and which of them wait.

A part of ``Transaction`` and ``Store``. A task that has ended belongs to no branch any more:
another may follow on it.

What the recovery core asks of a store, in its own words and not in SQL.

Rejected: one method per operation of a manager (``save_checkpoint``). Each implementation would
then repeat the rules of the domain, and two operations could never share a transaction, which
leases, sweeps and evidence all need. So the store offers single facts and a transaction around
them, and the rules live in the managers, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from durable_agents.clock import Microseconds
    from durable_agents.store.rows import (
        AgentRun,
        Audit,
        Cycle,
        CycleEntry,
        DeadTicks,
        DeliveryStatus,
        ExpiredLease,
        Expiry,
        Job,
        JobStatus,
        KeyStatus,
        OutboxEntry,
        OutboxKind,
        RunningJob,
        Scalar,
        StateEntry,
        StoredCheckpoint,
        StoredDelivery,
        StoredEvidence,
        StoredKey,
        StoredResult,
        Task,
        TaskSource,
        TaskStatus,
        Usage,
        WaitingTask,
        WorkItem,
        WorkStatus,
    )


class JobTransaction(Protocol):
    """The inside of a transaction, as far as jobs are concerned."""

    def insert_job(self, *, agent: str, repo: str, task_id: str | None, max_attempts: int, now: Microseconds) -> Job:
        """Insert a queued job and return it. Raises UnknownTask."""
        ...

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        ...

    def claim_job(
        self, agents: Sequence[str] | None, *, monitor_pid: int, monitor_start: str | None, now: Microseconds
    ) -> Job | None:
        """Set the oldest queued job (of these agents, or of any) running, with a new claim and a new run; return it.

        Two transactions never claim one job. One whose task was cancelled is never begun: at its
        turn it fails, with that for its error and a row in the task's audit trail, and the next one
        is claimed.
        """
        ...

    def set_executor(self, job_id: int, claim: int, *, pid: int, process_start: str | None, now: Microseconds) -> bool:
        """Say which process executes the job, if it is running under this claim; False, and no change, if not."""
        ...

    def record_exit(self, job_id: int, claim: int, *, exit_code: int, now: Microseconds) -> bool:
        """Record how the executor ended, once, if the job is running under this claim; False, and no change, if not."""
        ...

    def holds_job(self, job_id: int, claim: int) -> bool:
        """Tell whether the job is running under this claim; it stays so until the transaction ends."""
        ...

    def fence_job(self, job_id: int, claim: int, *, now: Microseconds) -> bool:
        """Raise the claim of a running job by one, so that its holder is refused from now on; False if not his."""
        ...

    def end_claim(self, job_id: int, claim: int, *, status: JobStatus, error: str, now: Microseconds) -> bool:
        """Make a job that is running under this claim queued, done or failed; False, and no change, if it is not.

        What reapers counted of it goes.
        """
        ...

    def set_dead_ticks(self, reaper: str, ticks: Sequence[DeadTicks]) -> None:
        """Set what a reaper has counted, each if the job is still running under that claim."""
        ...

    def insert_outbox(self, entry: OutboxEntry) -> int:
        """Add an entry, whose id is made here, and return the id."""
        ...

    def delete_outbox(self, entry: OutboxEntry) -> bool:
        """Remove an entry as it was read; False where it is gone, so that of several who deliver it one goes on.

        Its number may be another entry's by then: an entry is known by its number, job and claim
        together.
        """
        ...

    def take_outbox(self, entry: OutboxEntry, *, expected: str | None, taken_by: str | None) -> bool:
        """Say who is sending an entry, if it is held by ``expected``, and count the try; False, and no change, if not.

        To give it back, taken_by None, is no try.
        """
        ...

    def change_stage(
        self, task_id: str, *, expected: str, entered_at: Microseconds, stage: str, now: Microseconds
    ) -> bool:
        """Set the stage if it is still the one that was entered then (compare-and-set); False, and no change, if not.

        The task enters the new stage at ``now``.
        """
        ...


class JobStore(Protocol):
    """What a store can tell about jobs."""

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        ...

    def running_jobs(self, reaper: str, *, after: int = 0, limit: int) -> list[RunningJob]:
        """Return running jobs in the order of their ids, those behind ``after``, with the dead ticks of this reaper."""
        ...

    def active_jobs(self, task_id: str) -> list[Job]:
        """Return the queued and running jobs of a task, oldest first."""
        ...

    def active_job_counts(self) -> dict[JobStatus, int]:
        """Return how many jobs are queued, and how many running; what has ended is not counted."""
        ...

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first."""
        ...

    def outbox(self, kind: OutboxKind, *, after: int = 0, limit: int) -> list[OutboxEntry]:
        """Return what is still to be done of this kind, oldest first, what is behind ``after``."""
        ...


class SourceTransaction(Protocol):
    """The inside of a transaction, as far as the sources of tasks are concerned."""

    def insert_source(self, source: TaskSource) -> bool:
        """Say where a task comes from; False, and no change, where that was said. Raises UnknownTask."""
        ...

    def set_sha(self, repo: str, branch: str, sha: str) -> int:
        """Set the newest commit of a branch, for the tasks on it that have not ended; return for how many it is new."""
        ...


class SourceStore(Protocol):
    """What a store can tell about the sources of tasks, and about tasks that wait."""

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, ended or not, or None."""
        ...

    def source(self, task_id: str) -> TaskSource | None:
        """Return where a task comes from, or None."""
        ...

    def tasks_of_branch(self, repo: str, branch: str, *, limit: int) -> list[Task]:
        """Return the tasks on a branch that have not ended, in the order of their ids."""
        ...

    def tasks_of_commit(self, repo: str, sha: str, *, limit: int) -> list[Task]:
        """Return the tasks whose branch has this commit for its newest and that have not ended, by their ids."""
        ...

    def tasks_of_repo(self, repo: str, stage: str, *, limit: int) -> list[Task]:
        """Return the tasks of a repository that are in this stage and have not ended, in the order of their ids."""
        ...

    def waiting_tasks(
        self, stage: str, *, entered_until: Microseconds, after: tuple[Microseconds, str] = (0, ""), limit: int
    ) -> list[WaitingTask]:
        """Return tasks that entered the stage by then, have not ended, and that nobody is about to move.

        Those with a job that is queued or running, or with an advance in the outbox, are
        somebody's. In the order in which they entered it, those behind ``after``: the moment and
        the id of the last one seen.
        """
        ...


NUMBER_MAX: Final = 2**63 - 1
"""Larger than any sequence number."""

PAGE_ROWS_MAX: Final = 1000
"""How many rows a listing returns unless it is told otherwise."""


class Transaction(JobTransaction, SourceTransaction, Protocol):
    """The inside of ``with store.transaction()``: what it sees stays as it is until the block ends.

    Leaving the block commits, leaving it by an exception rolls back. Every method may raise a
    ``StoreError``.
    """

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        ...

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, or None."""
        ...

    def insert_task(self, task: Task) -> bool:
        """Insert the task; False, and no change, where its id or its tracker key is taken."""
        ...

    def change_status(self, task_id: str, *, expected: TaskStatus, status: TaskStatus, now: Microseconds) -> bool:
        """Set the status if it is the expected one (compare-and-set); False, and no change, if it is not."""
        ...

    def insert_audit(self, audit: Audit) -> None:
        """Add a row to the task's audit trail. Raises UnknownTask."""
        ...

    def insert_audits(self, audits: Sequence[Audit]) -> None:
        """Add several rows, in their order. Raises UnknownTask."""
        ...

    def next_checkpoint_number(self, task_id: str) -> int:
        """Return one more than the task's newest number, 1 for its first checkpoint.

        No other transaction gets the same number for the same task before this one has ended:
        SQLite holds the write lock since the block began; a store with row locks takes the task's
        row here (``SELECT ... FOR UPDATE``). A task that does not exist is found out by
        ``insert_checkpoint``.
        """
        ...

    def insert_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Insert the checkpoint. Raises UnknownTask."""
        ...

    def insert_checkpoints(self, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """Insert several checkpoints, of any tasks. Raises UnknownTask."""
        ...

    def insert_evidence(self, evidence: StoredEvidence) -> None:
        """Insert the evidence of a checkpoint that this transaction has inserted, and how it was judged."""
        ...

    def insert_work_item(
        self,
        *,
        task_id: str,
        type: str,  # noqa: A002 - the field's name
        priority: int,
        max_retries: int,
        now: Microseconds,
    ) -> WorkItem:
        """Insert a pending work item and return it. Raises UnknownTask."""
        ...

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        ...

    def grant_leases(
        self,
        *,
        holder: str,
        type: str | None,  # noqa: A002 - the field's name
        task_id: str | None,
        limit: int,
        expires_at: Microseconds,
        now: Microseconds,
    ) -> list[WorkItem]:
        """Grant pending items to the holder: priority high first, then the oldest; each with a new token.

        A new token is larger than any that was granted before, whatever the item.
        Two transactions never grant one item, whatever their isolation.
        """
        ...

    def renew_lease(self, work_item_id: int, token: int, *, expires_at: Microseconds, now: Microseconds) -> bool:
        """Move the expiry of a lease that is still held; False, and no change, when it is not."""
        ...

    def holds_lease(self, work_item_id: int, token: int, *, now: Microseconds) -> bool:
        """Tell whether this token holds the item and has not expired; it stays so until the transaction ends."""
        ...

    def end_lease(
        self, work_item_id: int, token: int, *, status: WorkStatus, retries: int, error: str, now: Microseconds
    ) -> bool:
        """End a lease that is still held, adding to the retries; False, and no change, when it is not."""
        ...

    def expire_leases(self, expiries: Sequence[Expiry], *, now: Microseconds) -> int:
        """End leases that ran out, each if token and expiry are still those given; return how many were."""
        ...

    def expired_leases(self, *, now: Microseconds, after: tuple[Microseconds, int], limit: int) -> list[ExpiredLease]:
        """Return items whose lease has run out, in the order of expiry and id, those behind ``after``."""
        ...

    def accept_delivery(self, delivery: StoredDelivery) -> bool:
        """Put a delivery into the inbox, under the next number; False, and no change, where its identity is there."""
        ...

    def end_delivery(self, number: int, *, status: DeliveryStatus, error: str) -> bool:
        """Count an attempt at a waiting delivery and give it its status; False, and no change, if it does not wait."""
        ...

    def delete_deliveries(self, *, before: Microseconds, limit: int) -> int:
        """Delete up to ``limit`` handled deliveries that were received before; return how many."""
        ...

    def key(self, key: str) -> StoredKey | None:
        """Return the key, or None."""
        ...

    def claim_key(self, claim: StoredKey, *, expected: StoredKey | None) -> bool:
        """Store a claim, which is ``executing``, in the place of the ``expected`` row, or of none.

        False, and no change, if the key is not as it was expected to be: by token, owner, status
        and expiry of the claim. Two transactions never claim one key, whatever their isolation.
        """
        ...

    def renew_claim(self, key: str, token: int, owner: str, *, expires_at: Microseconds) -> bool:
        """Move the expiry of a claim that nobody has taken over; False, and no change, when it is not held."""
        ...

    def end_key(
        self, key: str, token: int, owner: str, *, status: KeyStatus, result: bytes | None, expires_at: int | None
    ) -> bool:
        """End a claim that nobody has taken over, with its result or in doubt; False, and no change, if it is not held.

        That the claim's time is over is no reason to refuse: the result is the only one there is.
        """
        ...

    def delete_key(self, key: str, token: int, owner: str, *, status: KeyStatus) -> bool:
        """Delete the row of this claim if it has this status; False, and no change, if it has not, or is another."""
        ...

    def delete_expired_keys(self, scope: str, *, now: Microseconds, after: int, limit: int) -> tuple[int, int]:
        """Delete results of a scope that have expired, among ``limit`` rows behind the number ``after``.

        Return how many, and the number of the last row that was looked at, 0 at the end.
        """
        ...

    def evict_keys(self, scope: str, *, bytes_max: int) -> int:
        """Delete the least recently used results of a scope until the rest has at most so many bytes; return how many.

        A negative bound leaves none, not even of no bytes. Only results of keys that were claimed
        with a ``used_at``.
        """
        ...

    def touch_keys(self, used: Mapping[str, Microseconds]) -> None:
        """Note when keys were last used, of those that are still there."""
        ...

    def add_usage(self, scope: str, usage: Usage) -> None:
        """Add to the counts of a scope."""
        ...

    def delete_checkpoints(self, task_id: str, below: int, limit: int) -> int:
        """Delete, oldest first, up to ``limit`` checkpoints with numbers below ``below``; return how many.

        Their evidence goes with them. No number is ever given out twice as long as the newest
        checkpoint stays.
        """
        ...

    def state(self, group: str, key: str) -> StateEntry | None:
        """Return the entry of grouped state, or None."""
        ...

    def put_state(self, entry: StateEntry) -> None:
        """Insert the entry, or give the one with its group and key this value."""
        ...

    def put_states(self, entries: Sequence[StateEntry]) -> None:
        """Insert or change several entries, in their order."""
        ...

    def delete_state(self, group: str, key: str) -> bool:
        """Delete the entry; False, and no change, where there is none."""
        ...

    def delete_states(self, group: str, *, below: str, limit: int) -> int:
        """Delete up to ``limit`` entries of a group, from its smallest key on, those below a key; return how many."""
        ...

    def insert_cycle(self, cycle: Cycle) -> bool:
        """Insert the marker of a committed cycle; False, and no change, where its id is there."""
        ...

    def insert_cycle_entries(self, entries: Sequence[CycleEntry]) -> None:
        """Insert entries of cycles whose markers this transaction has inserted."""
        ...


class Store(JobStore, SourceStore, Protocol):
    """Durable memory, safe for use by several threads at once.

    When the block of a transaction has been left without an exception, its changes survive a crash
    of this process, of all processes and of the machine. Reads see what was committed when they
    began.
    """

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin a change. Waits for other writers, for a bounded time, then raises DatabaseLocked.

        A store may commit the blocks of several threads together, as long as each is all or nothing
        for itself and none is left before that commit has returned. Do not nest: a second
        transaction in the same thread waits for the first one until that bound.
        """
        ...

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        ...

    def tasks(self, *, status: TaskStatus | None = None, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return tasks in the order of their ids (by Unicode code point), those behind the id ``after``."""
        ...

    def audits(self, task_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[Audit]:
        """Return the newest ``limit`` rows of the task's audit trail, oldest first."""
        ...

    def latest_checkpoint(self, task_id: str, before: int = NUMBER_MAX) -> StoredCheckpoint | None:
        """Return the checkpoint with the largest number below ``before``, or None."""
        ...

    def checkpoints(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[StoredCheckpoint]:
        """Return checkpoints in the order of their numbers, those above ``after``."""
        ...

    def evidence(self, task_id: str, *, before: int = NUMBER_MAX, limit: int = PAGE_ROWS_MAX) -> list[StoredEvidence]:
        """Return the evidence of the checkpoints below ``before``, newest first, of those without any too."""
        ...

    def has_row(self, table: str, values: Mapping[str, Scalar], *, timeout_s: float) -> bool:
        """Tell whether a table of the database has a row with these values, without being able to change anything.

        Raises QueryRefused for a table or column that is not there, and when it takes longer than
        ``timeout_s``.
        """
        ...

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        ...

    def pending_deliveries(self, *, after: int, limit: int) -> list[StoredDelivery]:
        """Return up to ``limit`` waiting deliveries with numbers above ``after``, in the order they were accepted."""
        ...

    def deliveries(self, status: DeliveryStatus) -> int:
        """Return how many deliveries in the inbox have this status."""
        ...

    def oldest_handled_delivery(self) -> Microseconds | None:
        """Return when the oldest of the handled deliveries was received, or None."""
        ...

    def state(self, group: str, key: str) -> StateEntry | None:
        """Return the entry of grouped state, or None."""
        ...

    def state_entries(self, group: str, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StateEntry]:
        """Return entries of a group in the order of their keys (by Unicode code point), those behind ``after``."""
        ...

    def state_count(self, group: str) -> int:
        """Return how many entries the group has."""
        ...

    def cycles(self, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Cycle]:
        """Return committed cycles in the order of their ids, those behind the id ``after``."""
        ...

    def cycle_entries(self, cycle_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[CycleEntry]:
        """Return the entries of a committed cycle in their order, those behind the place ``after``."""
        ...

    def result(self, key: str) -> StoredResult | None:
        """Return the result of a key that has ended, or None. This is what a hit reads, and it writes nothing."""
        ...

    def key(self, key: str) -> StoredKey | None:
        """Return the key, or None."""
        ...

    def keys(self, scope: str, status: KeyStatus, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StoredKey]:
        """Return keys of a scope with this status, in the order of the keys, those behind ``after``."""
        ...

    def key_counts(self, scope: str) -> dict[KeyStatus, int]:
        """Return how many keys of the scope have each status; statuses without any are left out."""
        ...

    def usage(self, scope: str) -> Usage:
        """Return the counts of a scope."""
        ...

    def close(self) -> None:
        """Let go of all connections. Closing twice is fine; any other call afterwards raises StoreClosed."""
        ...
