"""What the core promises, as a model that can be executed: no store, no process, no clock.

An operation of a model takes the moment at which it is done and returns its outcome, as JSON: what
it gives, or ``{"refused": ERROR}``, and then it has changed nothing. ``tables`` returns the rows
that the database must have. ``scenarios.judging`` compares the history of a run and its tables with
that; the state machines of ``tests/recovery`` compare each step. So there is one truth for both.

    states   what all parts share: moments, refusals, outcomes
    work     tasks, checkpoints, work items, leases, the sweep
    jobs     jobs, stages, the reaper, the reconciler
    keys     idempotency keys, outputs of models, calls of tools
    pushes   the sync queue
    inbox    deliveries of webhooks
    numbering  checkpoints that many write
    cycles   buffers of cycles, and their history
    workspaces  what a start makes of status files
    ways     the steps that an audit trail may tell

Each is a promise of ``docs/design.md``. Times are microseconds, durations in arguments are seconds,
as in the core.
"""
