"""The Protocols of a store, in the words of the recovery core and not in SQL.

``Reads`` is common to a store and to a transaction, ``Transaction`` changes rows, ``Store`` is what
managers are given, ``Place`` names its database.

Rejected: one method per operation of a manager (``save_checkpoint``). Each implementation would
then repeat the rules of the domain, and two operations could never share a transaction, which
leases, sweeps and evidence all need. So the store offers single facts and a transaction around
them, and the rules live in the managers, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, Self

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

NUMBER_MAX: Final = 2**63 - 1
"""Larger than any sequence number."""

PAGE_ROWS_MAX: Final = 1000
"""How many rows a listing returns by default."""


class Reads(Protocol):
    """Single rows that a store and a transaction return alike.

    A transaction sees its own changes.
    """

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        ...

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, ended or not, or None."""
        ...

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        ...

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        ...

    def state(self, group: str, key: str) -> StateEntry | None:
        """Return the entry of grouped state, or None."""
        ...

    def key(self, key: str) -> StoredKey | None:
        """Return the idempotency key, or None."""
        ...


class Transaction(Reads, Protocol):
    """The inside of ``with store.transaction()``: rows it reads do not change until the block ends.

    Leaving the block commits, leaving it by an exception rolls back. Every method may raise a
    ``StoreError``. A method that returns False has changed nothing: it compares and sets.
    """

    # Tasks, their stages and sources, their audit trail.

    def insert_task(self, task: Task) -> bool:
        """Insert the task; False if its id or its tracker key is taken."""
        ...

    def change_status(self, task_id: str, *, expected: TaskStatus, status: TaskStatus, now: Microseconds) -> bool:
        """Set the status; False if it is not the expected one."""
        ...

    def change_stage(
        self, task_id: str, *, expected: str, entered_at: Microseconds, stage: str, now: Microseconds
    ) -> bool:
        """Set the stage, which the task enters at ``now``.

        False unless the stage is ``expected``, entered at ``entered_at``.
        """
        ...

    def insert_source(self, source: TaskSource) -> bool:
        """Record the source of a task; False if it has one. Raises UnknownTask."""
        ...

    def set_sha(self, repo: str, branch: str, sha: str) -> int:
        """Set the newest commit of a branch on its tasks that have not ended.

        Return the number of tasks for which it is new.
        """
        ...

    def insert_audit(self, audit: Audit) -> None:
        """Add a row to the task's audit trail. Raises UnknownTask."""
        ...

    def insert_audits(self, audits: Sequence[Audit]) -> None:
        """Add several rows, in their order. Raises UnknownTask."""
        ...

    # Checkpoints and their evidence.

    def next_checkpoint_number(self, task_id: str) -> int:
        """Return one more than the task's newest number, 1 for its first checkpoint.

        No other transaction gets the same number for the same task before this one has ended:
        SQLite holds the write lock since the block began; a store with row locks takes the task's
        row here (``SELECT ... FOR UPDATE``). ``insert_checkpoint`` refuses an unknown task.
        """
        ...

    def insert_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Insert the checkpoint. Raises UnknownTask."""
        ...

    def insert_checkpoints(self, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """Insert several checkpoints, of any tasks. Raises UnknownTask."""
        ...

    def insert_evidence(self, evidence: StoredEvidence) -> None:
        """Insert the evidence, with its verdicts, of a checkpoint.

        This transaction must have inserted the checkpoint.
        """
        ...

    def delete_checkpoints(self, task_id: str, below: int, limit: int) -> int:
        """Delete up to ``limit`` checkpoints below ``below``, oldest first; return how many.

        Their evidence goes with them. No number is given out twice while the newest checkpoint
        stays.
        """
        ...

    # Work items and their leases.

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
        """Grant pending items to the holder, each with a new token.

        High priority comes first, then the oldest item.

        A new token is larger than any that was granted before, for any item. Two transactions never
        grant one item, whatever their isolation.
        """
        ...

    def renew_lease(self, work_item_id: int, token: int, *, expires_at: Microseconds, now: Microseconds) -> bool:
        """Move the expiry of a lease; False if the token does not hold the item."""
        ...

    def holds_lease(self, work_item_id: int, token: int, *, now: Microseconds) -> bool:
        """Tell whether this token holds the item and has not expired.

        The answer stays true until the transaction ends.
        """
        ...

    def end_lease(
        self, work_item_id: int, token: int, *, status: WorkStatus, retries: int, error: str, now: Microseconds
    ) -> bool:
        """End a lease and add to the retries; False if the token does not hold the item."""
        ...

    def expire_leases(self, expiries: Sequence[Expiry], *, now: Microseconds) -> int:
        """End expired leases; return how many were ended.

        Each is ended only if its token and expiry are still those given.
        """
        ...

    def expired_leases(self, *, now: Microseconds, after: tuple[Microseconds, int], limit: int) -> list[ExpiredLease]:
        """Return items with an expired lease, in the order of expiry and id.

        Begin behind ``after``.
        """
        ...

    # Jobs and the outbox. A change of a running job names its claim:
    # of two holders, one changes it.

    def insert_job(self, *, agent: str, repo: str, task_id: str | None, max_attempts: int, now: Microseconds) -> Job:
        """Insert a queued job and return it. Raises UnknownTask."""
        ...

    def claim_job(
        self, agents: Sequence[str] | None, *, monitor_pid: int, monitor_start: str | None, now: Microseconds
    ) -> Job | None:
        """Set the oldest queued job (of these agents, or any) running, with a new claim and run.

        Two transactions never claim one job. A job whose task was cancelled is not started: it
        fails with that error and a row in the task's audit trail, and the next job is claimed.
        """
        ...

    def set_executor(self, job_id: int, claim: int, *, pid: int, process_start: str | None, now: Microseconds) -> bool:
        """Record the process that executes the job; False if it is not running under this claim."""
        ...

    def record_exit(self, job_id: int, claim: int, *, exit_code: int, now: Microseconds) -> bool:
        """Record how the executor ended, once; False if the job is not running under this claim."""
        ...

    def holds_job(self, job_id: int, claim: int) -> bool:
        """Tell whether the job is running under this claim.

        The answer stays true until the transaction ends.
        """
        ...

    def fence_job(self, job_id: int, claim: int, *, now: Microseconds) -> bool:
        """Raise the claim of a running job by one, which fences its holder.

        False if the claim is not held.
        """
        ...

    def end_claim(self, job_id: int, claim: int, *, status: JobStatus, error: str, now: Microseconds) -> bool:
        """Make a job queued, done or failed, and forget its dead ticks.

        False if the claim is not held.
        """
        ...

    def set_dead_ticks(self, reaper: str, ticks: Sequence[DeadTicks]) -> None:
        """Set the dead ticks that a reaper has counted.

        Each is set only if the job is still running under that claim.
        """
        ...

    def insert_outbox(self, entry: OutboxEntry) -> int:
        """Add an entry and return its new id."""
        ...

    def delete_outbox(self, entry: OutboxEntry) -> bool:
        """Remove an entry as it was read; False if it is gone.

        Of several senders, one removes it. The number of a deleted entry may be given out again:
        number, job and claim identify one.
        """
        ...

    def take_outbox(self, entry: OutboxEntry, *, expected: str | None, taken_by: str | None) -> bool:
        """Record the sender of an entry and count the try; False if it is not held by ``expected``.

        Giving it back, with taken_by None, counts no try.
        """
        ...

    # Webhook deliveries.

    def accept_delivery(self, delivery: StoredDelivery) -> bool:
        """Put a delivery into the inbox, under the next number; False if its identity is there."""
        ...

    def end_delivery(self, number: int, *, status: DeliveryStatus, error: str) -> bool:
        """Count an attempt at a pending delivery and set its status; False if it is not pending."""
        ...

    def delete_deliveries(self, *, before: Microseconds, limit: int) -> int:
        """Delete up to ``limit`` handled deliveries that were received before; return how many."""
        ...

    # Grouped state and cycles.

    def put_state(self, entry: StateEntry) -> None:
        """Insert the entry, or replace the value under its group and key."""
        ...

    def put_states(self, entries: Sequence[StateEntry]) -> None:
        """Insert or replace several entries, in their order."""
        ...

    def delete_state(self, group: str, key: str) -> bool:
        """Delete the entry; False if there is none."""
        ...

    def delete_states(self, group: str, *, below: str, limit: int) -> int:
        """Delete up to ``limit`` entries of a group with keys below ``below``; return how many."""
        ...

    def insert_cycle(self, cycle: Cycle) -> bool:
        """Insert the marker of a committed cycle; False if its id is there."""
        ...

    def insert_cycle_entries(self, entries: Sequence[CycleEntry]) -> None:
        """Insert entries of cycles whose markers this transaction has inserted."""
        ...

    # Idempotency keys.

    def claim_key(self, claim: StoredKey, *, expected: StoredKey | None) -> bool:
        """Store a claim, which is ``executing``, in the place of the ``expected`` row, or of none.

        False if the key is not as expected: by token, owner, status and expiry of the claim. Two
        transactions never claim one key, whatever their isolation.
        """
        ...

    def renew_claim(self, key: str, token: int, owner: str, *, expires_at: Microseconds) -> bool:
        """Move the expiry of a claim; False if it is not held by this token and owner."""
        ...

    def end_key(
        self, key: str, token: int, owner: str, *, status: KeyStatus, result: bytes | None, expires_at: int | None
    ) -> bool:
        """End a claim with its result or in doubt; False if it is not held by this token and owner.

        An expired claim ends too, as long as nobody took it over: there is no other result.
        """
        ...

    def delete_key(self, key: str, token: int, owner: str, *, status: KeyStatus) -> bool:
        """Delete the row of this claim; False if it has another status, token or owner."""
        ...

    def delete_expired_keys(self, scope: str, *, now: Microseconds, after: int, limit: int) -> tuple[int, int]:
        """Delete expired results of a scope among the ``limit`` rows behind the number ``after``.

        Return how many, and the number of the last row of that page, 0 at the end.
        """
        ...

    def evict_keys(self, scope: str, *, bytes_max: int) -> int:
        """Delete the least recently used results of a scope beyond so many bytes; return how many.

        A negative bound leaves none, not even an empty one. Only keys that were claimed with a
        ``used_at`` are counted and evicted.
        """
        ...

    def touch_keys(self, used: Mapping[str, Microseconds]) -> None:
        """Record when keys were last used; keys that are gone stay so."""
        ...

    def add_usage(self, scope: str, usage: Usage) -> None:
        """Add to the counts of a scope."""
        ...


class Place(Protocol):
    """The database of a store, not kept open. Hashable; equal for all stores on one database."""

    @property
    def path(self) -> str | None:
        """The database file on this machine, or None.

        Lock files and large outputs lie beside it.
        """
        ...

    def reopened(self, busy_timeout_s: float) -> Store:
        """Open another store on the database, which starts no thread.

        It waits at most ``busy_timeout_s`` seconds for other writers. Raises DatabaseUnavailable if
        the database is gone; it is not made anew.
        """
        ...


class Store(Reads, Protocol):
    """Durable memory, safe for use by several threads at once.

    When the block of a transaction has been left without an exception, its changes survive a crash
    of this process, of all processes and of the machine. Reads see what was committed when they
    began. Listings are paged: ``after`` is the last row of the page before.
    """

    @property
    def place(self) -> Place:
        """The name of the database."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin a change. Waits for other writers, for a bounded time, then raises DatabaseLocked.

        A store may commit the blocks of several threads together, as long as each is all or nothing
        for itself and none is left before that commit has returned. Do not nest: a second
        transaction in the same thread waits for the first one until that bound.
        """
        ...

    def can_write_now(self) -> bool:
        """Tell, without waiting, whether a transaction could begin.

        False while another process writes. True where the store cannot tell.
        """
        ...

    def warnings(self) -> list[str]:
        """Return sentences about what is wrong with the database now but raises no error.

        The cost is bounded.
        """
        ...

    def close(self) -> None:
        """Close all connections.

        Closing twice is fine. Any other call afterwards raises StoreClosed.
        """
        ...

    def __enter__(self) -> Self:
        """Return the store, which the end of the block closes."""
        ...

    def __exit__(self, *_exception: object) -> None:
        """Close it."""
        ...

    # Tasks, their sources, their audit trail.

    def tasks(self, *, status: TaskStatus | None = None, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return tasks in the order of their ids, by Unicode code point.

        Begin behind the id ``after``.
        """
        ...

    def source(self, task_id: str) -> TaskSource | None:
        """Return the source of a task, or None."""
        ...

    def tasks_of_branch(self, repo: str, branch: str, *, limit: int) -> list[Task]:
        """Return the tasks on a branch that have not ended, in the order of their ids."""
        ...

    def tasks_of_commit(self, repo: str, sha: str, *, limit: int) -> list[Task]:
        """Return the unended tasks whose branch has this newest commit, by id."""
        ...

    def tasks_of_repo(self, repo: str, stage: str, *, limit: int) -> list[Task]:
        """Return the unended tasks of a repository in this stage, by id."""
        ...

    def waiting_tasks(
        self, stage: str, *, entered_until: Microseconds, after: tuple[Microseconds, str] = (0, ""), limit: int
    ) -> list[WaitingTask]:
        """Return tasks that have waited in a stage since ``entered_until`` or longer.

        Ended tasks are left out, and those that something is about to move. A queued or running
        job, or an advance in the outbox, is about to move its task. In the order of entry and id,
        those behind ``after``.
        """
        ...

    def audits(self, task_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[Audit]:
        """Return the newest ``limit`` rows of the task's audit trail, oldest first."""
        ...

    # Checkpoints and their evidence.

    def latest_checkpoint(self, task_id: str, before: int = NUMBER_MAX) -> StoredCheckpoint | None:
        """Return the checkpoint with the largest number below ``before``, or None."""
        ...

    def checkpoints(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[StoredCheckpoint]:
        """Return checkpoints in the order of their numbers, those above ``after``."""
        ...

    def evidence(self, task_id: str, *, before: int = NUMBER_MAX, limit: int = PAGE_ROWS_MAX) -> list[StoredEvidence]:
        """Return the evidence of all checkpoints below ``before``, newest first.

        A checkpoint without evidence has an empty row.
        """
        ...

    def has_row(self, table: str, values: Mapping[str, Scalar], *, timeout_s: float) -> bool:
        """Tell whether a table of the database has a row with these values.

        Asked on a connection that cannot write. Raises QueryRefused for an unknown table or column,
        and when it takes longer than ``timeout_s``.
        """
        ...

    # Jobs and the outbox.

    def running_jobs(self, reaper: str, *, after: int = 0, limit: int) -> list[RunningJob]:
        """Return running jobs behind ``after`` by id, with the dead ticks of this reaper."""
        ...

    def active_jobs(self, task_id: str) -> list[Job]:
        """Return the queued and running jobs of a task, oldest first."""
        ...

    def active_job_counts(self) -> dict[JobStatus, int]:
        """Return how many jobs are queued, and how many are running."""
        ...

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first."""
        ...

    def outbox(self, kind: OutboxKind, *, after: int = 0, limit: int) -> list[OutboxEntry]:
        """Return entries of this kind, oldest first, those behind ``after``."""
        ...

    # Webhook deliveries.

    def pending_deliveries(self, *, after: int, limit: int) -> list[StoredDelivery]:
        """Return pending deliveries with numbers above ``after``.

        They come in the order in which they were accepted.
        """
        ...

    def deliveries(self, status: DeliveryStatus) -> int:
        """Return how many deliveries in the inbox have this status."""
        ...

    def oldest_handled_delivery(self) -> Microseconds | None:
        """Return when the oldest handled delivery was received, or None."""
        ...

    # Grouped state and cycles.

    def state_entries(self, group: str, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StateEntry]:
        """Return entries of a group behind ``after``, in the order of their keys.

        Keys are compared by Unicode code point.
        """
        ...

    def state_count(self, group: str) -> int:
        """Return how many entries the group has."""
        ...

    def cycles(self, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Cycle]:
        """Return committed cycles in the order of their ids, those behind the id ``after``."""
        ...

    def cycle_entries(self, cycle_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[CycleEntry]:
        """Return the entries of a committed cycle in their order.

        Begin behind the place ``after``.
        """
        ...

    # Idempotency keys.

    def result(self, key: str) -> StoredResult | None:
        """Return the result of a key that has ended, or None.

        A cache hit is this read alone, and writes nothing.
        """
        ...

    def keys(self, scope: str, status: KeyStatus, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StoredKey]:
        """Return keys of a scope with this status, in their order.

        Begin behind the key ``after``.
        """
        ...

    def usage(self, scope: str) -> Usage:
        """Return the counts of a scope."""
        ...
