"""Transactions, checkpoints, leases, jobs, keys and state with one known anomaly each.

| variant | anomaly | seen by |
|---|---|---|
| ReadsASnapshot | write skew: reads a snapshot, and looks only whether what it writes has changed | G2-item |
| WritesItBack | lost update: reads a snapshot, and writes whole lists back | lost-update |
| ReadsACopy | stale read: reads what this process has read before | G-single-realtime |
| GrantsTwice | double grant: a second client gets the lease that the first still has | no order of a lock |
| RenewsTheLost | stale token: a holder renews what ran out and was granted again | no order of a lease |
| ListsACopy | stale read: a client sees the checkpoints that it has read before | G-single-process |
| GivesTwice | a job that is claimed is in the queue still | no order of a queue |
| ForgetsResults | each client executes for itself | no order of a key |
| RemembersState | stale read of a state group | no order of a map |
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from durable_agents import CheckpointManager, IdempotencyStore, JobQueue, LeaseManager, StateStore
from durable_agents.once.idempotency import Execution
from durable_agents.work import leases

from scenarios.proved.transactions import READ, Transactions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_agents import Checkpoint, Job, Lease


class ReadsASnapshot(Transactions):
    """Gives snapshot isolation: the first to commit a write to a key wins."""

    def do(self, operations: list[list[Any]]) -> list[list[Any]]:
        """Read, then compare what is to be written with what was read."""
        while True:
            before = self.snapshot(operations)
            sys.audit(READ)
            self.connection.execute("BEGIN IMMEDIATE")
            with self.connection:
                written = {key for function, key, _ in operations if function == "append"}
                if self.is_as_before(before, written):
                    return self.apply(before, operations)

    def snapshot(self, operations: list[list[Any]]) -> dict[str, list[Any]]:
        """Return all lists of a transaction at one moment."""
        self.connection.execute("BEGIN")
        with self.connection:
            return {key: self.items(key) for _, key, _ in operations}

    def is_as_before(self, before: dict[str, list[Any]], written: set[str]) -> bool:
        """Whether none of the written lists has changed."""
        return all(self.items(key) == before[key] for key in written)

    def apply(self, lists: dict[str, list[Any]], operations: list[list[Any]]) -> list[list[Any]]:
        """Do the operations on the snapshot, and write its lists back."""
        done = []
        for function, key, value in operations:
            if function == "append":
                lists[key] = [*lists[key], value]
                self.put(key, lists[key])
            done.append([function, key, value if function == "append" else lists[key]])
        return done


class WritesItBack(ReadsASnapshot):
    """Compares nothing before it writes back."""

    def is_as_before(self, before: dict[str, list[Any]], written: set[str]) -> bool:
        """Trust the snapshot."""
        del before, written
        return True


class ReadsACopy(Transactions):
    """Answers transactions that only read from memory."""

    copies: dict[str, list[Any]]

    def do(self, operations: list[list[Any]]) -> list[list[Any]]:
        """Look into the database only where something is written."""
        if not hasattr(self, "copies"):
            self.copies = {}
        if all(function == "r" and key in self.copies for function, key, _ in operations):
            return [[function, key, self.copies[key]] for function, key, _ in operations]
        done = super().do(operations)
        self.copies |= {key: self.items(key) for _, key, _ in operations}
        return done


class GrantsTwice(LeaseManager):
    """Grants what another client holds, with a token above the other's."""

    def acquire(self, lease_holder: str, *, ttl_s: float, **rest: Any) -> Lease | None:
        """Take the lease from its holder."""
        if (lease := super().acquire(lease_holder, ttl_s=ttl_s, **rest)) is not None:
            return lease
        with self._store.transaction() as transaction:
            transaction.execute(  # type: ignore[attr-defined]
                "UPDATE work_items SET lease_token = lease_token + 1, lease_holder = ? WHERE status = 'in_progress'",
                (lease_holder,),
            )
        item = self.get(1)
        return leases._lease(item, ttl_s, self._clock.monotonic()) if item.lease_holder == lease_holder else None


class RenewsTheLost(LeaseManager):
    """Renews in the name of whoever asks."""

    def renew(self, lease: Lease, *, ttl_s: float | None = None) -> Lease:
        """Look at the item, and not at the token."""
        del ttl_s
        self.get(lease.work_item_id)
        return lease


class ListsACopy(CheckpointManager):
    """Reads the checkpoints of a task once."""

    copies: dict[str, list[Checkpoint]]

    def list(self, task_id: str, **rest: Any) -> list[Checkpoint]:
        """Return what was read before."""
        if not hasattr(self, "copies"):
            self.copies = {}
        if task_id not in self.copies:
            self.copies[task_id] = super().list(task_id, **rest)
        return self.copies[task_id]


class GivesTwice(JobQueue):
    """Claims a job, and leaves it queued every fifth time."""

    claims = 0

    def claim(self, *, agents: Sequence[str] | None = None) -> Job | None:
        """Claim the oldest job."""
        job = super().claim(agents=agents)
        self.claims += 1
        if job is not None and not self.claims % 5:
            with self._store.transaction() as transaction:
                transaction.execute(  # type: ignore[attr-defined]
                    "UPDATE jobs SET status = 'queued' WHERE job_id = ?", (job.job_id,)
                )
        return job


class ForgetsResults(IdempotencyStore):
    """Executes each time."""

    def execute(self, key: str, produce: Callable[[], object], **_: Any) -> Execution:
        """Return a result of one's own."""
        del key
        return Execution(produce(), is_replay=False)


class RemembersState(StateStore):
    """Answers from memory what it has read once."""

    def get(self, group: str, key: str) -> Any:
        """Look into the store the first time."""
        if not hasattr(self, "known"):
            self.known: dict[tuple[str, str], Any] = {}
        if (group, key) not in self.known:
            self.known[group, key] = super().get(group, key)
        return self.known[group, key]
