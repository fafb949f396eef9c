"""Crash points of jobs.

The argument of each event is the id of its object, or a count.
"""

from __future__ import annotations

from durable_agents.crash_points import CrashPoint


class JobCrashPoint(CrashPoint):
    """Audit events of the job queue, its monitors and reapers, the stage engine and alerts."""

    # JobQueue.claim, record_exit and settle. The last of each follows its COMMIT.
    JOB_BEFORE_CLAIM = "recovery.job.before_claim"
    JOB_AFTER_CLAIM_UPDATE = "recovery.job.after_claim_update"
    JOB_AFTER_CLAIM = "recovery.job.after_claim"
    JOB_BEFORE_EXIT_CODE = "recovery.job.before_exit_code"
    JOB_AFTER_EXIT_CODE_UPDATE = "recovery.job.after_exit_code_update"
    JOB_AFTER_EXIT_CODE = "recovery.job.after_exit_code"
    JOB_BEFORE_SETTLE = "recovery.job.before_settle"
    JOB_AFTER_END_UPDATE = "recovery.job.after_end_update"
    JOB_AFTER_OUTBOX = "recovery.job.after_outbox"
    JOB_AFTER_SETTLE = "recovery.job.after_settle"

    # One job in a monitor, besides the points of its queue and of the stage engine.
    MONITOR_AFTER_SPAWN = "recovery.monitor.after_spawn"
    MONITOR_AFTER_START = "recovery.monitor.after_start"
    MONITOR_AFTER_EXIT = "recovery.monitor.after_exit"
    MONITOR_BEFORE_FINALISE = "recovery.monitor.before_finalise"
    MONITOR_AFTER_FINALISE = "recovery.monitor.after_finalise"
    MONITOR_BEFORE_ADVANCE = "recovery.monitor.before_advance"
    MONITOR_AFTER_ADVANCE = "recovery.monitor.after_advance"

    # One tick of a reaper. Fence and kill come once for each job past the ceiling.
    REAPER_BEFORE_TICK = "recovery.reaper.before_tick"
    REAPER_AFTER_LOOK = "recovery.reaper.after_look"
    REAPER_AFTER_COUNT = "recovery.reaper.after_count"
    REAPER_AFTER_FENCE = "recovery.reaper.after_fence"
    REAPER_AFTER_KILL = "recovery.reaper.after_kill"
    REAPER_BEFORE_CLAIM = "recovery.reaper.before_claim"
    REAPER_BEFORE_COMMIT = "recovery.reaper.before_commit"
    REAPER_AFTER_CLAIM = "recovery.reaper.after_claim"
    REAPER_AFTER_TICK = "recovery.reaper.after_tick"

    # One advance that moves a task. The middle two lie before the COMMIT.
    STAGE_BEFORE_ADVANCE = "recovery.stage.before_advance"
    STAGE_AFTER_MOVE = "recovery.stage.after_move"
    STAGE_AFTER_NEXT_JOB = "recovery.stage.after_next_job"
    STAGE_AFTER_ADVANCE = "recovery.stage.after_advance"

    # One alert that is sent.
    ALERT_AFTER_TAKE = "recovery.alert.after_take"
    ALERT_AFTER_SEND = "recovery.alert.after_send"
    ALERT_AFTER_DELETE = "recovery.alert.after_delete"
