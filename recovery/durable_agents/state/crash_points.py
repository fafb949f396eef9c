"""Crash points of an agent's own state.

The argument of each event identifies its object.
"""

from __future__ import annotations

from durable_agents.crash_points import CrashPoint


class StateCrashPoint(CrashPoint):
    """Audit events of start-up, workspaces, cycles, orphan buffers and the sync queue."""

    # startup(); the points of its steps come in between.
    STARTUP_BEFORE_HYDRATE = "recovery.startup.before_hydrate"
    STARTUP_BEFORE_RUNTIME = "recovery.startup.before_runtime"
    STARTUP_BEFORE_ORPHANS = "recovery.startup.before_orphans"
    STARTUP_BEFORE_LOOPS = "recovery.startup.before_loops"
    STARTUP_AFTER_LOOPS = "recovery.startup.after_loops"

    # Workspaces.hydrate. The two about a file come once for each file that is rewritten.
    HYDRATE_BEFORE_READ = "recovery.hydrate.before_read"
    HYDRATE_AFTER_READ = "recovery.hydrate.after_read"
    HYDRATE_AFTER_DISPATCHES = "recovery.hydrate.after_dispatches"
    HYDRATE_BEFORE_FILE = "recovery.hydrate.before_file"
    HYDRATE_AFTER_FILE = "recovery.hydrate.after_file"
    HYDRATE_BEFORE_COMMIT = "recovery.hydrate.before_commit"
    HYDRATE_IN_COMMIT = "recovery.hydrate.in_commit"
    HYDRATE_AFTER_COMMIT = "recovery.hydrate.after_commit"

    # Workspaces.track and untrack; untrack passes the last two.
    WORKSPACE_BEFORE_FILE = "recovery.workspace.before_file"
    WORKSPACE_AFTER_FILE = "recovery.workspace.after_file"
    WORKSPACE_BEFORE_COMMIT = "recovery.workspace.before_commit"
    WORKSPACE_AFTER_COMMIT = "recovery.workspace.after_commit"

    # One cycle. The two of ``put`` come once for each entry.
    CYCLE_BEFORE_BEGIN = "recovery.cycle.before_begin"
    CYCLE_AFTER_BEGIN = "recovery.cycle.after_begin"
    CYCLE_BEFORE_PUT = "recovery.cycle.before_put"
    CYCLE_AFTER_PUT = "recovery.cycle.after_put"
    CYCLE_BEFORE_COMMIT = "recovery.cycle.before_commit"
    CYCLE_IN_COMMIT = "recovery.cycle.in_commit"
    CYCLE_AFTER_COMMIT = "recovery.cycle.after_commit"
    CYCLE_AFTER_REMOVE = "recovery.cycle.after_remove"

    # Buffers.recover_orphans: the first once, the others for each buffer discarded or quarantined.
    ORPHANS_BEFORE_LOOK = "recovery.orphans.before_look"
    ORPHANS_BEFORE_DISCARD = "recovery.orphans.before_discard"
    ORPHANS_AFTER_DISCARD_FILE = "recovery.orphans.after_discard_file"
    ORPHANS_AFTER_DISCARD = "recovery.orphans.after_discard"
    ORPHANS_BEFORE_QUARANTINE = "recovery.orphans.before_quarantine"
    ORPHANS_AFTER_QUARANTINE_FILE = "recovery.orphans.after_quarantine_file"
    ORPHANS_AFTER_QUARANTINE = "recovery.orphans.after_quarantine"

    # One push of the sync queue; queueing an entry passes the last three.
    SYNC_BEFORE_PUSH = "recovery.sync.before_push"
    SYNC_AFTER_PUSH = "recovery.sync.after_push"
    SYNC_BEFORE_FILE = "recovery.sync.before_file"
    SYNC_AFTER_FILE = "recovery.sync.after_file"
    SYNC_AFTER_STORE = "recovery.sync.after_store"
