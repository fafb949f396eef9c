"""Work that survives its worker: tasks, checkpoints, leases and workers.

The flow of one piece of work:

1. ``tasks`` creates a task once, however many callers try. ``leases`` adds work items to it.
2. A ``worker`` claims an item, and asks ``checkpoints`` for the newest checkpoint that verifies
   now.
3. It goes on behind that checkpoint, iteration by iteration. Effects are files (``artifacts``), and
   are the evidence of the iteration's checkpoint (``evidence``).
4. Each checkpoint is written under the lease: a zombie is refused. A heartbeat renews the lease.
5. If the worker dies, the ``sweep`` returns the item when its lease has expired; the next worker
   goes on from step 2. The ``supervisor`` starts dead worker processes again.

Every module may use the store's protocol, and ``claim``, ``clock``, ``errors`` and ``service`` at
the root. Other rooms may use ``artifacts``, ``evidence``, ``leases`` and ``tasks``; this room uses
no other one but the store. ``crash_points`` names where a process can be killed.
"""
