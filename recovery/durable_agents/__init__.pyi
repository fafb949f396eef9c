# The public names, each imported when it is first used: lazy_loader reads this list.

from .clock import Clock as Clock
from .clock import ManualClock as ManualClock
from .clock import SystemClock as SystemClock
from .commands import CommandOutput as CommandOutput
from .errors import RecoveryError as RecoveryError
from .jobs.alerts import ALERT_CRASH_POINTS as ALERT_CRASH_POINTS
from .jobs.alerts import Alert as Alert
from .jobs.gates import GateResult as GateResult
from .jobs.lease_files import LeaseFile as LeaseFile
from .jobs.monitor import MONITOR_CRASH_POINTS as MONITOR_CRASH_POINTS
from .jobs.monitor import Monitor as Monitor
from .jobs.queue import (
    JOB_CRASH_POINTS as JOB_CRASH_POINTS,
)
from .jobs.queue import (
    Job as Job,
)
from .jobs.queue import (
    JobClaim as JobClaim,
)
from .jobs.queue import (
    JobQueue as JobQueue,
)
from .jobs.queue import (
    JobStatus as JobStatus,
)
from .jobs.reaper import (
    REAPER_CRASH_POINTS as REAPER_CRASH_POINTS,
)
from .jobs.reaper import (
    JobReaper as JobReaper,
)
from .jobs.reaper import (
    ReaperSettings as ReaperSettings,
)
from .jobs.reaper import (
    Tick as Tick,
)
from .jobs.stages import (
    DEFAULT_PIPELINE as DEFAULT_PIPELINE,
)
from .jobs.stages import (
    STAGE_CRASH_POINTS as STAGE_CRASH_POINTS,
)
from .jobs.stages import (
    Advance as Advance,
)
from .jobs.stages import (
    Advanced as Advanced,
)
from .jobs.stages import (
    Pipeline as Pipeline,
)
from .jobs.stages import (
    Stage as Stage,
)
from .jobs.stages import (
    StageEngine as StageEngine,
)
from .once.claims import CLAIM_CRASH_POINTS as CLAIM_CRASH_POINTS
from .once.idempotency import Execution as Execution
from .once.idempotency import IdempotencyStore as IdempotencyStore
from .once.langchain_cache import LangChainCache as LangChainCache
from .once.llm_cache import (
    CachedOutput as CachedOutput,
)
from .once.llm_cache import (
    CacheStatistics as CacheStatistics,
)
from .once.llm_cache import (
    Generation as Generation,
)
from .once.llm_cache import (
    LLMOutputCache as LLMOutputCache,
)
from .once.tool_ledger import (
    RAISE as RAISE,
)
from .once.tool_ledger import (
    RUN_AGAIN as RUN_AGAIN,
)
from .once.tool_ledger import (
    TOOL_CRASH_POINTS as TOOL_CRASH_POINTS,
)
from .once.tool_ledger import (
    Happened as Happened,
)
from .once.tool_ledger import (
    Probe as Probe,
)
from .once.tool_ledger import (
    ToolLedger as ToolLedger,
)
from .once.tool_ledger import (
    ToolRun as ToolRun,
)
from .once.tool_ledger import (
    ToolStatistics as ToolStatistics,
)
from .pipeline.application import Application as Application
from .pipeline.handlers import HandlerPoint as HandlerPoint
from .pipeline.handlers import Handlers as Handlers
from .pipeline.reconciler import Reconciler as Reconciler
from .pipeline.reconciler import ReconcilerSettings as ReconcilerSettings
from .pipeline.tracker import HttpTracker as HttpTracker
from .pipeline.tracker import Issue as Issue
from .pipeline.tracker import Tracker as Tracker
from .service import PeriodicService as PeriodicService
from .state.buffers import (
    ORPHAN_CRASH_POINTS as ORPHAN_CRASH_POINTS,
)
from .state.buffers import (
    Buffers as Buffers,
)
from .state.buffers import (
    Fate as Fate,
)
from .state.buffers import (
    Orphans as Orphans,
)
from .state.cycles import CYCLE_CRASH_POINTS as CYCLE_CRASH_POINTS
from .state.cycles import Buffer as Buffer
from .state.groups import StateGroup as StateGroup
from .state.groups import StateStore as StateStore
from .state.http_push import HttpPush as HttpPush
from .state.roots import Roots as Roots
from .state.runtime import (
    RuntimeState as RuntimeState,
)
from .state.runtime import (
    load_runtime as load_runtime,
)
from .state.runtime import (
    persist_runtime as persist_runtime,
)
from .state.startup import STARTUP_CRASH_POINTS as STARTUP_CRASH_POINTS
from .state.startup import Startup as Startup
from .state.status_files import WorkspaceState as WorkspaceState
from .state.status_files import WorkspaceStatus as WorkspaceStatus
from .state.sync_queue import (
    SYNC_CRASH_POINTS as SYNC_CRASH_POINTS,
)
from .state.sync_queue import (
    SyncEntry as SyncEntry,
)
from .state.sync_queue import (
    SyncPass as SyncPass,
)
from .state.sync_queue import (
    SyncQueue as SyncQueue,
)
from .state.workspaces import (
    TRACK_CRASH_POINTS as TRACK_CRASH_POINTS,
)
from .state.workspaces import (
    WORKSPACE_CRASH_POINTS as WORKSPACE_CRASH_POINTS,
)
from .state.workspaces import (
    Hydration as Hydration,
)
from .state.workspaces import (
    Workspaces as Workspaces,
)
from .store import SqliteStore as SqliteStore
from .store import Store as Store
from .store import init_factory as init_factory
from .store import open_store as open_store
from .webhooks.inbox import Inbox as Inbox
from .webhooks.inbox import InboxPoint as InboxPoint
from .webhooks.receiver import Receiver as Receiver
from .work.artifacts import ARTIFACT_CRASH_POINTS as ARTIFACT_CRASH_POINTS
from .work.artifacts import Artifacts as Artifacts
from .work.checkpoints import (
    CRASH_POINTS as CRASH_POINTS,
)
from .work.checkpoints import (
    Checkpoint as Checkpoint,
)
from .work.checkpoints import (
    CheckpointManager as CheckpointManager,
)
from .work.checkpoints import (
    CheckpointType as CheckpointType,
)
from .work.checkpoints import (
    Recovery as Recovery,
)
from .work.checkpoints import (
    Skipped as Skipped,
)
from .work.evidence import (
    ArtifactExists as ArtifactExists,
)
from .work.evidence import (
    CommandExit as CommandExit,
)
from .work.evidence import (
    DbRow as DbRow,
)
from .work.evidence import (
    Evidence as Evidence,
)
from .work.evidence import (
    EvidencePolicy as EvidencePolicy,
)
from .work.evidence import (
    FileSha256 as FileSha256,
)
from .work.evidence import (
    OwnEvidence as OwnEvidence,
)
from .work.evidence import (
    Reason as Reason,
)
from .work.evidence import (
    Verdict as Verdict,
)
from .work.evidence import (
    Verification as Verification,
)
from .work.leases import (
    LEASE_CRASH_POINTS as LEASE_CRASH_POINTS,
)
from .work.leases import (
    Heartbeat as Heartbeat,
)
from .work.leases import (
    Lease as Lease,
)
from .work.leases import (
    LeaseManager as LeaseManager,
)
from .work.leases import (
    WorkItem as WorkItem,
)
from .work.leases import (
    WorkStatus as WorkStatus,
)
from .work.supervisor import Run as Run
from .work.supervisor import Supervisor as Supervisor
from .work.sweep import (
    SWEEP_CRASH_POINTS as SWEEP_CRASH_POINTS,
)
from .work.sweep import (
    RecoverySweep as RecoverySweep,
)
from .work.sweep import (
    SweepStatistics as SweepStatistics,
)
from .work.tasks import Task as Task
from .work.tasks import TaskManager as TaskManager
from .work.tasks import TaskStatus as TaskStatus
from .work.worker import (
    WORKER_CRASH_POINTS as WORKER_CRASH_POINTS,
)
from .work.worker import (
    Ending as Ending,
)
from .work.worker import (
    Iteration as Iteration,
)
from .work.worker import (
    LeaseClaims as LeaseClaims,
)
from .work.worker import (
    Outcome as Outcome,
)
from .work.worker import (
    TaskClaims as TaskClaims,
)
from .work.worker import (
    Worker as Worker,
)
