"""The worker: claim work, do it by iterations, and go on behind the last good checkpoint.

Work is a function, called once per iteration with the iteration's number and the state that the
previous one returned; it returns the next state. Its effects go through ``iteration.write``: files
named by the iteration's number, each written whole and durably. A process that dies between an
effect and its checkpoint leaves an effect without a checkpoint. The next worker repeats that
iteration and writes the same file. A worker that was stopped beyond its claim writes none: it
checks its claim before each. So each effect exists exactly once, a crash repeats at most one
iteration, and an iteration with an acknowledged checkpoint is not repeated while its evidence
holds.

An iteration without evidence leaves a checkpoint that recovery passes over (no evidence is not
verified evidence), and is repeated after a crash.

A worker takes its work from any ``WorkSource``. ``LeaseClaims`` is for any number of workers: each
write is fenced by a lease. ``TaskClaims`` is for one worker per task, kept alive by a supervisor:
without a lease, only the supervisor keeps a second worker away.
"""

from __future__ import annotations

import contextlib
import enum
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import msgspec

from durable_agents.claim import lost
from durable_agents.errors import (
    ClaimLost,
    InvalidEvidence,
    InvalidSetting,
    InvalidSnapshot,
    StatusConflict,
    UnknownProgress,
    UnknownWorkItem,
)
from durable_agents.work.checkpoints import CheckpointType
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.tasks import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from durable_agents.work.artifacts import Artifacts
    from durable_agents.work.checkpoints import Checkpoint, CheckpointManager
    from durable_agents.work.evidence import Evidence, FileSha256
    from durable_agents.work.leases import Lease, LeaseManager
    from durable_agents.work.tasks import TaskManager


class HeldWork(Protocol):
    """Claimed work. Each method raises ClaimLost, with nothing changed, once the claim is lost."""

    @property
    def task_id(self) -> str:
        """The task to work on."""
        ...

    def renew(self) -> None:
        """Check, or renew, the claim. Called before each iteration."""
        ...

    def check(self) -> None:
        """Check the claim by the holder's own clock. Called before each effect, so it is cheap."""
        ...

    def save(self, snapshot: object, evidence: Sequence[Evidence]) -> Checkpoint:
        """Save a checkpoint of type iteration_end.

        The same transaction checks the claim.
        """
        ...

    def complete(self) -> None:
        """End the work as done."""
        ...

    def fail(self, error: str) -> None:
        """End the work, or this attempt, as failed."""
        ...


class WorkSource(Protocol):
    """A source of work for a worker."""

    def claim(self) -> HeldWork | None:
        """Claim some work, or return None if there is none."""
        ...


class Iteration:
    """One call of the work function: its input, and its effects on the world."""

    def __init__(
        self, task_id: str, number: int, state: Any, artifacts: Artifacts, check: Callable[[], None] | None = None
    ) -> None:
        """Begin the iteration; numbers begin at 1. ``check`` raises ClaimLost before an effect."""
        self.task_id: Final = task_id
        self.number: Final = number
        self.state: Final = state
        self.lost: ClaimLost | None = None
        self._artifacts = artifacts
        self._check = check
        self._evidence: list[Evidence] = []

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence so far."""
        return tuple(self._evidence)

    def path(self, name: str) -> str:
        """Return the path of an effect, relative to the folder of the artifacts.

        Task and iteration are part of it.
        """
        return f"task-{quote(self.task_id, safe='')}/{self.number:06d}/{name}"

    def write(self, name: str, content: bytes) -> FileSha256:
        """Write an effect durably, and add it to the evidence.

        A worker that was stopped beyond its claim must not write over what its successor has
        written: the claim is checked first. Raises ClaimLost, or as ``Artifacts.write`` does.
        """
        if self._check is not None:
            try:
                self._check()
            except ClaimLost as error:
                self.lost = error
                raise
        written = self._artifacts.write(self.path(name), content)
        self._evidence.append(written)
        return written

    def give(self, evidence: Evidence) -> None:
        """Add other evidence of the iteration's effects."""
        self._evidence.append(evidence)


class Work(Protocol):
    """The work function: any function of an iteration."""

    def __call__(self, iteration: Iteration, /) -> Any:
        """Do the iteration and return the state for the next: JSON."""
        ...


class WorkEnding(enum.StrEnum):
    """How a worker's work ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"


class WorkOutcome(msgspec.Struct, frozen=True):
    """The result of ``run_once``: it did the iterations ``resumed_from`` + 1 to ``done``.

    ``skipped`` counts the checkpoints that recovery passed over. ``error`` is a sentence, empty if
    the work was completed.
    """

    task_id: str
    ending: WorkEnding
    resumed_from: int
    done: int
    skipped: int
    error: str = ""


class Worker:
    """Does the ``iterations`` of ``work`` for one claim after another.

    ``start`` is the state that the first iteration is given, JSON. ``artifacts`` must be those of
    ``checkpoints``. Raises InvalidSetting.
    """

    def __init__(
        self,
        claims: WorkSource,
        checkpoints: CheckpointManager,
        artifacts: Artifacts,
        work: Work,
        *,
        iterations: int,
        start: Any = None,
    ) -> None:
        """Prepare the worker; nothing is claimed yet."""
        if iterations < 1:
            message = f"iterations must be 1 or more; got {iterations!r}. Give the number of iterations to do."
            raise InvalidSetting(message)
        self._claims = claims
        self._checkpoints = checkpoints
        self._artifacts = artifacts
        self._work = work
        self._iterations = iterations
        self._start = start

    def run_once(self) -> WorkOutcome | None:
        """Claim some work and do the rest of it; return None if there is none.

        An error of the work function, a state that is not JSON, and evidence that does not verify
        end in ``fail``. A lost claim ends the work at once, with nothing further written. Raises
        UnknownProgress, and any StoreError; then the work stays claimed until the claim expires.
        """
        sys.audit(WorkPoint.WORKER_BEFORE_CLAIM, "", 0)
        claim = self._claims.claim()
        if claim is None:
            return None
        sys.audit(WorkPoint.WORKER_AFTER_CLAIM, claim.task_id, 0)
        done, state, skipped = self._progress(claim.task_id)
        sys.audit(WorkPoint.WORKER_AFTER_RESUME, claim.task_id, done)
        resumed_from = done
        try:
            while done < self._iterations:
                state, error = self._iterate(claim, done + 1, state)
                if error:
                    claim.fail(error)
                    return WorkOutcome(claim.task_id, WorkEnding.FAILED, resumed_from, done, skipped, error)
                done += 1
            sys.audit(WorkPoint.WORKER_BEFORE_COMPLETE, claim.task_id, done)
            claim.complete()
        except ClaimLost as error:
            return WorkOutcome(claim.task_id, WorkEnding.LOST, resumed_from, done, skipped, str(error))
        sys.audit(WorkPoint.WORKER_AFTER_COMPLETE, claim.task_id, done)
        return WorkOutcome(claim.task_id, WorkEnding.COMPLETED, resumed_from, done, skipped)

    def progress(self, task_id: str) -> int:
        """Return the number of the last iteration that is not to be repeated, or 0."""
        return self._progress(task_id)[0]

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        """Return the last finished iteration, its state, and the number of skipped checkpoints."""
        found = self._checkpoints.latest_verified(task_id, type=CheckpointType.ITERATION_END)
        if found.checkpoint is None:
            return 0, self._start, found.skipped_count
        return (*_unpacked(found.checkpoint), found.skipped_count)

    def _begun(self, claim: HeldWork, number: int, state: Any) -> Iteration:
        return Iteration(claim.task_id, number, state, self._artifacts, claim.check)

    def _iterate(self, claim: HeldWork, number: int, state: Any) -> tuple[Any, str]:
        """Do one iteration and save it; return the new state, or an error."""
        claim.renew()
        sys.audit(WorkPoint.WORKER_BEFORE_ITERATION, claim.task_id, number)
        iteration = self._begun(claim, number, state)
        try:
            state = self._work(iteration)
        except Exception as error:
            if iteration.lost is not None:
                raise iteration.lost from error
            return None, f"Iteration {number} raised {type(error).__name__}: {_printable(error)}"
        sys.audit(WorkPoint.WORKER_AFTER_ITERATION, claim.task_id, number)
        try:
            saved = claim.save({"iteration": number, "state": state}, iteration.evidence)
        except (InvalidSnapshot, InvalidEvidence) as error:  # a retry would fail the same way
            return None, f"Iteration {number} returned what cannot be kept: {_printable(error)}"
        if iteration.evidence and not saved.is_verified:
            return None, f"Iteration {number} gave evidence that does not verify: {saved.verification}"
        sys.audit(WorkPoint.WORKER_AFTER_CHECKPOINT, claim.task_id, number)
        return saved.snapshot["state"], ""


class LeaseClaims:
    """Work items of a lease manager, for any number of workers.

    The lease is renewed before each iteration and fences each checkpoint. The task itself stays
    running: its items may be done by many workers.
    """

    def __init__(
        self,
        leases: LeaseManager,
        checkpoints: CheckpointManager,
        lease_holder: str,
        *,
        ttl_s: float,
        type: str | None = None,  # noqa: A002 - the field's name
        task_id: str | None = None,
    ) -> None:
        """Claim items of this type and task, or of any, for ``ttl_s`` seconds at a time."""
        self._leases = leases
        self._checkpoints = checkpoints
        self._lease_holder = lease_holder
        self._ttl_s = ttl_s
        self._type = type
        self._task_id = task_id

    def claim(self) -> LeaseClaim | None:
        """Lease the item that comes first, or return None.

        Raises as ``LeaseManager.acquire`` does.
        """
        lease = self._leases.acquire(self._lease_holder, ttl_s=self._ttl_s, type=self._type, task_id=self._task_id)
        return None if lease is None else LeaseClaim(self._leases, self._checkpoints, lease)


class LeaseClaim:
    """A work item that is held under a lease."""

    def __init__(self, leases: LeaseManager, checkpoints: CheckpointManager, lease: Lease) -> None:
        """Hold the item."""
        self._leases = leases
        self._checkpoints = checkpoints
        self._lease = lease

    @property
    def task_id(self) -> str:
        """The task to work on."""
        return self._lease.task_id

    def renew(self) -> None:
        """Prolong the lease. Raises ClaimLost."""
        with _losses():
            self._lease = self._leases.renew(self._lease)

    def check(self) -> None:
        """Check the lease by this process's own clock. Raises ClaimLost."""
        self._leases.check(self._lease)

    def save(self, snapshot: object, evidence: Sequence[Evidence]) -> Checkpoint:
        """Save a checkpoint under the fence. Raises ClaimLost."""
        with _losses():
            return self._checkpoints.save(
                self._lease.task_id,
                snapshot,
                type=CheckpointType.ITERATION_END,
                evidence=evidence,
                policy=None,
                lease=self._lease,
            )

    def complete(self) -> None:
        """End the item as completed. Raises ClaimLost."""
        with _losses():
            self._leases.complete(self._lease)

    def fail(self, error: str) -> None:
        """Give the item back after a failed attempt. Raises ClaimLost."""
        with _losses():
            self._leases.fail(self._lease, error)


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except UnknownWorkItem as error:  # deleted under us: lost as well
        raise ClaimLost(str(error)) from error


class TaskClaims:
    """One task for one worker at a time, without a lease: the supervisor starts no second worker.

    A created or running task is claimed; a final one is not.
    """

    def __init__(self, tasks: TaskManager, checkpoints: CheckpointManager, task_id: str) -> None:
        """Claim this task, which must exist."""
        self._tasks = tasks
        self._checkpoints = checkpoints
        self._task_id = task_id

    def claim(self) -> TaskClaim | None:
        """Set the task running; return None if it is final.

        Raises UnknownTask, or any StoreError.
        """
        status = self._tasks.get(self._task_id).status
        if status is TaskStatus.CREATED:
            self._tasks.set_status(self._task_id, TaskStatus.RUNNING, expected=TaskStatus.CREATED)
        elif status is not TaskStatus.RUNNING:
            return None
        return TaskClaim(self._tasks, self._checkpoints, self._task_id)


class TaskClaim:
    """A task that is running, held until it is final."""

    def __init__(self, tasks: TaskManager, checkpoints: CheckpointManager, task_id: str) -> None:
        """Hold the task."""
        self._tasks = tasks
        self._checkpoints = checkpoints
        self._task_id = task_id

    @property
    def task_id(self) -> str:
        """The task to work on."""
        return self._task_id

    def renew(self) -> None:
        """Raise ClaimLost unless the task is still running: it may have been cancelled."""
        if self._tasks.get(self._task_id).status is not TaskStatus.RUNNING:
            raise self._lost()

    def check(self) -> None:
        """Trust the supervisor, which starts no second worker."""

    def save(self, snapshot: object, evidence: Sequence[Evidence]) -> Checkpoint:
        """Save a checkpoint of type iteration_end."""
        return self._checkpoints.save(
            self._task_id, snapshot, type=CheckpointType.ITERATION_END, evidence=evidence, policy=None
        )

    def complete(self) -> None:
        """Set the task succeeded."""
        self._end(TaskStatus.SUCCEEDED, "")

    def fail(self, error: str) -> None:
        """Set the task failed."""
        self._end(TaskStatus.FAILED, error)

    def _end(self, status: TaskStatus, detail: str) -> None:
        try:
            self._tasks.set_status(self._task_id, status, expected=TaskStatus.RUNNING, detail=detail)
        except StatusConflict as error:
            raise self._lost() from error

    def _lost(self) -> ClaimLost:
        return lost(ClaimLost, f"Task {self._task_id!r}", f"one that is {self._tasks.get(self._task_id).status}")


def _printable(error: Exception) -> str:
    """Return the text of an error, as UTF-8 can hold it.

    Other characters, such as parts of file names, become escapes.
    """
    return str(error).encode(errors="backslashreplace").decode()


def _unpacked(checkpoint: Checkpoint) -> tuple[int, Any]:
    """Return the iteration and the state that a worker's checkpoint holds."""
    match checkpoint.snapshot:
        case {"iteration": int(number), "state": state} if number >= 1 and len(checkpoint.snapshot) == 2:
            return number, state
    message = (
        f"Checkpoint {checkpoint.sequence_number} of task {checkpoint.task_id!r} must hold an iteration and its state; "
        "got one that was not saved by a worker. Give checkpoints of your own another type than iteration_end."
    )
    raise UnknownProgress(message)
