"""Programs that corrupt a SQLite database, or risk to, each with a sound twin. Real processes.

Each works in the current directory. A pair differs by the one thing that a detector looks for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.runtime.marks import Marks

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

DATABASE = Path("state.db")
LOG, INDEX, JOURNAL = (Path(f"state.db-{suffix}") for suffix in ("wal", "shm", "journal"))


def connected(*, mode: str = "wal", path: Path = DATABASE) -> sqlite3.Connection:
    """Open a database with a table; transactions begin where they are told to."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("CREATE TABLE IF NOT EXISTS kept (value)")
    return connection


def put(connection: sqlite3.Connection, count: int = 1) -> None:
    """Commit some values, one by one."""
    for number in range(count):
        connection.execute("INSERT INTO kept VALUES (?)", (number,))


def in_child(work: Callable[[], object]) -> None:
    """Do something in a forked process, and wait for its end."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# Locks that a close drops: the kind of hermes-agent's state.db


def is_sqlite(path: Path) -> bool:
    """Look at the first bytes of a live database, by a descriptor of its own."""
    descriptor = os.open(path, os.O_RDONLY)
    head = os.read(descriptor, 16)
    os.close(descriptor)
    return head == b"SQLite format 3\0"


def peeks() -> None:
    """Look whether it is a database, between two commits to it."""
    connection = connected()
    put(connection)
    assert is_sqlite(DATABASE)
    put(connection, 2)


def peeks_while_it_vacuums() -> None:
    """Do the same within a transaction of the rollback journal."""
    connection = connected(mode="delete")
    connection.execute("BEGIN IMMEDIATE")
    assert is_sqlite(DATABASE)
    put(connection)
    connection.execute("COMMIT")
    connection.execute("VACUUM")


def peeks_at_the_index() -> None:
    """Open and close the index of the log."""
    connection = connected()
    put(connection)
    os.close(os.open(INDEX, os.O_RDONLY))
    put(connection)


def peeks_before() -> None:
    """Look before anybody is connected, and in another process."""
    connected().close()
    assert is_sqlite(DATABASE)
    connection = connected()
    subprocess.run(["head", "-c", "16", DATABASE], check=True, stdout=subprocess.DEVNULL)
    put(connection)
    connection.close()
    assert is_sqlite(DATABASE)


# Files that are replaced


def cleans_up() -> None:
    """Remove what looks like leftovers, while a connection is open."""
    connection = connected()
    put(connection)
    for path in (LOG, INDEX):
        path.unlink()
    with contextlib.suppress(sqlite3.Error):
        put(connected())
        put(connection)


def cleans_up_nothing() -> None:
    """Let SQLite remove its own files, and delete the whole database when it is closed."""
    connection = connected()
    put(connection)
    connection.close()
    assert not LOG.exists()
    put(connected())
    for path in (DATABASE, LOG, INDEX):
        path.unlink()


def removes_the_log() -> None:
    """Remove a log whose writer has died, with what it had committed."""
    in_child(lambda: put(connected()))
    assert LOG.exists()
    LOG.unlink()
    INDEX.unlink()
    connected().execute("SELECT * FROM kept").fetchall()


def keeps_the_log() -> None:
    """Open the database of a writer that has died: SQLite recovers."""
    in_child(lambda: put(connected()))
    connection = connected()
    assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)


def removes_the_journal() -> None:
    """Remove the journal of a transaction that is going on, and has written to the database."""
    connection = connected(mode="delete")
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO kept VALUES (?)", [("x" * 3000,)] * 50)
    JOURNAL.unlink()
    connection.execute("ROLLBACK")


def leaves_the_journal() -> None:
    """Do the same without touching it."""
    connection = connected(mode="delete")
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO kept VALUES (?)", [("x" * 3000,)] * 50)
    connection.execute("ROLLBACK")
    put(connection)


def restores() -> None:
    """Put another database in the place of one that is open."""
    connection = connected(mode="delete")
    connected(mode="delete", path=Path("other.db")).close()
    Path("other.db").replace(DATABASE)
    with contextlib.suppress(sqlite3.OperationalError):
        put(connection)


def restores_in_place() -> None:
    """Copy another database over one that is open."""
    connection = connected(mode="delete")
    connected(mode="delete", path=Path("other.db")).close()
    shutil.copyfile("other.db", DATABASE)
    put(connection)


def restores_by_sqlite() -> None:
    """Restore by the backup API, and put a file in place that nobody has open."""
    connected(mode="delete", path=Path("other.db")).close()
    connection = connected(mode="delete")
    other = sqlite3.connect("other.db")
    other.backup(connection)
    other.close()
    connection.close()
    Path("other.db").replace(DATABASE)
    put(connected(mode="delete"))


def leaves_the_log_behind() -> None:
    """Rename a database without the log that its dead writer has left."""
    in_child(lambda: put(connected()))
    os.close(os.open(DATABASE, os.O_RDONLY))
    DATABASE.rename("moved.db")


def moves_all() -> None:
    """Rename it with its log."""
    in_child(lambda: put(connected()))
    DATABASE.rename("moved.db")
    LOG.rename("moved.db-wal")


# Connections and forks


def forks() -> None:
    """Use the parent's connection in a child."""
    connection = connected(mode="delete")
    in_child(lambda: put(connection))


def forks_and_connects() -> None:
    """Let a child open a connection of its own, while the parent's is open in WAL mode.

    SQLite keeps one table of locks for a process and file, and the child has the parent's.
    """
    connection = connected()
    put(connection)
    in_child(lambda: put(connected()))


def forks_first() -> None:
    """Fork where no connection is open; open one in each process."""
    connected().close()
    in_child(lambda: put(connected()))
    connection = connected()
    put(connection)
    connection.close()
    in_child(lambda: put(connected()))


# Copies


def backs_up() -> None:
    """Copy a live database without its log."""
    connection = connected()
    put(connection)
    in_child(lambda: shutil.copy(DATABASE, "backup.db"))


def backs_up_by_cp() -> None:
    """Do the same by a command."""
    connection = connected()
    put(connection)
    subprocess.run(["cp", DATABASE, "backup.db"], check=True)


def backs_up_under_a_writer() -> None:
    """Copy a database, page by page, while somebody writes to it."""
    connection = connected(mode="delete")
    put(connection)
    with DATABASE.open("rb", buffering=0) as source, Path("backup.db").open("wb") as target:
        target.write(source.read(512))
        in_child(lambda: put(connected(mode="delete")))
        target.write(source.read())
        assert source.read() == b""


def backs_up_by_sqlite() -> None:
    """Use the backup API and VACUUM INTO; copy the file when all is checkpointed and locked."""
    connection = connected()
    put(connection)
    target = sqlite3.connect("backup.db")
    connection.backup(target)
    target.close()
    connection.execute("VACUUM INTO 'into.db'")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("BEGIN IMMEDIATE")
    subprocess.run(["cp", DATABASE, "copy.db"], check=True)
    connection.execute("ROLLBACK")


# Waits


def _insert_elsewhere() -> None:
    code = "import sqlite3; c = sqlite3.connect('state.db'); c.execute('INSERT INTO kept VALUES (7)'); c.commit()"
    subprocess.run([sys.executable, "-c", code], check=True)


def upgrades() -> None:
    """Read, then write in the same transaction; another process commits between."""
    in_child(lambda: put(connected()))
    connection = connected()
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM kept").fetchall()
    _insert_elsewhere()
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("INSERT INTO kept VALUES (8)")
    connection.execute("ROLLBACK")


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _put_by_its_own() -> None:
    put(connected())


def upgrades_between_threads() -> None:
    """Read, then write in the same transaction; another thread commits between."""
    connection = connected()
    put(connection)
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM kept").fetchall()
    _in_thread(_put_by_its_own)
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("INSERT INTO kept VALUES (8)")
    connection.execute("ROLLBACK")


def begins_immediately_between_threads() -> None:
    """Do the same with BEGIN IMMEDIATE, write or not, while another thread commits between."""
    connection = connected()
    for number in range(4):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT * FROM kept").fetchall()
        if number % 2:
            connection.execute("INSERT INTO kept VALUES (8)")
        connection.execute("COMMIT")
        _in_thread(_put_by_its_own)
    cursor = connection.execute("SELECT * FROM kept")
    _in_thread(_put_by_its_own)
    assert len(cursor.fetchall()) > 1
    put(connection)


def begins_immediately() -> None:
    """Do the same with BEGIN IMMEDIATE, and the other one between the transactions."""
    in_child(lambda: put(connected()))
    connection = connected()
    for _ in range(2):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT * FROM kept").fetchall()
        connection.execute("INSERT INTO kept VALUES (8)")
        connection.execute("COMMIT")
        _insert_elsewhere()


def _writes(count: int) -> None:
    connection = connected()
    connection.execute("PRAGMA wal_autocheckpoint=8")
    put(connection, count)


def _reads(*, ends: bool) -> None:
    connection = sqlite3.connect(DATABASE, isolation_level=None)
    rows = connection.execute("SELECT value FROM kept")
    rows.fetchone()
    if ends:
        rows.close()
    Path("reading").touch()
    until(Path("done").exists)


def _writes_beside_a_reader(*, ends: bool) -> None:
    in_child(lambda: put(connected(), 3))
    reader = os.fork()
    if reader == 0:
        _reads(ends=ends)
        os._exit(0)
    until(Path("reading").exists)
    _writes(100)
    Path("done").touch()
    os.waitpid(reader, 0)


def starves() -> None:
    """Leave a cursor open while another process writes."""
    _writes_beside_a_reader(ends=False)


def reads_to_its_end() -> None:
    """Close the cursor."""
    _writes_beside_a_reader(ends=True)


# Commits


def acknowledges_early() -> None:
    """Acknowledge a commit that synchronous=NORMAL does not flush."""
    connection = connected()
    connection.execute("PRAGMA synchronous=NORMAL")
    put(connection)
    Marks.from_environment().ack("put", 1)


def acknowledges_unflushed() -> None:
    """Do the same with a rollback journal and synchronous=OFF."""
    connection = connected(mode="delete")
    connection.execute("PRAGMA synchronous=OFF")
    put(connection)
    Marks.from_environment().ack("put", 1)


def acknowledges() -> None:
    """Acknowledge what synchronous=FULL has flushed, in both modes."""
    for number, mode in enumerate(("wal", "delete")):
        connection = connected(mode=mode, path=Path(f"{mode}.db"))
        connection.execute("PRAGMA synchronous=FULL")
        put(connection)
        Marks.from_environment().ack("put", number)


PLANTED: dict[Callable[[], None], tuple[str, str, str]] = {
    peeks: ("locks-cancelled", "in is_sqlite", "in connected"),
    peeks_while_it_vacuums: ("locks-cancelled", "in is_sqlite", "in peeks_while_it_vacuums"),
    peeks_at_the_index: ("locks-cancelled", "in peeks_at_the_index", "in connected"),
    cleans_up: ("generation-split", "in cleans_up", "in connected"),
    removes_the_log: ("log-removed", "in removes_the_log", "3 frames"),
    removes_the_journal: ("journal-removed", "in removes_the_journal", "has written and not finished"),
    restores: ("replaced", "in restores", "in connected"),
    restores_in_place: ("overwritten", "in restores_in_place", "in connected"),
    leaves_the_log_behind: ("unpaired", "in leaves_the_log_behind", "moved.db"),
    forks: ("carried-over-fork", "in put", "in connected"),
    forks_and_connects: ("carried-over-fork", "in connected", "the child's own connection"),
    backs_up: ("copied-without-log", "in <lambda>", "in put"),
    backs_up_by_cp: ("copied-without-log", "in backs_up_by_cp", "in put"),
    backs_up_under_a_writer: ("copied-while-written", "in backs_up_under_a_writer", "in put"),
    upgrades: ("stale-upgrade", "in upgrades", "in _insert_elsewhere"),
    upgrades_between_threads: ("stale-upgrade", "in upgrades_between_threads", "in put in another thread"),
    starves: ("log-starved", "in _reads", "in put"),
    acknowledges_early: ("acknowledged-unflushed", "in acknowledges_early", "in put"),
    acknowledges_unflushed: ("acknowledged-unflushed", "in acknowledges_unflushed", "in put"),
}
"""Each planted program, the finding that names it, and what its text has of both parties."""


def opens_what_a_killed_process_left() -> None:
    """Roll back the transaction of a process that was killed in it, and go on in WAL mode.

    The kernel has dropped the locks of the dead, and no call of theirs says so.
    """
    with contextlib.closing(connected(mode="delete")) as connection:
        connection.execute("INSERT INTO kept VALUES (zeroblob(200000))")
    program = "import os, signal, sqlite3; c = sqlite3.connect('state.db', isolation_level=None)\n"
    program += "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN')\n"
    program += "c.execute('UPDATE kept SET value = randomblob(200000)'); os.kill(os.getpid(), signal.SIGKILL)\n"
    subprocess.run([sys.executable, "-c", program], check=False)
    assert JOURNAL.stat().st_size
    with contextlib.closing(connected()) as connection:
        put(connection, 2)
    with contextlib.closing(sqlite3.connect(DATABASE)) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (3,)


SOUND = (
    opens_what_a_killed_process_left,
    peeks_before,
    cleans_up_nothing,
    keeps_the_log,
    leaves_the_journal,
    restores_by_sqlite,
    moves_all,
    forks_first,
    backs_up_by_sqlite,
    begins_immediately,
    begins_immediately_between_threads,
    reads_to_its_end,
    acknowledges,
)
