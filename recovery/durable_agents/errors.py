"""The errors of the recovery core. Each text is one sentence: what was expected, what came, what to do.

After any of them the stored state is as it was before the call, except where a docstring here says
otherwise.
"""

# ruff: noqa: N818 - the names say what is the matter, and read as such in an except clause

from __future__ import annotations

from typing import Final


class RecoveryError(Exception):
    """The root of all errors of the recovery core."""


class InvalidSetting(RecoveryError, ValueError):
    """A bound, a duration or a combination of arguments cannot be meant: a negative timeout, a store and a path."""


class MissingPackage(InvalidSetting, ImportError):
    """An optional package is not installed. The message names the extra that brings it."""


# The database as a whole.


class StoreError(RecoveryError):
    """The store cannot do what was asked, for a reason that lies in the database or its file."""


class NewerSchema(StoreError):
    """The file was written by a newer version of this package. It was not touched; update the package."""


class ForeignDatabase(StoreError):
    """The file is a database of some other program, or holds tables that have our names and are not ours."""


class CorruptDatabase(StoreError):
    """The file is not a database, or is a damaged one: truncated, overwritten, torn. Restore a copy."""


class DatabaseLocked(StoreError):
    """Another connection held the write lock for longer than the busy timeout. Nothing changed; try again."""


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
    """SQLite did not take a setting that durability rests on: a write-ahead log on a network file system, say."""


class StoreClosed(StoreError):
    """The store was closed before this call."""


class InheritedTransaction(StoreError):
    """A forked child came to the end of a transaction that its parent had begun. The parent's is as it was.

    Nothing that the child did in it was kept.
    """


STORE_FAILURES: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
"""The errors that would meet every item alike: a loop over items is ended by them, and by no other error."""


# Tasks.


class InvalidTask(RecoveryError, ValueError):
    """A task id, tracker key or stage that cannot be stored: not a string, empty, or not encodable as UTF-8."""


class UnknownTask(RecoveryError, LookupError):
    """No task has this id. Create it first; a mistyped id must not look like a task without checkpoints."""


class TaskConflict(RecoveryError):
    """The id or the tracker key already belongs to a task that was created otherwise."""


class StatusConflict(RecoveryError):
    """The task was not in the status that the caller expected, so somebody else was faster: compare-and-set lost."""


class InvalidTransition(RecoveryError, ValueError):
    """No task may go from the one status to the other, whoever asks: succeeded, failed and cancelled are final."""


# Checkpoints.


class InvalidSnapshot(RecoveryError, ValueError):
    """The snapshot would not come back as it was given: not JSON, NaN, a tuple, a key that is not a string."""


class SnapshotTooLarge(InvalidSnapshot):
    """The snapshot's JSON has more bytes than the manager was told to accept."""


class InvalidCheckpointType(RecoveryError, ValueError):
    """A checkpoint's type is a string that is not empty."""


class CorruptCheckpoint(RecoveryError):
    """A stored snapshot does not match its hash: it was changed, or damaged, after it was written."""


# Evidence and artifacts.


class InvalidEvidence(RecoveryError, ValueError):
    """An item of evidence, or a policy, cannot be meant: a path that leads out, a digest that is none, no question."""


class InvalidArtifact(RecoveryError, ValueError):
    """An artifact's path or content cannot be meant: absolute, leading out of its folder, through a link, not bytes."""


class ArtifactNotWritten(RecoveryError):
    """The file system refused a step of writing an artifact. Under its path is what was there before.

    Only when the folder itself could not be flushed, the last step, it is the new content, which a
    loss of power may take back.
    """


class QueryRefused(RecoveryError):
    """A question to the database could not be answered: it has no such table or column, or the answer took too long."""


# Work items and leases.


class InvalidDuration(RecoveryError, ValueError):
    """The length of a lease is not one: negative, zero, infinite, not a number, or longer than a week."""


class InvalidWorkItem(RecoveryError, ValueError):
    """A work item, or a request for one, cannot be meant: no type, no holder, a negative number of retries."""


class UnknownWorkItem(RecoveryError, LookupError):
    """No work item has this id."""


class LeaseExpired(RecoveryError):
    """The lease ran out before the call. Nobody else need have the item yet, but this holder has it no more."""


class LeaseLost(RecoveryError):
    """The item was granted to another holder since, or has ended. Nothing that this holder does counts any more."""


class AlreadyFinished(LeaseLost):
    """The item is completed or failed, which is final; so the lease has ended, whoever ended it."""


# Workers.


class ClaimLost(RecoveryError):
    """The work is no longer held by this worker: it was taken over, ended or cancelled. Stop working on it."""


class UnknownProgress(RecoveryError):
    """A task's newest verified iteration_end was not saved by a worker: there is no state to go on from."""


class WorkerNotStarted(RecoveryError):
    """A supervisor could not start its worker: there is no such program, or it may not be executed."""


# Webhooks.


class InvalidSignature(RecoveryError):
    """A delivery is not signed by whom it says: no signature, another secret, another body, no id."""


class StaleDelivery(InvalidSignature):
    """The signature is right and its time is too far from the receiver's clock: it is late, or somebody replays it."""


class InvalidDelivery(RecoveryError, ValueError):
    """The body of a signed delivery cannot be meant: not JSON, or without what its kind of event needs."""


# The tracker.


class TrackerError(RecoveryError):
    """The tracker could not be asked to the end. Issues that were handed out before stand."""


class TrackerUnavailable(TrackerError):
    """The tracker is not reached, too slow, overloaded, or wants to be left alone for a while. Ask again later.

    ``retry_after_s`` is how long it wants to be left alone, in seconds from the raise; None where
    it has not said so.
    """

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        """Take the sentence, and the pause that the tracker asked for."""
        super().__init__(text)
        self.retry_after_s = retry_after_s


class InvalidTrackerAnswer(TrackerError):
    """The tracker answered, and not with what was asked for: HTML, another shape, a circle of pages, a refusal.

    Asking again does not help; common causes are a wrong address or token, and a proxy that answers
    in its place.
    """


# Jobs and stages.


class InvalidJob(RecoveryError, ValueError):
    """A job, or what is said about its end, cannot be meant: no agent, no attempts, an exit code that is none."""


class UnknownJob(RecoveryError, LookupError):
    """No job has this id."""


class JobLost(RecoveryError):
    """The job is no longer held under this claim: it was reaped, ended, or claimed again. Nothing was changed."""


class InvalidPipeline(RecoveryError, ValueError):
    """A pipeline cannot be meant: a stage that leads nowhere or in a circle, a name twice, a gate that nobody gave."""


class UnknownStage(RecoveryError, LookupError):
    """The pipeline has no stage of this name."""


class UnknownAgent(RecoveryError, LookupError):
    """The pipeline knows no agent of this name."""


# Grouped state, workspaces, cycles and the sync queue.


class InvalidState(RecoveryError, ValueError):
    """A group, a key or a value cannot be kept: empty, too long, not UTF-8, or not JSON that comes back unchanged."""


class CorruptState(RecoveryError):
    """What is stored under a key is not JSON: something else than this package has written it."""


class InvalidWorkspace(RecoveryError, ValueError):
    """The name of a workspace would lead out of the folder of workspaces, or its status cannot be one."""


class WorkspaceNotWritten(RecoveryError):
    """The status file of a workspace is not ours to replace: a link, a folder, or of a newer version. It was left."""


class InvalidCycle(RecoveryError, ValueError):
    """The name of a cycle cannot be part of a file's name, or an entry of it has no kind or is not JSON."""


class CycleEnded(RecoveryError):
    """The cycle was committed or discarded before this call. Begin another one, of the same name if you like."""


class BufferNotWritten(RecoveryError):
    """The buffer of a cycle could not be made, written or read back: a full disk, a folder that is not writable."""


class InvalidSyncEntry(RecoveryError, ValueError):
    """What is to be pushed has no agent id, or dispatches that are not JSON objects."""


class SyncQueueFull(RecoveryError):
    """The sync queue has as many entries as it may have; what is at its head has not been taken for long."""


class SyncQueueNotWritten(RecoveryError):
    """Neither copy of the sync queue could be written, so the change would not survive. Nothing was queued."""


class PushFailed(RecoveryError):
    """A push was not acknowledged by its receiver. It may have arrived all the same: repeat it under its key."""


class FolderLocked(RecoveryError):
    """Another process has had the lock of a state folder for longer than the bound. Nothing changed; try again."""


class ExecutorNotEnded(RecoveryError):
    """A process that had to be ended is still there, or may not be signalled. What waits for its end was not done."""


# Keys, the cache and the ledger.


class InvalidKey(RecoveryError, ValueError):
    """A key is text of 1 to 1,024 bytes of UTF-8; hash what is longer."""


class InvalidRequest(RecoveryError, ValueError):
    """A request has no canonical form: NaN, bytes, a date, a number as the key of an object, nested too deeply."""


class InvalidResult(RecoveryError, ValueError):
    """What was produced would not come back as it was given, so it was neither stored nor returned."""


class RequestConflict(RecoveryError):
    """The key belongs to another request. The stored result is not an answer to this one; use another key."""


class InProgress(RecoveryError):
    """Somebody else executes under this key, and had not ended when the wait was over. Ask again later."""


class RecursiveExecution(InProgress):
    """What executes under a key asked for the same key, which it would have waited for until its own end."""


class ExecutionLost(RecoveryError):
    """The execution took longer than its claim on the key, and somebody else has claimed it since.

    The result was not recorded. Common causes: a process that was stopped, an execution past its
    time limit, a database that was locked for as long as the claim.
    """


class InDoubt(RecoveryError):
    """A tool was begun and nobody knows whether it had its effect. Find out, then call ``resolve`` or ``forget``."""


class ProbeFailed(InDoubt):
    """The probe that was to find out whether a tool had its effect raised, or gave no answer; it is still in doubt."""


class ToolNotStarted(RecoveryError):
    """The command could not be started, so it had no effect: no such program, not executable, no such folder."""


class OutputTooLarge(InvalidResult):
    """What a tool put out is more than the ledger was told to keep. It had its effect; its call is in doubt."""


class OutputLost(RecoveryError):
    """A stored output is missing, or is not what its hash says: it was changed, or damaged, after it was written."""


def unknown_task(task_id: str) -> UnknownTask:
    """Return the error for an id that no task has."""
    return UnknownTask(f"Expected the id of a task but no task has the id {task_id!r}; create the task first.")
