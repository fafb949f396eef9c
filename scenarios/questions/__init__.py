"""The questions about bounds, defaults, locks and single calls; each module has its answers.

    world      what they share: a folder with a store and a clock, and how a call is refused
    opening    files that are opened: what is refused, and what a refusal leaves
    store      the store's machinery: its queue, its log, its connections
    access     an open store: reads, the queue of writers, statements that fail
    groups     threads that share one transaction, and interrupts of a writer
    claims     who holds a key, and who is told
    leases     named points, heartbeats, a sweep under errors
    files      artifacts, and the status files of workspaces
    state      buffers of cycles, and the sync queue
    jobs       pipelines, stages, advances
    reaper     what a reaper leaves alone, what stops it, what it tells
    webhooks   the inbox, the reconciler, its tracker
    owners     claims of keys, and leases: how long, and under which lock
    points     what is seen at each named point of a call

``scenarios.limits`` has an agent ask them, one room of scenarios at a time.
"""
