# The public names, each imported when it is first used: lazy_loader reads this list.

from .clock import Clock as Clock, ManualClock as ManualClock, SystemClock as SystemClock
from .commands import CommandOutput as CommandOutput
from .errors import RecoveryError as RecoveryError
from .jobs.alerts import Alert as Alert
from .jobs.crash_points import JobCrashPoint as JobCrashPoint
from .jobs.gates import GateResult as GateResult
from .jobs.lease_files import LeaseFile as LeaseFile
from .jobs.monitor import Monitor as Monitor
from .jobs.queue import Job as Job, JobClaim as JobClaim, JobQueue as JobQueue, JobStatus as JobStatus
from .jobs.reaper import JobReaper as JobReaper, ReaperSettings as ReaperSettings, Tick as Tick
from .jobs.stages import (
    DEFAULT_PIPELINE as DEFAULT_PIPELINE,
    Advance as Advance,
    Advanced as Advanced,
    Pipeline as Pipeline,
    Stage as Stage,
    StageEngine as StageEngine,
)
from .once.crash_points import CLAIM_CRASH_POINTS as CLAIM_CRASH_POINTS, TOOL_CRASH_POINTS as TOOL_CRASH_POINTS
from .once.idempotency import Execution as Execution, IdempotencyStore as IdempotencyStore
from .once.langchain_cache import LangChainCache as LangChainCache
from .once.llm_cache import (
    CachedOutput as CachedOutput,
    CacheStatistics as CacheStatistics,
    Generation as Generation,
    LLMOutputCache as LLMOutputCache,
)
from .once.tool_ledger import (
    RAISE as RAISE,
    RUN_AGAIN as RUN_AGAIN,
    Happened as Happened,
    Probe as Probe,
    ToolLedger as ToolLedger,
    ToolRun as ToolRun,
    ToolStatistics as ToolStatistics,
)
from .pipeline.application import Application as Application
from .pipeline.handlers import HandlerPoint as HandlerPoint, Handlers as Handlers
from .pipeline.reconciler import Reconciler as Reconciler, ReconcilerSettings as ReconcilerSettings
from .pipeline.tracker import HttpTracker as HttpTracker, Issue as Issue, Tracker as Tracker
from .service import PeriodicService as PeriodicService
from .state.buffers import Buffer as Buffer, Buffers as Buffers, Disposition as Disposition, Orphans as Orphans
from .state.crash_points import StateCrashPoint as StateCrashPoint
from .state.groups import StateGroup as StateGroup, StateStore as StateStore
from .state.http_push import HttpPush as HttpPush
from .state.roots import Roots as Roots
from .state.runtime import (
    RuntimeState as RuntimeState,
    load_runtime as load_runtime,
    persist_runtime as persist_runtime,
)
from .state.startup import Startup as Startup
from .state.status_files import WorkspaceState as WorkspaceState, WorkspaceStatus as WorkspaceStatus
from .state.sync_queue import SyncEntry as SyncEntry, SyncPass as SyncPass, SyncQueue as SyncQueue
from .state.workspaces import Hydration as Hydration, Workspaces as Workspaces
from .store import SqliteStore as SqliteStore, Store as Store, init_factory as init_factory, open_store as open_store
from .webhooks.inbox import Inbox as Inbox, InboxPoint as InboxPoint
from .webhooks.receiver import Receiver as Receiver
from .work.artifacts import Artifacts as Artifacts
from .work.checkpoints import (
    Checkpoint as Checkpoint,
    CheckpointManager as CheckpointManager,
    CheckpointType as CheckpointType,
    Recovery as Recovery,
    Skipped as Skipped,
)
from .work.crash_points import (
    ARTIFACT_CRASH_POINTS as ARTIFACT_CRASH_POINTS,
    CHECKPOINT_CRASH_POINTS as CHECKPOINT_CRASH_POINTS,
    LEASE_CRASH_POINTS as LEASE_CRASH_POINTS,
    SWEEP_CRASH_POINTS as SWEEP_CRASH_POINTS,
    WORKER_CRASH_POINTS as WORKER_CRASH_POINTS,
)
from .work.evidence import (
    ArtifactExists as ArtifactExists,
    CommandExit as CommandExit,
    DbRow as DbRow,
    Evidence as Evidence,
    EvidencePolicy as EvidencePolicy,
    FileSha256 as FileSha256,
    OwnEvidence as OwnEvidence,
    Reason as Reason,
    Verdict as Verdict,
    Verification as Verification,
)
from .work.leases import (
    Heartbeat as Heartbeat,
    Lease as Lease,
    LeaseManager as LeaseManager,
    WorkItem as WorkItem,
    WorkStatus as WorkStatus,
)
from .work.supervisor import SupervisedRun as SupervisedRun, Supervisor as Supervisor
from .work.sweep import RecoverySweep as RecoverySweep, SweepStatistics as SweepStatistics
from .work.tasks import Task as Task, TaskManager as TaskManager, TaskStatus as TaskStatus
from .work.worker import (
    Iteration as Iteration,
    LeaseClaims as LeaseClaims,
    TaskClaims as TaskClaims,
    WorkEnding as WorkEnding,
    Worker as Worker,
    WorkOutcome as WorkOutcome,
)
