"""The recovery core: the durable heart of an agent system, which goes on where it was killed.

**The parts.** A *store* (``recovery.store``) keeps everything and is the only place that speaks SQL. A *manager* is
what callers use: ``TaskManager`` for tasks, ``CheckpointManager`` for checkpoints. ``Artifacts`` writes the files that
checkpoints have for evidence; a ``Worker`` does work iteration by iteration, and a ``Supervisor`` keeps one alive. A
manager is given its store, or the path of one; there is no global connection, no current database, nothing that a
second manager could overrule.

**The unit of change** is ``store.transaction()``: a block whose writes are there all together or not at all. Its
methods are single durable facts (a number taken, a checkpoint inserted, an audit row), and managers compose them. That
is why what must be in one transaction can be: a checkpoint with its hash, a status with its audit row, later a boundary
checkpoint with the lease it belongs to. A method of a manager that returns has committed; one that raises has changed
nothing, with the one exception below.

**What an acknowledgement means.** Every connection runs with a write-ahead log and ``synchronous=FULL``, and reads
both back before it is used. SQLite then flushes the log to the device before COMMIT returns, once per transaction. So
when ``save``, ``create``, ``set_status``, ``acquire``, ``renew`` or ``complete`` has returned, its change survives a
crash or SIGKILL of any process, and a crash of the kernel or a loss of power as far as the device honours a flush (a
disk that lies about it can lose the newest commits, in order). No operation here runs at a lower synchronous level,
since each of them is acknowledged to somebody who then acts on it.

**Files.** ``Artifacts.write`` flushes the file, renames it into place and flushes its folder, before it returns and so
before any checkpoint can refer to it. A checkpoint that refers to a file which its caller wrote without a flush may
outlive that file; recovery then says so and goes to an older one.

**What silence means.** A process that dies between the call and its return does not know: the change is there whole or
not at all. An I/O error during COMMIT leaves the same doubt and is raised as ``DatabaseUnavailable``; read before
repeating.

**Waiting.** Writers exclude each other. One that finds the database locked waits, at most ``busy_timeout_s``
(30 seconds unless told otherwise), and then raises ``DatabaseLocked`` with nothing changed. Readers do not wait for
writers. Writers begin in the order in which they came, give or take a moment: threads of one store at its one seat, and
those that wait for each other share a commit, before which none of them is acknowledged (``recovery.store.groups``);
processes in a queue beside the database, unless a store was opened without ``takes_turns`` (``recovery.store.turns``).

**Leases.** A lease is a row and a fencing token; what is written under a lease names the token, and the store compares
it in the transaction of that write. A renewal is flushed like everything else: one that was acknowledged and lost would
let a second holder in while the first still trusts it. The sweep commits in batches, so it may die anywhere and be run
by anyone, at any time, any number of times at once.

**An agent's own state** lies in grouped state (``recovery.state``) and in files, below one folder (``recovery.roots``).
Where both say something the file counts, and the store is brought in line at the next start (``recovery.startup``):
ghosts fail and the living go on (``recovery.workspaces``), half-done cycles never get into the history
(``recovery.buffers``), what is to be told to others waits in two copies (``recovery.sync_queue``). A start-up may be
killed anywhere and done again, and several agents on one folder take turns at it.

**Jobs** are runs of agents as processes. A ``Monitor`` starts them and says how they ended, a ``JobReaper`` takes over
from whoever died, and a ``StageEngine`` moves tasks on; of all who try, one ends a job, and one moves a task. A job's
claim is its fence, and what its end entails is in one transaction with it (``recovery.jobs``).

**Webhooks.** A sender that was told 202 may forget: its delivery is flushed. What its handler changes is in one
transaction with the note that it was handled (``recovery.inbox``). A delivery that never came is made up for by the
``Reconciler``, which looks at what is: at the gates of tasks that have waited for longer than their stage's grace, and
at the tracker's issues. Both go through the same handlers, and of all who move a task at once, one does. An
``Application`` has all of these parts with one life, and ``python -m recovery serve`` runs it.

**Keys, the cache and the ledger.** ``execute``, ``get_or_generate`` and ``run`` acknowledge like everything else: a
result that was returned is flushed, and is what everybody gets until it expires. Before it executes, a caller commits
its claim on the key; of many, one executes. An executor that dies is followed by exactly one other, at once where the
kernel can tell (``recovery.presence``), else when its claim runs out. For a key of the idempotency store and the cache
that means executing again. A tool may have had its effect by then, so its call is *in doubt*, and its caller says what
follows (``recovery.doubt``). A large output is flushed, and its folder, before the row that refers to it is committed.

**Counts are the exception.** Hits, misses, executions, replays, and when an output was last used, wait in memory: a
process that is killed takes up to 500 of them with it, for each cache and ledger (``recovery.usage``). Closing one,
asking it for its statistics, and the end of the interpreter add what waits. No result depends on a count.

**Time** is an integer: microseconds since 1970-01-01 UTC, from a clock that is passed in (``recovery.clock``). Nothing
is ordered by it, so a clock that jumps back cannot reorder checkpoints.

**Crash points.** Managers say what they are about to do through ``sys.audit`` (``recovery.checkpoints.CRASH_POINTS``):
tens of nanoseconds when nobody listens, and a name for each place where a process can be killed when somebody does.

**Threads and processes.** A store may be shared by threads; each operation takes a connection of its own. After a fork
the child leaves its parent's connections alone and opens new ones. Do not fork while a thread is in a transaction, the
forking one included: SQLite in the child believes for ever that this process holds the lock, so its writes are refused,
and the transaction is the parent's to end (``InheritedTransaction``).

**Interrupts.** Wherever Ctrl-C comes, a transaction is kept whole or not at all, and the database is left to others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recovery.alerts import ALERT_CRASH_POINTS, Alert
    from recovery.application import Application
    from recovery.artifacts import ARTIFACT_CRASH_POINTS, Artifacts
    from recovery.buffers import ORPHAN_CRASH_POINTS, Buffers, Fate, Orphans
    from recovery.checkpoints import CRASH_POINTS, Checkpoint, CheckpointManager, CheckpointType, Recovery, Skipped
    from recovery.claims import CLAIM_CRASH_POINTS
    from recovery.clock import Clock, ManualClock, SystemClock
    from recovery.commands import CommandOutput
    from recovery.cycles import CYCLE_CRASH_POINTS, Buffer
    from recovery.doubt import RAISE, RUN_AGAIN, Happened, Probe
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
    from recovery.gates import GateResult
    from recovery.handlers import HANDLER_CRASH_POINTS, Handlers
    from recovery.heartbeat import Heartbeat
    from recovery.http_push import HttpPush
    from recovery.idempotency import Execution, IdempotencyStore
    from recovery.inbox import INBOX_CRASH_POINTS, Inbox
    from recovery.jobs import JOB_CRASH_POINTS, Job, JobClaim, JobQueue, JobStatus
    from recovery.langchain_cache import LangChainCache
    from recovery.lease_files import LeaseFile
    from recovery.leases import LEASE_CRASH_POINTS, Lease, LeaseManager, WorkItem, WorkStatus
    from recovery.llm_cache import CachedOutput, CacheStatistics, Generation, LLMOutputCache
    from recovery.monitor import MONITOR_CRASH_POINTS, Monitor
    from recovery.reaper import REAPER_CRASH_POINTS, JobReaper, ReaperSettings, Tick
    from recovery.reconciler import Reconciler, ReconcilerSettings
    from recovery.roots import Roots
    from recovery.runtime import RuntimeState, load_runtime, persist_runtime
    from recovery.service import PeriodicService
    from recovery.stages import DEFAULT_PIPELINE, STAGE_CRASH_POINTS, Advance, Advanced, Pipeline, Stage, StageEngine
    from recovery.startup import STARTUP_CRASH_POINTS, Startup
    from recovery.state import StateGroup, StateStore
    from recovery.status_files import WorkspaceState, WorkspaceStatus
    from recovery.store import SqliteStore, Store, init_factory, open_store
    from recovery.supervisor import Run, Supervisor
    from recovery.sweep import SWEEP_CRASH_POINTS, RecoverySweep, SweepStatistics
    from recovery.sync_queue import SYNC_CRASH_POINTS, SyncEntry, SyncPass, SyncQueue
    from recovery.tasks import Task, TaskManager, TaskStatus
    from recovery.tool_ledger import TOOL_CRASH_POINTS, ToolLedger, ToolRun, ToolStatistics
    from recovery.tracker import HttpTracker, Issue, Tracker
    from recovery.webhooks import Receiver
    from recovery.worker import WORKER_CRASH_POINTS, Ending, Iteration, LeaseClaims, Outcome, TaskClaims, Worker
    from recovery.workspaces import TRACK_CRASH_POINTS, WORKSPACE_CRASH_POINTS, Hydration, Workspaces

__all__ = [
    "ALERT_CRASH_POINTS",
    "ARTIFACT_CRASH_POINTS",
    "CLAIM_CRASH_POINTS",
    "CRASH_POINTS",
    "CYCLE_CRASH_POINTS",
    "DEFAULT_PIPELINE",
    "HANDLER_CRASH_POINTS",
    "INBOX_CRASH_POINTS",
    "JOB_CRASH_POINTS",
    "LEASE_CRASH_POINTS",
    "MONITOR_CRASH_POINTS",
    "ORPHAN_CRASH_POINTS",
    "RAISE",
    "REAPER_CRASH_POINTS",
    "RUN_AGAIN",
    "STAGE_CRASH_POINTS",
    "STARTUP_CRASH_POINTS",
    "SWEEP_CRASH_POINTS",
    "SYNC_CRASH_POINTS",
    "TOOL_CRASH_POINTS",
    "TRACK_CRASH_POINTS",
    "WORKER_CRASH_POINTS",
    "WORKSPACE_CRASH_POINTS",
    "Advance",
    "Advanced",
    "Alert",
    "Application",
    "ArtifactExists",
    "Artifacts",
    "Buffer",
    "Buffers",
    "CacheStatistics",
    "CachedOutput",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointType",
    "Clock",
    "CommandExit",
    "CommandOutput",
    "DbRow",
    "Ending",
    "Evidence",
    "EvidencePolicy",
    "Execution",
    "Fate",
    "FileSha256",
    "GateResult",
    "Generation",
    "Handlers",
    "Happened",
    "Heartbeat",
    "HttpPush",
    "HttpTracker",
    "Hydration",
    "IdempotencyStore",
    "Inbox",
    "Issue",
    "Iteration",
    "Job",
    "JobClaim",
    "JobQueue",
    "JobReaper",
    "JobStatus",
    "LLMOutputCache",
    "LangChainCache",
    "Lease",
    "LeaseClaims",
    "LeaseFile",
    "LeaseManager",
    "ManualClock",
    "Monitor",
    "Orphans",
    "Outcome",
    "OwnEvidence",
    "PeriodicService",
    "Pipeline",
    "Probe",
    "ReaperSettings",
    "Reason",
    "Receiver",
    "Reconciler",
    "ReconcilerSettings",
    "Recovery",
    "RecoveryError",
    "RecoverySweep",
    "Roots",
    "Run",
    "RuntimeState",
    "Skipped",
    "SqliteStore",
    "Stage",
    "StageEngine",
    "Startup",
    "StateGroup",
    "StateStore",
    "Store",
    "Supervisor",
    "SweepStatistics",
    "SyncEntry",
    "SyncPass",
    "SyncQueue",
    "SystemClock",
    "Task",
    "TaskClaims",
    "TaskManager",
    "TaskStatus",
    "Tick",
    "ToolLedger",
    "ToolRun",
    "ToolStatistics",
    "Tracker",
    "Verdict",
    "Verification",
    "WorkItem",
    "WorkStatus",
    "Worker",
    "WorkspaceState",
    "WorkspaceStatus",
    "Workspaces",
    "init_factory",
    "load_runtime",
    "open_store",
    "persist_runtime",
]

_HOME: Final = {
    "ALERT_CRASH_POINTS": "recovery.alerts",
    "ARTIFACT_CRASH_POINTS": "recovery.artifacts",
    "Advance": "recovery.stages",
    "Advanced": "recovery.stages",
    "Alert": "recovery.alerts",
    "Application": "recovery.application",
    "ArtifactExists": "recovery.evidence",
    "Artifacts": "recovery.artifacts",
    "Buffer": "recovery.cycles",
    "Buffers": "recovery.buffers",
    "CLAIM_CRASH_POINTS": "recovery.claims",
    "CRASH_POINTS": "recovery.checkpoints",
    "CYCLE_CRASH_POINTS": "recovery.cycles",
    "CacheStatistics": "recovery.llm_cache",
    "CachedOutput": "recovery.llm_cache",
    "Checkpoint": "recovery.checkpoints",
    "CheckpointManager": "recovery.checkpoints",
    "CheckpointType": "recovery.checkpoints",
    "Clock": "recovery.clock",
    "CommandExit": "recovery.evidence",
    "CommandOutput": "recovery.commands",
    "DEFAULT_PIPELINE": "recovery.stages",
    "DbRow": "recovery.evidence",
    "Ending": "recovery.worker",
    "Evidence": "recovery.evidence",
    "EvidencePolicy": "recovery.evidence",
    "Execution": "recovery.idempotency",
    "Fate": "recovery.buffers",
    "FileSha256": "recovery.evidence",
    "GateResult": "recovery.gates",
    "Generation": "recovery.llm_cache",
    "HANDLER_CRASH_POINTS": "recovery.handlers",
    "Handlers": "recovery.handlers",
    "Happened": "recovery.doubt",
    "Heartbeat": "recovery.heartbeat",
    "HttpPush": "recovery.http_push",
    "HttpTracker": "recovery.tracker",
    "Hydration": "recovery.workspaces",
    "INBOX_CRASH_POINTS": "recovery.inbox",
    "IdempotencyStore": "recovery.idempotency",
    "Inbox": "recovery.inbox",
    "Issue": "recovery.tracker",
    "Iteration": "recovery.worker",
    "JOB_CRASH_POINTS": "recovery.jobs",
    "Job": "recovery.jobs",
    "JobClaim": "recovery.jobs",
    "JobQueue": "recovery.jobs",
    "JobReaper": "recovery.reaper",
    "JobStatus": "recovery.jobs",
    "LEASE_CRASH_POINTS": "recovery.leases",
    "LLMOutputCache": "recovery.llm_cache",
    "LangChainCache": "recovery.langchain_cache",
    "Lease": "recovery.leases",
    "LeaseClaims": "recovery.worker",
    "LeaseFile": "recovery.lease_files",
    "LeaseManager": "recovery.leases",
    "MONITOR_CRASH_POINTS": "recovery.monitor",
    "ManualClock": "recovery.clock",
    "Monitor": "recovery.monitor",
    "ORPHAN_CRASH_POINTS": "recovery.buffers",
    "Orphans": "recovery.buffers",
    "Outcome": "recovery.worker",
    "OwnEvidence": "recovery.evidence",
    "PeriodicService": "recovery.service",
    "Pipeline": "recovery.stages",
    "Probe": "recovery.doubt",
    "RAISE": "recovery.doubt",
    "REAPER_CRASH_POINTS": "recovery.reaper",
    "RUN_AGAIN": "recovery.doubt",
    "ReaperSettings": "recovery.reaper",
    "Reason": "recovery.evidence",
    "Receiver": "recovery.webhooks",
    "Reconciler": "recovery.reconciler",
    "ReconcilerSettings": "recovery.reconciler",
    "Recovery": "recovery.checkpoints",
    "RecoveryError": "recovery.errors",
    "RecoverySweep": "recovery.sweep",
    "Roots": "recovery.roots",
    "Run": "recovery.supervisor",
    "RuntimeState": "recovery.runtime",
    "STAGE_CRASH_POINTS": "recovery.stages",
    "STARTUP_CRASH_POINTS": "recovery.startup",
    "SWEEP_CRASH_POINTS": "recovery.sweep",
    "SYNC_CRASH_POINTS": "recovery.sync_queue",
    "Skipped": "recovery.checkpoints",
    "SqliteStore": "recovery.store",
    "Stage": "recovery.stages",
    "StageEngine": "recovery.stages",
    "Startup": "recovery.startup",
    "StateGroup": "recovery.state",
    "StateStore": "recovery.state",
    "Store": "recovery.store",
    "Supervisor": "recovery.supervisor",
    "SweepStatistics": "recovery.sweep",
    "SyncEntry": "recovery.sync_queue",
    "SyncPass": "recovery.sync_queue",
    "SyncQueue": "recovery.sync_queue",
    "SystemClock": "recovery.clock",
    "TOOL_CRASH_POINTS": "recovery.tool_ledger",
    "TRACK_CRASH_POINTS": "recovery.workspaces",
    "Task": "recovery.tasks",
    "TaskClaims": "recovery.worker",
    "TaskManager": "recovery.tasks",
    "TaskStatus": "recovery.tasks",
    "Tick": "recovery.reaper",
    "ToolLedger": "recovery.tool_ledger",
    "ToolRun": "recovery.tool_ledger",
    "ToolStatistics": "recovery.tool_ledger",
    "Tracker": "recovery.tracker",
    "Verdict": "recovery.evidence",
    "Verification": "recovery.evidence",
    "WORKER_CRASH_POINTS": "recovery.worker",
    "WORKSPACE_CRASH_POINTS": "recovery.workspaces",
    "WorkItem": "recovery.leases",
    "WorkStatus": "recovery.leases",
    "Worker": "recovery.worker",
    "WorkspaceState": "recovery.status_files",
    "WorkspaceStatus": "recovery.status_files",
    "Workspaces": "recovery.workspaces",
    "init_factory": "recovery.store",
    "load_runtime": "recovery.runtime",
    "open_store": "recovery.store",
    "persist_runtime": "recovery.runtime",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that ``import recovery`` itself costs nothing."""
    if name not in _HOME:
        message = f"module 'recovery' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_HOME[name]), name)
