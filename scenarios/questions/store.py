"""The questions about the store's own machinery: its queue, its group commit, its log."""

from __future__ import annotations

import _thread
import functools
import os
import sqlite3
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import TaskManager, open_store
from durable_agents.file_lock import FileLock
from durable_agents.store.rows import KeyStatus
from durable_agents.store.sqlite import connections, log_size, schema
from durable_agents.store.sqlite.group_commit import MEMBERS_MAX, Group
from durable_agents.store.sqlite.schema import init_factory
from durable_agents.store.sqlite.store import _IDLE_CONNECTIONS_MAX
from durable_agents.store.sqlite.write_lock_queue import SUFFIX, WriteLockQueue

from scenarios.judging import BEGINNING
from scenarios.questions.world import Questions, World, refused, unlocked
from scenarios.statement_rows import key_of

if TYPE_CHECKING:
    from collections.abc import Callable


def locked_group_commit(world: World) -> list[str]:
    """Return which steps of a group commit do not wait for its mutex."""
    commit = world.store.group_commit
    found = []
    for name in ("_take_slot", "_leave_queue", "_leave_slot", "_pass_on"):
        ticket, other = _thread.allocate_lock(), _thread.allocate_lock()
        other.acquire()
        commit._holder = None if name == "_take_slot" else ticket  # noqa: SLF001 - as if it were under way
        commit._queue = deque([other])  # noqa: SLF001 - as above
        commit._group = mock.Mock(is_full=False) if name == "_pass_on" else None  # noqa: SLF001 - as above
        found += unlocked(commit._mutex, **{name: functools.partial(getattr(commit, name), ticket)})  # noqa: SLF001 - as above
    return found


def tickets(world: World) -> list[Any]:
    """Return whether an end is waited for, and what a thread without a turn is told."""
    with closing(sqlite3.connect(":memory:")) as connection:
        group = Group(connection)
        end = group.end_lock()
        is_waited_for = [end.locked(), group.has_ended]
        group.end(None)
        is_waited_for += [end.locked(), group.has_ended]
        is_full = []
        for members in (MEMBERS_MAX - 1, MEMBERS_MAX):
            group = Group(connection)
            group.members = members
            is_full.append(group.is_full)
    with open_store(world.folder / "recovery.db", busy_timeout_s=0.01) as store:
        commit = store.group_commit
        commit._holder = _thread.allocate_lock()  # noqa: SLF001 - another thread's, which does not end
        told = refused(functools.partial(commit._take_slot, _thread.allocate_lock()))  # noqa: SLF001 - as above
        return [is_waited_for, is_full, told, len(commit._queue)]  # noqa: SLF001 - as above


def members(world: World) -> list[Any]:
    """Return how many members a group has after one, and what an abandoned one leaves of itself."""
    commit, ticket = world.store.group_commit, _thread.allocate_lock()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        group = Group(connection)
        commit._settle(group, None)  # noqa: SLF001 - as if it were under way, as below
        commit._holder, commit._group = ticket, group  # noqa: SLF001 - as above
        commit.abandon(ticket, group)
        left = [commit._holder, commit._group, commit._watch]  # noqa: SLF001 - as above
        return [group.members, group.has_ended, connection.in_transaction, *left]


def results(world: World) -> list[Any]:
    """Return the results of keys: of one that has ended, of one that has not, and of none."""
    world.later(0)
    with world.store.transaction() as transaction:
        for place in (1, 4):
            transaction.claim_key(key_of(place), expected=None)
        transaction.end_key("s/4", 9, "owner 4", status=KeyStatus.DONE, result=b"four", expires_at=9)
    found = [world.store.result(key) for key in ("s/4", "s/1", "s/0", "s/3")]
    return [None if each is None else each.result.decode() for each in found]


def meanings(world: World) -> list[str]:
    """Return what the errors of SQLite mean."""
    errors: list[Any] = [UnicodeEncodeError("utf-8", "x", 0, 1, "lone"), OverflowError("too large")]
    for code in CODES:
        errors.append(sqlite3.OperationalError("told by SQLite"))
        errors[-1].sqlite_errorcode = code
    path = str(world.folder / "recovery.db")
    return [type(connections.translated(error, path, 1.0)).__name__ for error in errors]


CODES = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR,
)  # fmt: skip


def sleeping(connection: sqlite3.Connection, delays: list[float]) -> Callable[[float], None]:
    """Return a sleep that takes no time, notes its length, and frees a lock the third time."""

    def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        if len(delays) == 3:
            connection.rollback()

    return sleep


def head_of_the_queue(world: World) -> list[Any]:
    """Return how long the head of the queue of writers waits between its first looks."""
    path, delays = world.folder / "recovery.db", list[float]()
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as waiting,
    ):
        holder.execute("BEGIN IMMEDIATE")
        queue = WriteLockQueue(str(path), 0.5)
        with mock.patch("time.sleep", sleeping(holder, delays)), mock.patch("os.close"):
            told = refused(lambda: queue.begin(waiting))
        is_short = queue._burst_until_s - time.monotonic() <= 0.003  # noqa: SLF001 - its length is promised
        is_free = FileLock(str(path) + SUFFIX).acquire(0.05) is not None  # though a child may have the descriptor
    return [told, is_short, is_free, *(round(delay, 7) for delay in delays)]


def first_opening(world: World) -> list[Any]:
    """Return how long an opening waits between looks while another keeps it from WAL mode."""
    path, delays = world.folder / "recovery.db", list[float]()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as holder:
        holder.execute("CREATE TABLE t (x)")
        holder.execute("PRAGMA journal_mode = DELETE").fetchone()
        holder.execute("BEGIN EXCLUSIVE")
        factory = connections.factory_for(path, 0.5)
        with (
            closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as waiting,
            mock.patch("time.sleep", sleeping(holder, delays)),
        ):
            factory._switch_to_wal(waiting)  # noqa: SLF001 - its own connections wait in SQLite first
            return [delays, waiting.execute("PRAGMA journal_mode").fetchone()[0]]


def overtaken_migration(world: World) -> list[Any]:
    """Return what a migration does when another process has done the last step meanwhile."""
    last = len(schema.MIGRATIONS)
    world.store.close()
    with (
        closing(sqlite3.connect(world.folder / "recovery.db", isolation_level=None)) as connection,
        mock.patch.object(schema, "_version_of", side_effect=[last - 1, last]),
    ):
        return [schema._migrate_one_step(connection, schema.MIGRATIONS, "path")]  # noqa: SLF001 - as above


def idle_connections(world: World) -> int:
    """Return how many connections more than promised are kept for later."""
    store = world.store
    borrowed = [store.borrow() for _ in range(_IDLE_CONNECTIONS_MAX + 3)]
    for connection in borrowed:
        store.give_back(connection)
    return len(store._idle) - _IDLE_CONNECTIONS_MAX  # noqa: SLF001 - as above


def rows_at_once(world: World) -> list[int]:
    """Return how many rows are said to have been inserted, around the rows of one statement."""
    TaskManager(world.store, clock=world.clock).create("t")
    statement = "INSERT INTO task_audits (task_id, event, detail, created_at) VALUES {rows}"
    with world.store.transaction() as transaction:
        return [transaction.execute_rows(statement, [("t", "said", "", BEGINNING)] * n) for n in (1, 99, 100, 101, 200)]


def evidence_rows(world: World) -> list[Any]:
    """Return whether rows are there, as evidence asks for them."""
    TaskManager(world.store, clock=world.clock).create("t")
    asked = ({"task_id": "t"}, {"task_id": "t", "status": "created"}, {"task_id": "t", "status": "failed"})
    found = [
        world.store.has_row("tasks", values, timeout_s=9) for values in (*asked, {"task_id": "u"}, {"stage": None})
    ]
    return [*found, refused(lambda: world.store.has_row("nothing", {"x": 1}, timeout_s=9))]


def inherited(world: World) -> list[int]:
    """Return how much of its parent's a forked child sets aside, and whether it uses its own.

    That is the slot of the group commit; idle connections are closed before the fork.
    """
    store = world.store
    store.give_back(store.borrow())
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection = store.borrow()
        is_own = all(connection is not each for each in store._inherited)  # noqa: SLF001 - as above
        os.write(write_end, bytes([len(store._inherited), is_own]))  # noqa: SLF001 - as above
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end, "rb") as answer:
        return list(answer.read())


def smallest_file(world: World) -> list[Any]:
    """Return how a database of 512 bytes is opened, one cut short, and a closed store."""
    path = world.folder / "small.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 512")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("DROP TABLE t")
        connection.execute("VACUUM")
    content = path.read_bytes()
    (world.folder / "cut.db").write_bytes(content[:511])
    opened = [len(content), *(refused(lambda name=name: open_store(world.folder / name).close()) for name in FILES)]  # type: ignore[misc]
    world.store.close()
    return [*opened, refused(lambda: world.store.task("t"))]


FILES = ("small.db", "cut.db")


def log_looks(world: World) -> list[Any]:
    """Return what is said of a log at the bound, above it for the first time, and later."""
    path = world.folder / "some.db"
    log, said = world.folder / "some.db-wal", []
    looks = ((10.0, 3_000_000), (11.0, 3_000_001), (11.999, 4_000_000), (12.0, 4_000_001), (13.0, 8_000_002))
    with (
        mock.patch.object(log_size, "LOG_BYTES_MAX", 3_000_000),
        mock.patch.object(log_size, "_LOGGER") as logger,
        mock.patch("time.monotonic") as now,
    ):
        watch = log_size.LogWatch(str(path))
        for moment_s, size in looks:
            log.write_bytes(b"")
            os.truncate(log, size)
            now.return_value = moment_s
            watch.look()
            said.append("got 4 MB beside" in watch.warning if watch.warning else "")
    many = [watch._text(1, set(range(1, 1 + count))).count("...") for count in (5, 6)]  # noqa: SLF001 - as it would say it
    return [said, logger.warning.call_count, many]


QUESTIONS: Final[Questions] = {
    "store: locks": (locked_group_commit, []),
    "store: tickets": (tickets, [[True, False, False, True], [False, True], "DatabaseLocked", 0]),
    "store: meanings of errors": (
        meanings,
        [
            "InvalidTask",
            "InvalidSetting",
            *["DatabaseLocked"] * 3,
            *["DatabaseFull"] * 2,
            *["CorruptDatabase"] * 3,
            "DatabaseReadOnly",
            *["DatabaseUnavailable"] * 2,
            *["StoreError"] * 2,
        ],
    ),
    "store: members of a group": (members, [1, True, False, None, None, None]),
    "store: results": (results, ["four", None, None, None]),
    "store: looks of the head of the queue": (head_of_the_queue, ["", True, True, 0.0005, 0.00051, 0.0005202]),
    "store: looks of a first opening": (first_opening, [[0.002] * 3, "wal"]),
    "store: a migration that is overtaken": (overtaken_migration, [True]),
    "store: idle connections": (idle_connections, 0),
    "store: rows at once": (rows_at_once, [1, 99, 100, 101, 200]),
    "store: rows that are evidence": (evidence_rows, [True, True, False, False, False, "QueryRefused"]),
    "store: connections of a parent": (inherited, [1, 1]),
    "store: files that are small": (smallest_file, [512, "", "CorruptDatabase", "StoreClosed"]),
    "store: looks at the log": (log_looks, [["", "", "", True, False], 2, [0, 1]]),
    "jobs: the store waits for a lock": (lambda w: init_factory(w.folder / "new.db").busy_timeout_s, 30.0),
}
"""By room and name: the question, and the answer."""
