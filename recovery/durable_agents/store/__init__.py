"""The store: the Protocol that the core is written against, and SQLite, its first implementation.

``protocol`` has the Protocol and ``rows`` what travels through it; neither knows SQL. ``sqlite``
implements it on ``connections`` (how a connection is made, and proves its settings), ``schema``
(the tables), ``migrations`` (how a file gets them), ``groups`` (threads that share a commit),
``turns`` (the order of many processes) and ``translation`` (SQLite's errors as ours).
``conformance`` is the test suite that any implementation passes, a third party's too.
``job_protocol``, ``job_rows``, ``sqlite_jobs`` and ``conformance_jobs`` are the part of each that
is about jobs, runs, the outbox and stages.
"""

from durable_agents.store.protocol import Store, Transaction
from durable_agents.store.sqlite.connections import BUSY_TIMEOUT_S, ConnectionFactory, Pragmas
from durable_agents.store.sqlite.schema import init_factory
from durable_agents.store.sqlite.store import SqliteStore, open_store, store_for

__all__ = [
    "BUSY_TIMEOUT_S",
    "ConnectionFactory",
    "Pragmas",
    "SqliteStore",
    "Store",
    "Transaction",
    "init_factory",
    "open_store",
    "store_for",
]
