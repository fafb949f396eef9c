"""The questions about opening a file: what is refused, and that a refusal changes nothing.

Settings that SQLite does not take, errors at each step of the opening, and what waits for it.
"""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import TaskManager, open_store
from durable_agents.errors import RecoveryError
from durable_agents.store.sqlite import connections, log_size, schema
from durable_agents.store.sqlite.connections import ConnectionFactory, factory_for
from durable_agents.store.sqlite.store import SqliteStore

from scenarios.questions.groups import in_time
from scenarios.questions.world import Questions, World, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERSION: Final = len(schema.MIGRATIONS)
_DEAD_S: Final = 60


def made_by(path: Path, *statements: str) -> None:
    """Make a database by these statements."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def foreign_files(folder: Path) -> Iterator[Path]:
    """Make files, and yield the path of each."""
    numbered = {
        "another program's": (7, 0),
        "another version": (0, 3),
        "both another's": (7, 3),
        "ours, newer": (schema.APPLICATION_ID, VERSION + 1),
        "unclaimed": (0, 0),
    }
    for name, (application, version) in numbered.items():
        made_by(
            folder / name,
            "CREATE TABLE other (x)",
            f"PRAGMA application_id = {application}",
            f"PRAGMA user_version = {version}",
        )
        yield folder / name
    made_by(folder / "tables in the way", "CREATE TABLE tasks (x)")
    yield folder / "tables in the way"
    for name, content in (("empty", b""), ("garbage", b"no database " * 1000), ("stump", b"SQLite format 3\0")):
        (folder / name).write_bytes(content)
        yield folder / name
    (folder / "folder").mkdir()
    yield from (folder / "folder", folder / "missing" / "file", folder / ("n" * 300))


def content_of(path: Path) -> dict[str, bytes]:
    """Return the content of a database's files."""
    found = {}
    for suffix in ("", "-wal", "-journal"):
        file = path.with_name(path.name + suffix)
        if len(file.name) < 255 and file.is_file():
            found[suffix] = file.read_bytes()
    return found


def opened(path: Path) -> None:
    """Open a store, and close it."""
    open_store(path).close()


def openings(world: World) -> dict[str, list[Any]]:
    """Return how files are opened that are no database of ours, and whether they are as before."""
    found = {}
    for path in foreign_files(world.folder):
        before = content_of(path)
        told = in_time(refused, functools.partial(opened, path))
        found[path.name[:20]] = [told, content_of(path) == before]
    return found


def killed_in(path: Path, *statements: str) -> None:
    """Let a process that executes these statements be killed with its connection open."""
    program = (
        "import os, signal, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for statement in sys.argv[2:]: connection.execute(statement).fetchall()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), *statements], check=False, timeout=_DEAD_S)
    assert done.returncode == -signal.SIGKILL, done


def left_by_the_dead(world: World) -> list[Any]:
    """Return whether a log and a journal are left in a write, and how such files are opened.

    A log of another version is not touched; a journal is rolled back.
    """
    newer, hot = world.folder / "newer.db", world.folder / "hot.db"
    killed_in(
        newer,
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE t (x)",
        f"PRAGMA application_id = {schema.APPLICATION_ID}",
        f"PRAGMA user_version = {VERSION + 1}",
    )
    before = content_of(newer)
    told = [bool(before.get("-wal")), refused(lambda: open_store(newer)), content_of(newer) == before]
    made_by(hot, "CREATE TABLE other (x)", "INSERT INTO other VALUES (zeroblob(200000))")
    killed_in(hot, "PRAGMA cache_size = 1", "BEGIN", "UPDATE other SET x = randomblob(200000)")
    told += [bool(content_of(hot).get("-journal")), in_time(refused, functools.partial(opened, hot))]
    with closing(sqlite3.connect(hot)) as connection:
        return [*told, connection.execute("SELECT x = zeroblob(200000) FROM other").fetchone()[0]]


class Stubborn(sqlite3.Connection):
    """A connection that does otherwise than it is told: by the beginning of the statement."""

    otherwise: str | Exception | type[BaseException] = ""
    told = ""
    said: list[str]

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Execute a statement, or another one, or raise."""
        if self.told and statement.startswith(self.told):
            if not isinstance(self.otherwise, str):
                raise self.otherwise
            statement = self.otherwise
        return super().execute(statement, parameters)


def with_code(code: int) -> sqlite3.OperationalError:
    """Return an error of SQLite."""
    error = sqlite3.OperationalError("told by SQLite")
    error.sqlite_errorcode = code
    return error


def opened_as(path: Path, told: str, otherwise: Any, call: Callable[[], Any]) -> list[Any]:
    """Return what a call gives whose connections are stubborn, and how many are left open."""
    made: list[Stubborn] = []

    def connect(factory: ConnectionFactory) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=factory.busy_timeout_s, isolation_level=None, check_same_thread=False, factory=Stubborn
        )
        connection.told, connection.otherwise = told, otherwise
        made.append(connection)
        return connection

    with mock.patch.object(ConnectionFactory, "_open", connect):
        found = in_time(call)
    return [found, sum(is_open(each) for each in made)]


def is_open(connection: sqlite3.Connection) -> bool:
    """Return whether a connection is open, and close it."""
    try:
        connection.total_changes  # noqa: B018 - it raises if it is closed
    except sqlite3.ProgrammingError:
        return False
    connection.close()
    return True


def looks_that_fail(world: World) -> list[Any]:
    """Return what is told when the first look at a file fails, and how it was opened by then."""
    path, connect = world.folder / "recovery.db", sqlite3.connect
    world.store.close()
    found: list[Any] = []
    for code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY_ROLLBACK):
        modes: list[str] = []

        def note(database: str, modes: list[str] = modes, **options: Any) -> sqlite3.Connection:
            modes.append(database.rpartition("?")[2])
            connection: sqlite3.Connection = connect(database, **{**options, "factory": Stubborn})
            return connection

        stubborn = mock.patch.multiple(Stubborn, told="PRAGMA user_version", otherwise=with_code(code))
        with mock.patch("sqlite3.connect", note), stubborn:
            found.append([in_time(refused, functools.partial(opened, path)), modes])
    return found


def settings_refused(world: World) -> dict[str, list[Any]]:
    """Return what is told when a setting is not taken, or an error comes instead."""
    path = world.folder / "recovery.db"
    world.store.close()
    factory = factory_for(path, 0.05)
    asked: dict[str, tuple[str, Any]] = {
        "synchronous": ("PRAGMA synchronous = 2", "PRAGMA synchronous = 1"),
        "foreign_keys": ("PRAGMA foreign_keys = 1", "PRAGMA foreign_keys = 0"),
        "trusted_schema": ("PRAGMA trusted_schema = 0", "PRAGMA trusted_schema = 1"),
        "journal_mode": ("PRAGMA journal_mode = WAL", "PRAGMA journal_mode"),
        "an error": ("PRAGMA synchronous", with_code(sqlite3.SQLITE_IOERR)),
        "an error of the log": ("PRAGMA journal_mode", with_code(sqlite3.SQLITE_IOERR)),
        "a lock that stays": ("PRAGMA journal_mode", with_code(sqlite3.SQLITE_BUSY)),
        "an interrupt": ("PRAGMA synchronous", KeyboardInterrupt()),
    }
    found = {}
    for name, (told, otherwise) in asked.items():
        at = path if name != "journal_mode" else world.folder / "plain.db"
        with mock.patch("time.sleep", wraps=time.sleep) as sleep:
            found[name] = opened_as(at, told, otherwise, lambda: [refused(factory)])
        found[name].append(bool(sleep.call_count))
    for name, (told, otherwise) in READERS.items():
        found[name] = opened_as(path, told, otherwise, lambda: [refused(factory.reader)])
    return found


READERS: Final[dict[str, tuple[str, Any]]] = {
    "a reader's error": ("PRAGMA query_only", with_code(sqlite3.SQLITE_IOERR)),
    "a reader's other error": ("PRAGMA mmap_size", with_code(sqlite3.SQLITE_FULL)),
}


def factories(world: World) -> list[Any]:
    """Return how paths and timeouts are answered, an old SQLite, and a folder that is missing."""
    path = world.folder / "recovery.db"
    found: list[Any] = [
        refused(lambda each=each: factory_for(path, each))  # type: ignore[misc]
        for each in (-0.001, float("nan"), True, 24 * 3600.001, 0, 24 * 3600.0)
    ]
    found += [refused(lambda each=each: factory_for(each, 1.0)) for each in ("", ":memory:")]  # type: ignore[misc]
    with mock.patch.object(connections, "_SQLITE_VERSION_MIN", (99, 0, 0)):
        found.append(refused(lambda: factory_for(path, 1.0)))
    missing = factory_for(world.folder / "missing" / "file", 1.0)
    return [*found, refused(missing), refused(missing.reader)]


def could_write(world: World) -> list[Any]:
    """Return whether a transaction could begin, and what the connection is asked for it."""
    path, said = world.folder / "recovery.db", list[str]()
    with open_store(path, queue_writers=False, busy_timeout_s=0.05) as store:
        connection = store.borrow()
        connection.set_trace_callback(said.append)
        store.give_back(connection)
        found: list[Any] = [store.can_write_now(), said[1:]]
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            found.append(store.can_write_now())
        found += [store.can_write_now(), len(store._idle)]  # noqa: SLF001 - a connection that is lost is opened anew
    found.append(store.can_write_now())  # it is closed: the transaction will be told
    for otherwise in (with_code(sqlite3.SQLITE_IOERR), KeyboardInterrupt()):
        factory = ConnectionFactory(str(path), 0.05)
        found.append(opened_as(path, "BEGIN IMMEDIATE", otherwise, functools.partial(can_write, factory)))
    return found


def can_write(factory: ConnectionFactory) -> bool:
    """Return whether a new store can write."""
    with SqliteStore(factory, queue_writers=False) as store:
        return store.can_write_now()


def migrations(world: World) -> list[Any]:
    """Return what is told of a migration that fails, and whether the file is as before."""
    path = world.folder / "recovery.db"
    steps = (("CREATE TABLE one (x)",), ("CREATE TABLE two (x)", "INSERT INTO one VALUES (zeroblob(1000000))"))
    factory = factory_for(path, 1.0)
    schema.prepare(factory, steps[:1])
    found = [
        opened_as(path, "INSERT", with_code(code), lambda: [refused(lambda: schema.prepare(factory, steps))])
        for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_ERROR)
    ]
    found.append(opened_as(path, "COMMIT", with_code(sqlite3.SQLITE_FULL), lambda: [kept_open(path, factory, steps)]))
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        return [*found, tables, connection.execute("PRAGMA user_version").fetchone()[0]]


def kept_open(path: Path, factory: ConnectionFactory, steps: Any) -> list[Any]:
    """Return what one step of a migration raises, and whether its transaction is left open."""
    connection = factory._open()  # noqa: SLF001 - the one that does otherwise
    try:
        schema._migrate_one_step(connection, steps, str(path))  # noqa: SLF001 - as above
    except sqlite3.OperationalError as error:
        return [type(error).__name__, connection.in_transaction]
    finally:
        connection.close()
    return ["", connection.in_transaction]


def protected(world: World) -> dict[str, str]:
    """Return what a file means that cannot be opened: write-protected, or not there."""
    there = world.folder / "there.db"
    there.write_bytes(b"")
    refusals = {
        "": set[str](),
        "file": {str(there)},
        "folder": {str(world.folder)},
        "both": {str(there), str(world.folder)},
    }
    found = {}
    for name, refusing in refusals.items():
        with mock.patch("os.access", lambda path, _, refusing=refusing: str(path) not in refusing):  # root may write
            for path in (there, world.folder / "missing.db"):
                for code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
                    means = connections.translated(with_code(code), str(path), 1.0)
                    found[f"{name} {path.name} {code}"] = type(means).__name__
    return found


def remedies(world: World) -> list[Any]:
    """Return the last sentence of what is said of arguments that no column can hold."""
    unbound = sqlite3.ProgrammingError("Error binding parameter 1: type 'object' is not supported")
    interface = sqlite3.InterfaceError("Error binding parameter 0 - probably unsupported type.")
    other = sqlite3.ProgrammingError("Cannot operate on a closed database.")
    said = sqlite3.OperationalError("no such function: binding parameter")
    errors = (unbound, interface, other, said, with_code(sqlite3.SQLITE_TOOBIG))
    path = str(world.folder / "recovery.db")
    return [str(connections.translated(error, path, 1.0)).rsplit(". ", 1)[-1] for error in errors]


def readers_of_the_log(_: World) -> list[Any]:
    """Return who is said to read the log, of processes that hold other locks, or no lock at all."""
    lines = [
        "1: POSIX  ADVISORY  READ 11 00:1b:77 123 123",
        "2: POSIX  ADVISORY  READ 12 00:1b:77 127 127",
        "3: POSIX  ADVISORY  READ 13 00:1b:77 128 128",
        "4: POSIX  ADVISORY  WRITE 14 00:1b:77 122 122",
        "5: POSIX  ADVISORY  READ 0 00:1b:77 124 124",
        "6: POSIX  ADVISORY  READ 15 00:1b:78 124 124",
        "no lock at all",
    ]
    text = "\n".join(lines)
    with (
        mock.patch.object(log_size, "open", mock.mock_open(read_data=text), create=True),
        mock.patch("os.stat", return_value=mock.Mock(st_ino=77)),
    ):
        found = sorted(log_size._readers("index"))  # noqa: SLF001 - what the kernel shows of others cannot be made
    return [found, sorted(log_size._readers("/no/index")), log_size._size("/no/log")]  # noqa: SLF001 - as above


def opened_anew(world: World) -> list[Any]:
    """Return what a place is that is opened anew, and what is told when its file is gone."""
    place = world.store.place
    TaskManager(world.store, clock=world.clock).create("t")
    with place.reopened(1.0) as store:
        found: list[Any] = [store.task("t") is not None]
    found.append(store.is_closed)
    world.store.close()
    os.rename(place.path, f"{place.path}.away")  # noqa: PTH104 - paths of text
    try:
        place.reopened(1.0)
    except RecoveryError as error:
        found.append(type(error).__name__)
    return [*found, os.path.exists(place.path)]  # noqa: PTH110 - as above


_NO_OURS: Final = ["ForeignDatabase", True]

QUESTIONS: Final[Questions] = {
    "store: files that are opened": (
        openings,
        {
            "another program's": _NO_OURS,
            "another version": _NO_OURS,
            "both another's": _NO_OURS,
            "ours, newer": ["NewerSchema", True],
            "unclaimed": ["", False],
            "tables in the way": _NO_OURS,
            "empty": ["", False],
            "garbage": ["CorruptDatabase", True],
            "stump": ["CorruptDatabase", True],
            "folder": ["DatabaseUnavailable", True],
            "file": ["DatabaseUnavailable", True],
            "n" * 20: ["DatabaseUnavailable", True],
        },
    ),
    "store: files that the dead left": (left_by_the_dead, [True, "NewerSchema", True, True, "", 1]),
    "store: looks that fail": (
        looks_that_fail,
        [
            ["DatabaseUnavailable", ["mode=ro"]],
            ["DatabaseLocked", ["mode=ro"]],
            ["DatabaseReadOnly", ["mode=ro", "mode=rw"]],
        ],
    ),
    "store: settings that are not taken": (
        settings_refused,
        {
            **{name: [["PragmaRefused"], 0, False] for name in ("synchronous", "foreign_keys", "trusted_schema")},
            "journal_mode": [["PragmaRefused"], 0, False],
            "an error": [["DatabaseUnavailable"], 0, False],
            "an error of the log": [["DatabaseUnavailable"], 0, False],
            "a lock that stays": [["DatabaseLocked"], 0, True],
            "an interrupt": ["KeyboardInterrupt", 0, False],
            "a reader's error": [["DatabaseUnavailable"], 0],
            "a reader's other error": [["DatabaseFull"], 0],
        },
    ),
    "store: paths and timeouts": (
        factories,
        [*["InvalidSetting"] * 4, "", "", *["InvalidSetting"] * 2, *["DatabaseUnavailable"] * 3],
    ),
    "store: whether it can be written": (
        could_write,
        [
            True,
            ["PRAGMA busy_timeout = 0", "BEGIN IMMEDIATE", "ROLLBACK", "PRAGMA busy_timeout = 50"],
            False,
            True,
            1,
            True,
            [True, 0],
            ["KeyboardInterrupt", 0],
        ],
    ),
    "store: migrations that fail": (
        migrations,
        [[["DatabaseFull"], 0], [["ForeignDatabase"], 0], [[["OperationalError", False]], 0], ["one"], 1],
    ),
    "store: files that are protected": (
        protected,
        {
            f"{name} {file}.db {code}": kind
            for name in ("", "file", "folder", "both")
            for file in ("there", "missing")
            for code, kind in (
                (
                    sqlite3.SQLITE_CANTOPEN,
                    "DatabaseReadOnly" if name and file == "there" else "DatabaseUnavailable",
                ),
                (sqlite3.SQLITE_IOERR, "DatabaseUnavailable"),
            )
        },
    ),
    "store: remedies": (
        remedies,
        [
            *["Give values that a column can hold."] * 2,
            *["Please report this."] * 2,
            "Keep large content in files.",
        ],
    ),
    "store: readers of the log": (readers_of_the_log, [[11, 12], [], 0]),
    "store: a place that is opened anew": (opened_anew, [True, True, "DatabaseUnavailable", False]),
}
"""By room and name: the question, and the answer."""
