"""Jobs: runs of agents as processes, from the queue to the next stage of their task.

The flow::

    JobQueue.enqueue -> Monitor: claim, start, exit code, settle   -> outbox -> StageEngine
                        JobReaper: settle what a monitor cannot  -> outbox -> Alerts

- ``queue``: jobs, their claims (the fence of everything that is written about a running job), and
  the one table of what becomes of a job when its run has ended.
- ``monitor``: starts the executor of a job and records how it ended.
- ``reaper``: ends jobs whose executor or monitor died, or that run for too long.
- ``stages``: the pipeline, and ``StageEngine``, by which alone a task changes its stage.
- ``gates``: read-only questions to the world, green or red, bounded in time.
- ``alerts``: one message for each job that failed, sent from the outbox.
- ``lease_files``: exclusive rights as files, for what has no database.
- ``crash_points``: the audit events of all of these.

The end of a claim, the advance that it intends and its alert are one transaction. The advance and
the alert are rows of the outbox there, and done afterwards by whichever process comes first. So a
process may die anywhere (D16), and of all that end a job or move a task at once, one does (D19,
D22, docs/design.md).

``durable_agents.pipeline`` imports this room; it imports ``processes``, ``service`` and the store.
"""
