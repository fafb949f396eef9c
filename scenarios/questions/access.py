"""The questions about the use of an open file: reads, the queue of writers, and what fails."""

from __future__ import annotations

import errno
import functools
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import TaskManager, open_store
from durable_agents.errors import RecoveryError
from durable_agents.file_lock import FileLock
from durable_agents.store.rows import Audit
from durable_agents.store.sqlite import store as stores, write_lock_queue
from durable_agents.store.sqlite.connections import ConnectionFactory
from durable_agents.store.sqlite.store import SqliteStore
from durable_agents.store.sqlite.write_lock_queue import SUFFIX, WriteLockQueue

from scenarios.judging import BEGINNING
from scenarios.questions.groups import in_time, write
from scenarios.questions.opening import Stubborn, is_open, opened_as, with_code
from scenarios.questions.world import Questions, World, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Hurried(sqlite3.Connection):
    """A connection that finds the database locked unless it waits, as while a log is recovered."""

    waits = True
    never = False

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Execute a statement, or find the database locked."""
        if statement == "PRAGMA busy_timeout = 0":
            self.waits = False
        if statement.startswith("SELECT") and (self.never or not self.waits):
            raise with_code(sqlite3.SQLITE_BUSY)
        return super().execute(statement, parameters)


def reads_while_locked(world: World) -> list[Any]:
    """Return what a store reads while the log is recovered, with a queue and without."""
    path = world.folder / "recovery.db"
    TaskManager(world.store, clock=world.clock).create("t")
    found = []
    for queue_writers, never in ((True, False), (True, True), (False, True)):
        made: list[Hurried] = []

        def connect(factory: ConnectionFactory, never: bool = never, made: list[Hurried] = made) -> Hurried:  # noqa: FBT001 - a default
            made.append(sqlite3.connect(factory.path, isolation_level=None, check_same_thread=False, factory=Hurried))
            made[-1].never = never
            return made[-1]

        with mock.patch.object(ConnectionFactory, "_open", connect):
            store = SqliteStore(ConnectionFactory(str(path), 0.05), queue_writers=queue_writers)
            tasks: list[Any] = []
            told = in_time(lambda: refused(lambda: tasks.append(store.task("t"))))  # noqa: B023 - it is called at once
            store.close()
        found.append([told or tasks[0].task_id, len(made), sum(is_open(each) for each in made)])
    return found


def reads_that_fail(world: World) -> list[Any]:
    """Return what a read tells that fails, and how many connections are left open by it."""
    path = world.folder / "recovery.db"
    TaskManager(world.store, clock=world.clock).create("t")
    found = []
    for otherwise in (with_code(sqlite3.SQLITE_CORRUPT), KeyboardInterrupt()):
        for read in (lambda store: store.task("t"), lambda store: store.result("k")):

            def call(read: Callable[[Any], Any] = read) -> str:
                with SqliteStore(ConnectionFactory(str(path), 0.05)) as store:
                    return refused(lambda: read(store))

            found.append(opened_as(path, "SELECT", otherwise, call))
    return found


def looks_for_rows(world: World) -> list[Any]:
    """Return how a look for a row is refused."""
    tasks = TaskManager(world.store, clock=world.clock)
    for number in range(9):
        tasks.create(f"t{number}")

    def said(**values: Any) -> str:
        try:
            world.store.has_row("tasks", values or {"stage": "none"}, timeout_s=timeout_s)
        except RecoveryError as error:
            return f"{type(error).__name__}: {str(error).rsplit('. ', 1)[-1]}"
        return ""

    found, timeout_s = [], -1.0
    with mock.patch.object(stores, "_OPERATIONS_PER_LOOK", 1):
        found.append(said())
    timeout_s = 9.0
    found += [said(nothing="x"), said(stage=object())]
    connect = functools.partial(sqlite3.connect, factory=Stubborn)
    with (
        mock.patch("sqlite3.connect", connect),
        mock.patch.multiple(Stubborn, told="SELECT", otherwise=with_code(sqlite3.SQLITE_BUSY)),
    ):
        found.append(said())
    return found


def ends_of_a_store(world: World) -> list[Any]:
    """Return what is open when a store has closed: what was idle, and what was in use."""
    path = world.folder / "recovery.db"
    with open_store(path) as store:
        store.result("k")
        idle = [store.borrow(), store.borrow()]
        in_use = store.borrow()
        for connection in idle:
            store.give_back(connection)
        idle += store._idle_readers  # noqa: SLF001 - nothing else tells
    found: list[Any] = [store.is_closed, sum(is_open(each) for each in idle)]
    store.give_back(in_use)
    found += [is_open(in_use), refused(lambda: store.task("t")), refused(lambda: write(store, "t"))]
    return found


def queue_files(world: World) -> list[Any]:
    """Return what a writer is told whose place in the queue cannot be had, and who is named."""
    found: list[Any] = []
    path = world.folder / "recovery.db"
    with open_store(path, busy_timeout_s=0.05) as store:
        for number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR):
            with mock.patch.object(FileLock, "acquire", side_effect=OSError(number, "refused")):  # root may write
                found.append(in_time(lambda: refused(lambda: write(store, "one"))))
        held = FileLock(str(path) + SUFFIX).acquire(0.0)
        assert held is not None
        os.pwrite(held, b"4711\n", 0)
        found += [in_time(lambda: said(store)), in_time(lambda: said(store))]
        os.close(held)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            found.append(in_time(lambda: said(store)))
        found += [in_time(lambda: said(store)), in_time(lambda: said(store, "again"))]
    return found


def said(store: Any, name: str = "one") -> str:
    """Return who a writer is told was the last to write."""
    try:
        write(store, name)
    except RecoveryError as error:
        return f"{type(error).__name__} {str(error).partition(', and ')[2].partition(' was the last')[0]}"
    return ""


def turns(world: World) -> list[Any]:
    """Return how often a writer queues: for its first turn, at once after it, and later."""
    path, found = world.folder / "recovery.db", list[Any]()
    world.store.close()
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)) as connection,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
        mock.patch.object(FileLock, "acquire", autospec=True, side_effect=FileLock.acquire) as acquire,
    ):
        for burst_s in (60.0, -60.0):
            with mock.patch.object(write_lock_queue, "BURST_S", burst_s):
                queue = WriteLockQueue(str(path), 0.05)
                for _ in range(3):
                    queue.begin(connection)
                    found.append([acquire.call_count, connection.in_transaction])
                    connection.rollback()
        with mock.patch.object(write_lock_queue, "BURST_S", 60.0):
            queue.begin(connection)
            connection.rollback()
            other.execute("BEGIN IMMEDIATE")
            found += [in_time(lambda: refused(lambda: queue.begin(connection))), acquire.call_count]
    with (
        mock.patch.object(write_lock_queue, "sign") as sign,
        mock.patch.object(write_lock_queue, "_begins", side_effect=[False, with_code(sqlite3.SQLITE_IOERR)]),
    ):
        found.append(in_time(lambda: WriteLockQueue(str(path), 9).begin(mock.Mock())))
    return [*found, sign.call_count]


def statements_that_fail(world: World) -> dict[str, str]:
    """Return what is told of statements that fail, by how they are executed."""
    TaskManager(world.store, clock=world.clock).create("t")
    insert = "INSERT INTO task_audits (task_id, event, detail, created_at) VALUES "
    rows: dict[str, tuple[Any, ...]] = {
        "no event": ("t", None, "", 1),
        "no UTF-8": ("t", "\ud800", "", 1),
        "too large": ("t", "said", "", 2**70),
        "no value": ("t", "said", object(), 1),
        "no task": ("u", "said", "", 1),
    }
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "one": lambda t, row: t.execute(f"{insert}(?, ?, ?, ?)", row),
        "all": lambda t, row: t.execute_all(f"{insert}(?, ?, ?, ?)", [row]),
        "rows": lambda t, row: t.execute_rows(f"{insert}{{rows}}", [row]),
        "of a task": lambda t, row: t.insert_audit(audit_of(row)),
        "of tasks": lambda t, row: t.insert_audits([audit_of(row)]),
    }
    found = {}
    for how, call in calls.items():
        for name, row in rows.items():
            found[f"{how}, {name}"] = refused(lambda: within(world.store, lambda t: call(t, row)))  # noqa: B023 - it is called at once
    broken = with_code(sqlite3.SQLITE_IOERR)
    path: Path = world.folder / "recovery.db"
    world.store.close()
    with SqliteStore(ConnectionFactory(str(path), 1.0)) as store:
        for statement in ("BEGIN", "INSERT", "COMMIT"):
            told = opened_as(path, statement, broken, lambda: refused(lambda: write(store, "new")))
            found[statement] = told[0]
            store._idle.clear()  # noqa: SLF001 - the next is to be opened anew
    with open_store(path) as store:
        for name, task in (("unknown", "u"), ("unknown, named", "no such task")):
            found[f"a job of one {name}"] = named(store, task)
    return found


def named(store: Any, task: str) -> str:
    """Return the error of a job of a task that is not there, if it names the task."""
    try:
        within(store, lambda t: t.insert_job(agent="a", repo="", task_id=task, max_attempts=1, now=BEGINNING))
    except RecoveryError as error:
        return type(error).__name__ if repr(task) in str(error) else str(error)
    return ""


def audit_of(row: tuple[Any, ...]) -> Audit:
    """Return a row of the audit trail."""
    return Audit(row[0], row[1], None, None, row[2], row[3])


def within(store: Any, call: Callable[[Any], Any]) -> None:
    """Call in a transaction."""
    with store.transaction() as transaction:
        call(transaction)


_WRONG: Final = {
    "no event": "StoreError",
    "no UTF-8": "InvalidTask",
    "too large": "InvalidSetting",
    "no value": "InvalidSetting",
}

QUESTIONS: Final[Questions] = {
    "store: reads while the log is recovered": (
        reads_while_locked,
        [["t", 2, 0], ["DatabaseLocked", 2, 0], ["DatabaseLocked", 1, 0]],
    ),
    "store: reads that fail": (
        reads_that_fail,
        [*[["CorruptDatabase", 0]] * 2, *[["KeyboardInterrupt", 0]] * 2],
    ),
    "store: looks for a row": (
        looks_for_rows,
        [
            "QueryRefused: Add an index.",
            "QueryRefused: Correct them.",
            "InvalidSetting: Give values that a column can hold.",
            "DatabaseLocked: Try again, or raise busy_timeout_s.",
        ],
    ),
    "store: the end of a store": (ends_of_a_store, [True, 0, False, "StoreClosed", "StoreClosed"]),
    "store: the file of the queue": (
        queue_files,
        [
            *["DatabaseReadOnly"] * 3,
            "DatabaseUnavailable",
            *["DatabaseLocked process 4711"] * 3,
            "",
            "",
        ],
    ),
    "store: turns": (
        turns,
        [
            *[[1, True]] * 3,
            *([count, True] for count in (2, 3, 4)),
            "DatabaseLocked",
            6,
            "OperationalError",
            0,
        ],
    ),
    "store: statements that fail": (
        statements_that_fail,
        {
            **{
                f"{how}, {name}": told
                for how in ("one", "all", "rows", "of a task", "of tasks")
                for name, told in {
                    **_WRONG,
                    "no task": "UnknownTask" if how.startswith("of") else "StoreError",
                }.items()
            },
            **dict.fromkeys(("BEGIN", "INSERT", "COMMIT"), "DatabaseUnavailable"),
            **dict.fromkeys(("a job of one unknown", "a job of one unknown, named"), "UnknownTask"),
        },
    ),
}
"""By room and name: the question, and the answer."""
