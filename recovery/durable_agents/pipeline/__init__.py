"""The application of one workflow: issues of a tracker become tasks that move through stages.

It stands apart from the core: it imports webhooks, jobs, store and service, and none of them
imports it. ``python -m durable_agents serve`` runs it::

    webhook --> Receiver --> Inbox ------> Handlers --> StageEngine (one advance, one job)
    nothing (a lost webhook) --> Reconciler --^
                                     +-- gates of overdue tasks, issues of the tracker (HttpTracker)

- ``handlers``: what an event asks for. A handler decides first and writes nothing; its change
  compares and sets in one transaction. Webhook and reconciler call the same handlers.
- ``tracker``: the tracker's issues over HTTP, each answer checked and bounded.
- ``reconciler``: looks at gates and issues in intervals, so a lost webhook costs time only. Of
  approvals that a poll shows it counts each once.
- ``application``: all parts on one store, with one life, as an ASGI application.
- ``serving``: uvicorn on a socket of our own, with bounds on the head of a request.

The events are defined in ``webhooks.events``, since the receiver must parse a body before it
acknowledges it. Gates and stages are in ``jobs``: a job's end moves tasks without any webhook.
"""
