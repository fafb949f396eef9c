"""The one place where a path becomes a store: a second kind of store is dispatched here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_agents.errors import InvalidSetting
from durable_agents.store.sqlite.connections import BUSY_TIMEOUT_S
from durable_agents.store.sqlite.schema import init_factory
from durable_agents.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    import os

    from durable_agents.store.protocol import Store


def open_store(
    path: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S, queue_writers: bool = True
) -> SqliteStore:
    """Open the store in the file at ``path``, made if it is missing. Raises as ``init_factory``.

    Its writers wait for the write lock in one queue with those of other processes
    (``durable_agents.store.sqlite.write_lock_queue``), kept in a file beside the database. Without
    ``queue_writers``, SQLite alone decides: of ten processes that write all the time, one may get
    the lock once in seconds. The queue costs a single writer 2 % of a commit, and ten at most 30 %
    of their throughput (``benchmark_writers``). All writers of a file should use it, or none.

    >>> import tempfile
    >>> from durable_agents import TaskManager
    >>> with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/core.db") as store:
    ...     task = TaskManager(store).create("T-1", stage="build")
    ...     store.task("T-1") == task
    True
    """
    return SqliteStore(init_factory(path, busy_timeout_s=busy_timeout_s), queue_writers=queue_writers)


def store_for(store: Store | None, db_path: str | os.PathLike[str] | None) -> tuple[Store, bool]:
    """Return the given store, or open the one at the path; and whether it was opened here.

    Raises InvalidSetting for both and for neither.
    """
    check_one_given(store, db_path)
    if store is not None:
        return store, False
    assert db_path is not None  # noqa: S101 - exactly one was given
    return open_store(db_path), True


def check_one_given(store: Store | None, db_path: str | os.PathLike[str] | None) -> None:
    """Raise InvalidSetting unless exactly one of the two is given.

    Of two databases, one would be written to unnoticed.
    """
    if (store is None) == (db_path is None):
        message = (
            f"either store or db_path must be given; got store={store!r} and db_path={db_path!r}. Give exactly one."
        )
        raise InvalidSetting(message)
