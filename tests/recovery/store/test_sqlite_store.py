"""The SQLite store: the conformance suite, and what only a file can do to it.

It is long because a file can be missing, foreign, newer, cut, full, locked and read-only, and each
is a test.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents.errors import (
    CorruptDatabase,
    DatabaseFull,
    DatabaseLocked,
    DatabaseUnavailable,
    ForeignDatabase,
    InvalidSetting,
    InvalidTask,
    NewerSchema,
    PragmaRefused,
    StoreError,
)
from durable_agents.store import ConnectionFactory, Pragmas, SqliteStore, Store, init_factory, open_store
from durable_agents.store.conformance import StoreConformance
from durable_agents.store.rows import Audit, StoredCheckpoint, Task, TaskStatus
from durable_agents.store.sqlite.schema import APPLICATION_ID, MIGRATIONS, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60


class TestSqliteStore(StoreConformance):
    """SQLite keeps every promise of a store."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self._path = tmp_path / "o'ne ?#%20 ключ.db"

    def setup_method(self) -> None:
        """Leave it to a fixture that knows the folder."""

    @pytest.fixture(autouse=True)
    def _store(self, _folder: None) -> None:
        self.store = self.new_store()

    def new_store(self) -> Store:
        """Return a store in a new file, whose name needs quoting wherever it is not handled as a
        path.
        """
        return open_store(self._path)

    def reopened(self) -> Store:
        """Return another store on the same file."""
        return open_store(self._path)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(name="store")
def _open(path: Path) -> Iterator[SqliteStore]:
    with open_store(path, busy_timeout_s=0.1) as store:
        yield store


def _insert(store: Store, task_id: str) -> None:
    with store.transaction() as transaction:
        assert transaction.insert_task(Task(task_id, None, TaskStatus.CREATED, "", 1, 1, 1))


def _insert_task_and_checkpoint(store: Store, task_id: str, checkpoint: StoredCheckpoint) -> None:
    with store.transaction() as transaction:
        assert transaction.insert_task(Task(task_id, None, TaskStatus.CREATED, "", 1, 1, 1))
        transaction.insert_checkpoint(checkpoint)


def _script(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a fresh interpreter on the source, with pipes to speak with it."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )


def test_every_connection_is_as_durable_as_it_says(store: SqliteStore) -> None:
    """Each of several connections reports full synchronisation and a write-ahead log,
    as does the file (D15).
    """
    expected = Pragmas(synchronous="FULL", journal_mode="wal", busy_timeout_ms=0, foreign_keys=True)
    assert store.pragmas() == expected
    first = store.borrow()
    assert store.pragmas() == expected
    store.give_back(first)
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_without_a_queue_a_connection_waits_by_itself(path: Path) -> None:
    """A store that leaves the order to SQLite has its busy timeout on each connection."""
    with open_store(path, busy_timeout_s=0.1, queue_writers=False) as store:
        assert store.pragmas().busy_timeout_ms == 100


def test_a_file_that_another_has_to_itself_is_waited_for_within_a_bound(store: SqliteStore) -> None:
    """Readers wait only where another connection excludes even them;
    a read then ends in time, with a typed error.
    """
    _insert(store, "t")
    store.borrow().close()
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseLocked, match=r"within 0\.1 s"):
            store.task("t")
        other.execute("COMMIT")
    assert store.task("t") is not None


def test_a_read_that_is_told_to_wait_does(store: SqliteStore, tmp_path: Path) -> None:
    """A connection that gives up at once, as those of writers do, is replaced by one that waits."""
    _insert(store, "t")
    locked = sqlite3.connect(tmp_path / "other.db", timeout=0, isolation_level=None)
    with closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as holder:
        holder.execute("CREATE TABLE tasks (x)")
        holder.execute("BEGIN EXCLUSIVE")
        store.give_back(locked)
        assert store.task("t") is not None


def test_a_connection_that_does_not_take_a_setting_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that was never made is found when it is read back,
    and no connection is handed out.
    """
    factory = init_factory(path)
    monkeypatch.setattr(ConnectionFactory, "_set_up", lambda *_: None)
    with pytest.raises(PragmaRefused, match="foreign_keys = 1; got 0"):
        factory()


def test_factories_know_nothing_of_each_other(tmp_path: Path) -> None:
    """Two factories made in turn lead to two files, whichever was made last (D13)."""
    first, second = (SqliteStore(init_factory(tmp_path / name)) for name in ("first.db", "second.db"))
    with first, second:
        _insert(first, "only in the first")
        _insert(second, "only in the second")
        assert [task.task_id for task in first.tasks()] == ["only in the first"]
        assert [task.task_id for task in second.tasks()] == ["only in the second"]


def test_a_relative_path_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder goes on with the same file."""
    monkeypatch.chdir(tmp_path)
    with open_store("relative.db") as store:
        monkeypatch.chdir("/")
        _insert(store, "t")
        store.borrow().close()  # the next operation opens a connection anew
        assert store.task("t") is not None
    assert (tmp_path / "relative.db").exists()


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_database_in_memory_is_refused(path: str) -> None:
    """A path that names no file is refused, since each connection would have a
    database of its own.
    """
    with pytest.raises(InvalidSetting, match="path must name a file"):
        open_store(path)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), 1e9, 10**400, "1", None])
def test_a_busy_timeout_that_cannot_be_meant_is_refused(path: Path, timeout_s: float) -> None:
    """Negative, endless and absurd waits are refused before a file is made."""
    with pytest.raises(InvalidSetting, match="busy_timeout_s must be between 0 and"):
        init_factory(path, busy_timeout_s=timeout_s)
    assert not path.exists()


def test_a_new_file_has_the_current_schema_and_our_name(path: Path) -> None:
    """The version and the application id are in the header, and every table is STRICT."""
    init_factory(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        query = "SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite%'"
        tables = connection.execute(query).fetchall()
        assert {"checkpoint_evidence", "checkpoints", "task_audits", "tasks"} <= dict(tables).keys()
        assert all(strict for _, strict in tables)


def test_the_key_of_a_checkpoint_is_task_and_number(store: SqliteStore) -> None:
    """The same number twice is refused by the table itself, whoever writes."""
    _insert(store, "t")
    connection = store.borrow()
    row = ("t", 1, "x", "0" * 64, 1, "0")
    connection.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", row)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", row)
    store.give_back(connection)


def test_an_older_file_is_migrated_and_keeps_its_rows(path: Path) -> None:
    """A later version of the code adds its steps to a file that has rows already."""
    with open_store(path) as store:
        _insert(store, "t")
    factory = ConnectionFactory(str(path))
    prepare(factory, (*MIGRATIONS, ("ALTER TABLE tasks ADD COLUMN colour TEXT", "CREATE TABLE more (x TEXT) STRICT")))
    with closing(factory()) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert connection.execute("SELECT task_id, colour FROM tasks").fetchall() == [("t", None)]


def test_a_failed_step_leaves_the_version_before_it(path: Path) -> None:
    """A step is done whole or not at all, and the steps before it stay."""
    step_that_fails = ("CREATE TABLE half (x TEXT)", "INSERT INTO nowhere VALUES (1)")
    with pytest.raises(ForeignDatabase, match="no such table: nowhere"):
        prepare(ConnectionFactory(str(path)), (*MIGRATIONS, step_that_fails))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)


def test_a_file_that_is_made_while_it_is_looked_at_is_ours(path: Path) -> None:
    """Another process may migrate the new file between the two reads that tell whose it is."""

    class LookedAt(ConnectionFactory):
        """Makes connections during whose second look at the header another one makes the tables."""

        __slots__ = ()

        def __call__(self) -> sqlite3.Connection:
            connection = ConnectionFactory.__call__(self)
            looks: list[str] = []

            def look(statement: str) -> None:
                if statement in {"PRAGMA user_version", "PRAGMA application_id"}:
                    looks.append(statement)
                    if len(looks) == 2:
                        init_factory(path)

            connection.set_trace_callback(look)
            return connection

    prepare(LookedAt(str(path)), MIGRATIONS)
    with open_store(path) as store:
        assert store.tasks() == []


def test_many_processes_make_one_new_file_at_once() -> None:
    """Eight interpreters that open the same file, which is not there yet,
    all succeed and migrate it once.
    """
    source = """
import sys
from durable_agents import open_store, TaskManager
print("ready", flush=True)
sys.stdin.readline()
with open_store(sys.argv[1]) as store:
    TaskManager(store).create(f"task {sys.argv[2]}")
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.db")
        children = [_script(source, str(path), str(number)) for number in range(8)]
        assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * 8
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            child.communicate(timeout=_TIMEOUT_S)
        assert [child.returncode for child in children] == [0] * 8
        with open_store(path) as store:
            assert [task.task_id for task in store.tasks()] == [f"task {number}" for number in range(8)]


@pytest.mark.parametrize("is_in_log", [False, True], ids=["in the file", "in the log only"])
def test_a_newer_schema_is_refused_and_untouched(path: Path, tmp_path: Path, is_in_log: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A file of a later version is not written to, not even to copy its log into it."""
    init_factory(path)
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA user_version = 99")
    writer.commit()
    saved = tmp_path / "saved"
    saved.mkdir()
    if is_in_log:
        _copy_files(tmp_path, saved)  # as a crash would leave them: the log is not yet copied into the file
        writer.close()
    else:
        writer.close()
        _copy_files(tmp_path, saved)
    assert (saved / "store.db-wal").exists() == is_in_log
    before = _contents(saved)
    with pytest.raises(NewerSchema, match=r"schema version \d+ or older; got 99\. Update this package"):
        open_store(saved / "store.db")
    assert _contents(saved) == before


def test_a_database_of_another_program_is_refused_and_untouched(path: Path) -> None:
    """A file whose header names another program, or that numbers its own versions,
    is not ours to change.
    """
    for pragma in ("application_id = 1", "user_version = 3"):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE theirs (x)")
            connection.execute(f"PRAGMA {pragma}")
            connection.commit()
        before = path.read_bytes()
        with pytest.raises(ForeignDatabase, match="another program numbers its versions"):
            open_store(path)
        assert path.read_bytes() == before


def test_tables_with_our_names_are_not_taken_over(path: Path) -> None:
    """A file with a table in the way keeps every byte: it is not put into WAL mode."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE checkpoints (theirs)")
    before = path.read_bytes()
    with pytest.raises(ForeignDatabase, match="table checkpoints already exists"):
        open_store(path)
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("checkpoints",)]


def test_a_file_with_tables_of_the_users_own_is_shared(path: Path) -> None:
    """Tables that nobody numbers, with names that are not ours, stay and ours come beside them."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (x)")
        connection.execute("INSERT INTO orders VALUES (1)")
        connection.commit()
    with open_store(path) as store:
        _insert(store, "t")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT x FROM orders").fetchall() == [(1,)]


def _a_database(path: Path) -> bytes:
    with open_store(path) as store:
        _insert(store, "t")
        for number in range(1, 20):
            with store.transaction() as transaction:
                transaction.insert_checkpoint(StoredCheckpoint("t", number, "x", b'"%s"' % (b"x" * 3000), "0" * 64, 1))
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"This is not a database. " * 1000,
        lambda content: content[:1],
        lambda content: content[:99],
        lambda content: content[:511],
        lambda content: content[:4096],
        lambda content: content[: len(content) // 2],
        lambda content: bytes(4096) + content[4096:],
    ],
    ids=["text", "1 byte", "99 bytes", "511 bytes", "1 page", "half", "header zeroed"],
)
def test_a_damaged_file_is_refused_and_untouched(path: Path, damage: Callable[[bytes], bytes]) -> None:
    """What is not a database, or no longer a whole one,
    raises CorruptDatabase and keeps its bytes.
    """
    content = damage(_a_database(path))
    path.write_bytes(content)
    with pytest.raises(CorruptDatabase, match=f"{path} must be .* SQLite database; got .*[.] Restore a copy, or move"):
        open_store(path)
    assert path.read_bytes() == content


def test_damage_found_later_is_named_too(path: Path) -> None:
    """A page of checkpoints that was overwritten raises CorruptDatabase when it is read,
    and not before.
    """
    content = _a_database(path)
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'checkpoints'").fetchone()
    path.write_bytes(content[: (page - 1) * 4096] + os.urandom(4096) + content[page * 4096 :])
    with open_store(path) as store, pytest.raises(CorruptDatabase, match="malformed"):
        store.latest_checkpoint("t")


def test_a_log_that_is_missing_loses_nothing_that_was_copied(path: Path) -> None:
    """A file without its -wal and -shm opens with what it holds."""
    _a_database(path)
    assert not path.with_name("store.db-wal").exists()
    with open_store(path) as store:
        assert len(store.checkpoints("t")) == 19


@pytest.mark.parametrize("name", ["no such folder/store.db", "."])
def test_a_path_that_cannot_be_a_file_is_named(tmp_path: Path, name: str) -> None:
    """A folder that does not exist, and a folder instead of a file, raise DatabaseUnavailable."""
    with pytest.raises(DatabaseUnavailable, match="must be a file in a folder that exists"):
        open_store(tmp_path / name)


def test_a_lock_held_by_another_process_is_waited_for_within_a_bound(store: SqliteStore) -> None:
    """While another process writes: DatabaseLocked after the busy timeout, nothing changed,
    and reads go on.
    """
    source = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""
    holder = _script(source, store.path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(DatabaseLocked, match=r"within 0\.1 s; got no turn by .*, and another program was"):
            _insert(store, "t")
        assert store.tasks() == []
    finally:
        holder.communicate("go\n", timeout=_TIMEOUT_S)
    _insert(store, "t")
    assert store.task("t") is not None


def test_a_wait_that_is_long_enough_succeeds(path: Path) -> None:
    """A writer that finds the lock taken gets it when it is let go, without an error."""
    with open_store(path) as store:
        begun = threading.Event()
        transaction = store.transaction()
        transaction.__enter__()

        def write() -> None:
            begun.set()
            _insert(store, "waited")

        writer = threading.Thread(target=write)
        writer.start()
        assert begun.wait(_TIMEOUT_S)
        transaction.__exit__(None, None, None)
        writer.join(_TIMEOUT_S)
        assert store.task("waited") is not None


def test_a_full_database_raises_and_keeps_what_it_had(path: Path) -> None:
    """SQLITE_FULL is DatabaseFull, the transaction is undone,
    and there is life after space is made.
    """

    class SmallFactory(ConnectionFactory):
        """Makes connections that may not let the file grow much;
        the limit is a connection's own.
        """

        __slots__ = ()
        pages_max = 20

        def __call__(self) -> sqlite3.Connection:
            connection = super().__call__()
            connection.execute(f"PRAGMA max_page_count = {self.pages_max}")
            return connection

    init_factory(path)
    large = StoredCheckpoint("t", 1, "x", b'"%s"' % (b"x" * 200_000), "0" * 64, 1)
    with SqliteStore(SmallFactory(str(path))) as store:
        _insert(store, "t")
        with pytest.raises(DatabaseFull, match="the disk or the size limit is full"):
            _insert_task_and_checkpoint(store, "u", large)
        assert [task.task_id for task in store.tasks()] == ["t"]
        _insert(store, "small enough")
    with open_store(path) as store, store.transaction() as transaction:
        transaction.insert_checkpoint(large)


_NOBODY: Final = 65534


@pytest.mark.parametrize("folder_mode", [0o755, 0o777], ids=["folder too", "file only"])
def test_a_file_that_may_not_be_written_is_named(folder_mode: int) -> None:
    """A process without permission gets DatabaseReadOnly when it opens the store or
    writes to it.
    """
    source = """
import os, sys, urllib.parse  # as long as this user may read it
from durable_agents import TaskManager, open_store
from durable_agents.errors import DatabaseReadOnly
if os.getuid() == 0:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
try:
    with open_store(sys.argv[1]) as store:
        TaskManager(store).create("t")
except DatabaseReadOnly as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders cannot be entered by another user
        path = Path(folder, "store.db")
        init_factory(path)
        path.chmod(0o444)
        Path(folder).chmod(folder_mode if os.getuid() == 0 else folder_mode & ~0o222)
        before = path.read_bytes()
        output, _ = _script(source, str(path), str(_NOBODY)).communicate(timeout=_TIMEOUT_S)
        Path(folder).chmod(0o755)
        assert output.startswith(f"{path} and its folder must be writable by this process; got ")
        assert path.read_bytes() == before


def test_text_that_utf8_cannot_hold_is_named(store: SqliteStore) -> None:
    """An id with a lone surrogate is a typed error of a read and of a write."""
    with pytest.raises(InvalidTask, match="Remove its lone surrogates"):
        store.task("\ud800")
    with pytest.raises(InvalidTask, match="Remove its lone surrogates"):
        _insert(store, "\ud800")
    assert store.tasks() == []


def test_values_that_no_column_can_hold_are_named(store: SqliteStore) -> None:
    """A number of more than 64 bits, and an object, in a read and in a write;
    nothing is written.
    """
    _insert(store, "t")
    with pytest.raises(InvalidSetting, match="64 bits"):
        store.latest_checkpoint("t", 2**70)
    with pytest.raises(InvalidSetting, match="column"):
        store.task(object())  # type: ignore[arg-type]  # the wrong type is the point
    for moment in (2**70, object()):
        with pytest.raises(InvalidSetting, match="column"), store.transaction() as transaction:
            transaction.insert_audit(Audit("t", "event", None, "after", "", moment))  # type: ignore[arg-type]
    assert store.audits("t") == []


def test_a_value_that_is_too_large_is_named(store: SqliteStore) -> None:
    """SQLite's own bound, made small here: the error says what to do, and nothing is written."""
    _insert(store, "t")
    connection = store.borrow()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    store.give_back(connection)
    with pytest.raises(StoreError, match="Keep large content in files"), store.transaction() as transaction:
        transaction.insert_audit(Audit("t", "event", None, "after", "x" * 20_000, 1))
    assert store.audits("t") == []


def test_a_forked_child_has_no_connection_of_its_parent(path: Path) -> None:
    """Those that are not in use are closed before the fork; child and parent open new ones."""
    source = """
import os, sqlite3, sys
from durable_agents import TaskManager, open_store
with open_store(sys.argv[1]) as store:
    tasks = TaskManager(store)
    tasks.create("parent")
    child = os.fork()
    if child == 0:
        tasks.create("child")
        os._exit(sum(isinstance(kept, sqlite3.Connection) for kept in store._inherited))
    _, status = os.waitpid(child, 0)
    tasks.create("parent again")
    print(os.waitstatus_to_exitcode(status))
"""
    output, _ = _script(source, str(path)).communicate(timeout=_TIMEOUT_S)
    assert output == "0\n"
    with open_store(path) as store:
        assert [task.task_id for task in store.tasks()] == ["child", "parent", "parent again"]


def test_a_child_loses_nothing_when_its_parent_closes(path: Path) -> None:
    """SQLite's table of locks is per process, in memory: a child that had a copy of its parent's
    would write to a log that the parent removes when it closes.
    """
    source = """
import os, sys
from durable_agents import TaskManager, open_store
store = open_store(sys.argv[1])
tasks = TaskManager(store)
tasks.create("parent")
(begun, begin), (closed, close) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    tasks.create("child before")
    os.write(begin, b"+")
    os.read(closed, 1)
    tasks.create("child after")
    os._exit(0)
os.read(begun, 1)
store.close()
with open_store(sys.argv[1]) as other:
    TaskManager(other).create("other")
    os.write(close, b"+")
    print(os.waitpid(child, 0)[1])
"""
    output, _ = _script(source, str(path)).communicate(timeout=_TIMEOUT_S)
    assert output == "0\n"
    with open_store(path) as store:
        assert [task.task_id for task in store.tasks()] == ["child after", "child before", "other", "parent"]


def test_no_operation_scans_a_table(store: SqliteStore) -> None:
    """Every statement of the store finds its rows by a key or an index,
    so none grows with the rows that are there.
    """
    statements: list[str] = []
    connection = store.borrow()
    connection.set_trace_callback(statements.append)
    store.give_back(connection)
    _insert(store, "t")
    store.tasks(status=TaskStatus.CREATED)
    store.tasks(after="a")
    store.audits("t")
    store.checkpoints("t")
    store.latest_checkpoint("t")
    with store.transaction() as transaction:
        transaction.task_with_tracker_key("A-1")
        transaction.next_checkpoint_number("t")
        transaction.change_status("t", expected=TaskStatus.CREATED, status=TaskStatus.RUNNING, now=1)
    connection = store.borrow()
    connection.set_trace_callback(None)
    queries = [statement for statement in statements if statement.startswith(("SELECT", "UPDATE"))]
    plans = [str(row[3]) for query in queries for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    store.give_back(connection)
    assert len(queries) == 8
    assert [plan for plan in plans if not plan.startswith("SEARCH")] == []


def _copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the database and its log; the -shm beside them is an index that readers rebuild,
    an empty log is none.
    """
    files = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    return {name: content for name, content in files.items() if content}
