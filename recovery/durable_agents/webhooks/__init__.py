"""Signed webhooks: taken, made durable, acknowledged, and each handled once.

The flow of a delivery::

    sender --HTTP--> Receiver --> signatures, events --> Inbox.accept (durable) --> 202
                                                         Inbox.run_once --> handler --> commit

- ``receiver``: the ASGI application. It bounds a body in bytes and in time, and answers 202 only
  after the delivery is on disk; 503 tells the sender to send it again.
- ``signatures``: the sender of a delivery, and the identity that tells a replay from a new one.
- ``events``: the payloads of the tracker, GitHub and Gitea as four kinds of events.
- ``inbox``: deliveries until they are handled. A handler decides first and changes nothing; its
  change and the note "handled" are one commit.

What a delivery means to a workflow is not known here: the room ``pipeline`` hands its handlers to
the inbox and builds the same events from what it polls. So ``pipeline`` imports this room, and this
room imports the store, the clock and the errors only. The tracker's client and the reconciler need
handlers, and live there.

The receiver needs Starlette, and its signatures of the tracker standardwebhooks: both come with the
extra ``server``.
"""
