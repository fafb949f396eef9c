"""The store: the Protocols that the core is written against, and their SQLite implementation.

``protocol`` has the Protocols and ``rows`` the values that travel through them; neither knows SQL.
``sqlite`` is the only implementation. ``opening`` turns a path into a store: it alone chooses the
implementation. ``conformance`` is the test suite that every implementation passes, a third
party's too.

The managers of all rooms import the names below, ``protocol`` and ``rows``, and nothing of
``sqlite``. The store imports no manager. A manager opens ``store.transaction()``, reads and writes
single rows in it, and leaves the block, which commits.

To add a store: a folder beside ``sqlite`` with a ``Store`` and its ``Place``, and a test class that
derives from ``StoreConformance``. Managers take it as ``store=``. A branch in ``open_store`` lets
them find it by ``db_path=``, too; its type is then ``Store``.
"""

from durable_agents.store.opening import check_one_given, open_store, store_for
from durable_agents.store.protocol import Place, Store, Transaction
from durable_agents.store.sqlite.connections import BUSY_TIMEOUT_S, ConnectionFactory, Pragmas
from durable_agents.store.sqlite.schema import init_factory
from durable_agents.store.sqlite.store import SqliteStore

__all__ = [
    "BUSY_TIMEOUT_S",
    "ConnectionFactory",
    "Place",
    "Pragmas",
    "SqliteStore",
    "Store",
    "Transaction",
    "check_one_given",
    "init_factory",
    "open_store",
    "store_for",
]
