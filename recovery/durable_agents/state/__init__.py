"""State: what an agent must still know after it was killed, below one folder.

The flow of a start (``startup``)::

    Workspaces.hydrate -> load_runtime -> Buffers.recover_orphans -> loops

- ``roots``: the folder, the places in it, and the lock that processes share.
- ``groups``: JSON values by group and key, in the store.
- ``workspaces``: the registry of workspaces, with its derived views in the store.
- ``status_files``: the ``status.json`` of each workspace.
- ``json_files``: versioned JSON files, read with distrust; used by ``status_files`` and
  ``sync_queue``.
- ``runtime``: back-off deadlines and failure counts.
- ``buffers``: findings of cycles, committed to the history whole or not at all.
- ``sync_queue``: pushes to another system, in order; ``http_push`` delivers one.
- ``crash_points``: the audit events of all of these.

A file and the store may disagree after a crash. Then the status file counts, and of the sync queue
the copy with the larger revision. Without a store the agent continues, with what its files have.

Nothing in the package imports this room. It imports ``processes``, the store, and
``work.artifacts`` for durable writes.
"""
