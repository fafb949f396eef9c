"""The errors of the recovery core. Each text says what must be, what was found, and what to do.

After any of them the stored state is as before the call, unless a docstring here says otherwise.
"""

# ruff: noqa: N818 - the names state the fact, and read well in an except clause

from __future__ import annotations

from typing import Final


class RecoveryError(Exception):
    """The root of all errors of the recovery core."""


class InvalidSetting(RecoveryError, ValueError):
    """An invalid bound, duration or combination of arguments, such as a negative timeout."""


class MissingPackage(InvalidSetting, ImportError):
    """An optional package is not installed. The message names the extra that brings it."""


# The database as a whole.


class StoreError(RecoveryError):
    """The database or its file prevents the operation."""


class NewerSchema(StoreError):
    """The file was written by a newer version of this package, and was not touched.

    Update the package.
    """


class ForeignDatabase(StoreError):
    """The file is another program's database, or has foreign tables with our names."""


class CorruptDatabase(StoreError):
    """The file is not a database, or is truncated, overwritten or torn.

    Restore a copy.
    """


class DatabaseLocked(StoreError):
    """Another connection held the write lock for longer than the busy timeout.

    Nothing changed; try again.
    """


class DatabaseFull(StoreError):
    """The disk, or the database's own size limit, is full. The transaction was rolled back."""


class DatabaseReadOnly(StoreError):
    """The file, its folder or its file system cannot be written by this process."""


class DatabaseUnavailable(StoreError):
    """The file cannot be opened, or reading or writing it failed.

    Common causes: a folder that does not exist, a path that is a folder, a failing device, too old
    an SQLite. When it was raised by a commit, that commit may or may not have happened: read before
    repeating.
    """


class PragmaRefused(StoreError):
    """SQLite refused a setting that durability needs, such as a WAL on a network file system."""


class StoreClosed(StoreError):
    """The store was closed before this call."""


class InheritedTransaction(StoreError):
    """A forked child ended a transaction that its parent had begun.

    The child's changes are dropped; the parent's transaction goes on.
    """


STORE_FAILURES: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
"""The errors that would meet every item alike: a loop over items is ended by them,
and by no other error.
"""


# Tasks.


class InvalidTask(RecoveryError, ValueError):
    """A task id, tracker key or stage is not text, is empty, or is not valid UTF-8."""


class UnknownTask(RecoveryError, LookupError):
    """No task has this id.

    Create it first: a mistyped id must not look like a task without checkpoints.
    """


class TaskConflict(RecoveryError):
    """The id or the tracker key belongs to another task already."""


class StatusConflict(RecoveryError):
    """The task was not in the expected status: another caller was faster (compare-and-set)."""


class InvalidTransition(RecoveryError, ValueError):
    """No task may change its status so: succeeded, failed and cancelled are final."""


# Checkpoints.


class InvalidSnapshot(RecoveryError, ValueError):
    """The snapshot would not come back unchanged from JSON.

    Common causes: NaN, a tuple, a date, a key that is not a string.
    """


class SnapshotTooLarge(InvalidSnapshot):
    """The snapshot's JSON exceeds the manager's bound."""


class InvalidCheckpointType(RecoveryError, ValueError):
    """A checkpoint's type is not a non-empty string."""


class CorruptCheckpoint(RecoveryError):
    """A stored snapshot does not match its hash: it was changed or damaged after it was written."""


# Evidence and artifacts.


class InvalidEvidence(RecoveryError, ValueError):
    """The evidence or the policy is invalid.

    Common causes: a path outside the folder, a malformed SHA-256, nothing to check.
    """


class InvalidArtifact(RecoveryError, ValueError):
    """The path or the content of an artifact is invalid.

    Common causes: an absolute path, a path outside the folder or through a link, text for bytes.
    """


class ArtifactNotWritten(RecoveryError):
    """The file system refused a step of writing an artifact. The old content is still there.

    Only if the last step failed, the flush of the folder, the new content is there, and a loss of
    power may undo it.
    """


class QueryRefused(RecoveryError):
    """A query could not be answered: no such table or column, or it took too long."""


# Claims: leases, keys and jobs.


class ClaimLost(RecoveryError):
    """The claim is not held any more: it expired, was taken over, ended or cancelled.

    Stop working on it.
    """


# Work items and leases.


class InvalidDuration(RecoveryError, ValueError):
    """An invalid length of a lease: negative, zero, infinite, no number, or longer than a week."""


class InvalidWorkItem(RecoveryError, ValueError):
    """An invalid work item or request for one: no type, no holder, a negative number of retries."""


class UnknownWorkItem(RecoveryError, LookupError):
    """No work item has this id."""


class LeaseExpired(ClaimLost):
    """The lease ran out before the call.

    The item may still be free, but this holder has lost it.
    """


class LeaseLost(ClaimLost):
    """The item has ended, or was granted to another holder since.

    This holder can change nothing any more.
    """


class AlreadyFinished(LeaseLost):
    """The item is completed or failed, which is final, so its lease has ended."""


# Workers.


class UnknownProgress(RecoveryError):
    """A task's newest verified iteration_end was not saved by a worker.

    It holds no state from which a worker could go on.
    """


class WorkerNotStarted(RecoveryError):
    """A supervisor could not start its worker: no such program, or not executable."""


# Webhooks.


class InvalidSignature(RecoveryError):
    """The signature of a delivery is missing or wrong: another secret, another body, no id."""


class StaleDelivery(InvalidSignature):
    """The signature is valid, but its time is too far from the receiver's clock.

    The delivery is late, or replayed.
    """


class InvalidDelivery(RecoveryError, ValueError):
    """The body of a signed delivery is not JSON, or lacks a field that its event needs."""


# The tracker.


class TrackerError(RecoveryError):
    """The tracker could not be read to the end. Issues that were yielded before stay valid."""


class TrackerUnavailable(TrackerError):
    """The tracker is unreachable, too slow or overloaded, or asked for a pause. Ask again later.

    ``retry_after_s`` is the pause that it asked for, in seconds from the raise, or None.
    """

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        """Keep the text and the pause."""
        super().__init__(text)
        self.retry_after_s = retry_after_s


class InvalidTrackerAnswer(TrackerError):
    """The tracker's answer is invalid: HTML, another shape, a circle of pages, a refusal.

    Repeating does not help. Common causes: a wrong address or token, a proxy that answers instead.
    """


# Jobs and stages.


class InvalidJob(RecoveryError, ValueError):
    """An invalid job or report of its end: no agent, no attempts, an impossible exit code."""


class UnknownJob(RecoveryError, LookupError):
    """No job has this id."""


class JobLost(ClaimLost):
    """The claim on the job was lost: it was reaped, ended, or claimed again. Nothing changed."""


class InvalidPipeline(RecoveryError, ValueError):
    """The pipeline is invalid.

    Common causes: a stage that leads nowhere or in a circle, a duplicate name, a missing gate.
    """


class UnknownStage(RecoveryError, LookupError):
    """The pipeline has no stage of this name."""


class UnknownAgent(RecoveryError, LookupError):
    """The pipeline has no agent of this name."""


# Grouped state, workspaces, cycles and the sync queue.


class InvalidState(RecoveryError, ValueError):
    """The group, key or value is invalid.

    Common causes: an empty or too long key, invalid UTF-8, a value that JSON does not bring back.
    """


class CorruptState(RecoveryError):
    """The stored value of a key is not JSON: another program has written it."""


class InvalidWorkspace(RecoveryError, ValueError):
    """The workspace's name leads out of the folder of workspaces, or its status is unknown."""


class WorkspaceNotWritten(RecoveryError):
    """The status file of a workspace was not written.

    It is a link, a folder, or of a newer version.
    """


class InvalidCycle(RecoveryError, ValueError):
    """The cycle is invalid.

    Common causes: a name that cannot be part of a file name, an entry without a kind, not JSON.
    """


class CycleEnded(RecoveryError):
    """The cycle was committed or discarded before this call. Begin another one."""


class BufferNotWritten(RecoveryError):
    """The buffer of a cycle could not be made, written or read: a full disk, a read-only folder."""


class InvalidSyncEntry(RecoveryError, ValueError):
    """An entry to push has no agent id, or dispatches that are not JSON objects."""


class SyncQueueFull(RecoveryError):
    """The sync queue is full; its oldest entry has not been delivered."""


class SyncQueueNotWritten(RecoveryError):
    """Neither copy of the sync queue could be written. Nothing was queued."""


class PushFailed(RecoveryError):
    """The receiver did not acknowledge a push. It may have arrived: repeat it under its key."""


class FolderLocked(RecoveryError):
    """Another process held the lock of a state folder beyond the bound.

    Nothing changed; try again.
    """


class ExecutorNotEnded(RecoveryError):
    """A process survived SIGKILL, or must not be signalled.

    The steps that follow its end were not done.
    """


# Keys, the cache and the ledger.


class InvalidKey(RecoveryError, ValueError):
    """A key is not text of 1 to 1,024 bytes of UTF-8. Hash a longer one."""


class InvalidRequest(RecoveryError, ValueError):
    """A request has no canonical form: NaN, bytes, a date, a number as a key, nesting too deep."""


class InvalidResult(RecoveryError, ValueError):
    """The result would not come back unchanged, so it was neither stored nor returned."""


class RequestConflict(RecoveryError):
    """The key belongs to another request, so its result does not answer this one.

    Use another key.
    """


class InProgress(RecoveryError):
    """Another execution under this key had not ended when the wait was over. Ask again later."""


class RecursiveExecution(InProgress):
    """An execution asked for its own key: it would have waited for its own end."""


class ExecutionLost(ClaimLost):
    """The execution outlived its claim on the key, and another caller has claimed the key since.

    The result was not recorded. Common causes: a process that was stopped, an execution past its
    time limit, a database that was locked for as long as the claim.
    """


class InDoubt(RecoveryError):
    """A tool began, and its effect is unknown. Find out, then call ``resolve`` or ``forget``."""


class ProbeFailed(InDoubt):
    """The probe for a tool's effect raised, or gave no answer. The call is still in doubt."""


class ToolNotStarted(RecoveryError):
    """The command could not be started and had no effect: no such program or folder."""


class OutputTooLarge(InvalidResult):
    """A tool's output exceeds the ledger's bound. It had its effect; its call is in doubt."""


class OutputLost(RecoveryError):
    """A stored output is missing, or does not match its hash."""


def unknown_task(task_id: str) -> UnknownTask:
    """Return the error for an id that no task has."""
    return UnknownTask(f"task_id must be that of a task; got {task_id!r}. Create the task first.")
