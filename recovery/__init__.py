"""The recovery core: the durable heart of an agent system, which goes on where it was killed.

**The parts.** A *store* (``recovery.store``) keeps everything and is the only place that speaks SQL. A *manager* is
what callers use: ``TaskManager`` for tasks, ``CheckpointManager`` for checkpoints. A manager is given its store, or the
path of one; there is no global connection, no current database, nothing that a second manager could overrule.

**The unit of change** is ``store.transaction()``: a block whose writes are there all together or not at all. Its
methods are single durable facts (a number taken, a checkpoint inserted, an audit row), and managers compose them. That
is why what must be in one transaction can be: a checkpoint with its hash, a status with its audit row, later a boundary
checkpoint with the lease it belongs to. A method of a manager that returns has committed; one that raises has changed
nothing, with the one exception below.

**What an acknowledgement means.** Every connection runs with a write-ahead log and ``synchronous=FULL``, and reads both
back before it is used. SQLite then flushes the log to the device before COMMIT returns, once per transaction. So when
``save``, ``create`` or ``set_status`` has returned, its change survives a crash or SIGKILL of any process, and a crash
of the kernel or a loss of power as far as the device honours a flush (a disk that lies about it can lose the newest
commits, in order). No operation here runs at a lower synchronous level, since each of them is acknowledged to somebody
who then acts on it.

**What silence means.** A process that dies between the call and its return does not know: the change is there whole or
not at all. An I/O error during COMMIT leaves the same doubt and is raised as ``DatabaseUnavailable``; read before
repeating.

**Waiting.** Writers exclude each other. One that finds the database locked waits, at most ``busy_timeout_s``
(30 seconds unless told otherwise), and then raises ``DatabaseLocked`` with nothing changed. Readers do not wait for
writers.

**Time** is an integer: microseconds since 1970-01-01 UTC, from a clock that is passed in (``recovery.clock``). Nothing
is ordered by it, so a clock that jumps back cannot reorder checkpoints.

**Crash points.** Managers say what they are about to do through ``sys.audit`` (``recovery.checkpoints.CRASH_POINTS``):
tens of nanoseconds when nobody listens, and a name for each place where a process can be killed when somebody does.

**Threads and processes.** A store may be shared by threads; each operation takes a connection of its own. After a fork
the child leaves its parent's connections alone and opens new ones.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recovery.artifacts import ARTIFACT_CRASH_POINTS, Artifacts
    from recovery.checkpoints import CRASH_POINTS, Checkpoint, CheckpointManager, CheckpointType, Recovery, Skipped
    from recovery.clock import Clock, ManualClock, SystemClock
    from recovery.errors import RecoveryError
    from recovery.evidence import (
        ArtifactExists,
        CommandExit,
        DbRow,
        Evidence,
        EvidencePolicy,
        FileSha256,
        OwnEvidence,
        Reason,
        Verdict,
        Verification,
    )
    from recovery.store import SqliteStore, Store, init_factory, open_store
    from recovery.tasks import Task, TaskManager, TaskStatus

__all__ = [
    "ARTIFACT_CRASH_POINTS",
    "CRASH_POINTS",
    "ArtifactExists",
    "Artifacts",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointType",
    "Clock",
    "CommandExit",
    "DbRow",
    "Evidence",
    "EvidencePolicy",
    "FileSha256",
    "ManualClock",
    "OwnEvidence",
    "Reason",
    "Recovery",
    "RecoveryError",
    "Skipped",
    "SqliteStore",
    "Store",
    "SystemClock",
    "Task",
    "TaskManager",
    "TaskStatus",
    "Verdict",
    "Verification",
    "init_factory",
    "open_store",
]

_HOME: Final = {
    "ARTIFACT_CRASH_POINTS": "recovery.artifacts",
    "CRASH_POINTS": "recovery.checkpoints",
    "ArtifactExists": "recovery.evidence",
    "Artifacts": "recovery.artifacts",
    "Checkpoint": "recovery.checkpoints",
    "CheckpointManager": "recovery.checkpoints",
    "CheckpointType": "recovery.checkpoints",
    "Clock": "recovery.clock",
    "CommandExit": "recovery.evidence",
    "DbRow": "recovery.evidence",
    "Evidence": "recovery.evidence",
    "EvidencePolicy": "recovery.evidence",
    "FileSha256": "recovery.evidence",
    "ManualClock": "recovery.clock",
    "OwnEvidence": "recovery.evidence",
    "Reason": "recovery.evidence",
    "Recovery": "recovery.checkpoints",
    "RecoveryError": "recovery.errors",
    "Skipped": "recovery.checkpoints",
    "SqliteStore": "recovery.store",
    "Store": "recovery.store",
    "SystemClock": "recovery.clock",
    "Task": "recovery.tasks",
    "TaskManager": "recovery.tasks",
    "TaskStatus": "recovery.tasks",
    "Verdict": "recovery.evidence",
    "Verification": "recovery.evidence",
    "init_factory": "recovery.store",
    "open_store": "recovery.store",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that ``import recovery`` itself costs nothing."""
    if name not in _HOME:
        message = f"module 'recovery' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_HOME[name]), name)
