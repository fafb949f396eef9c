"""Agents: real processes of the target, and the one process that answers for all of them.

    controller (pytest) ── socket ──▶ guardian ──forks──▶ agent, agent, ...
                                         │
                                         └─forks──▶ template (a module imported) ──forks twice──▶ agent, agent, ...

The *guardian* (``guardian.py``) is started by exec, has one thread and a session of its own, and
never imports the target. It starts every agent, reads its output, reaps it, and is the subreaper of
everything that descends from it: when a run ends it ends all of that, and when the controller is
gone (or, under xdist, the controller's controller) it does so too, saves the evidence that the run
left and removes the session's folders.

A *template* (``template.py``) is a fork of the guardian that has imported one module of the target
and waits. An agent of that module is a fork of it, so the import is paid once: an agent executes
its first line in well under a millisecond. It forks twice, so that the agent's parent is the
guardian and there is one place that reaps. A module that starts threads or opens a SQLite file
while it is imported cannot be a template; its agents come from a fresh interpreter, and the record
says so.

``process.py`` is the controller's side; ``child.py`` runs inside the agent; ``marks.py`` is what an
agent says; ``wire.py`` the messages; ``processes.py`` finds and ends processes by pid and start time.
"""
