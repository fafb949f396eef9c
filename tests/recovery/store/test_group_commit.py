"""Threads of one process share a commit: all of it or nothing, nobody undone by another,
nobody told too early.

It is long because each way in which one of them can go wrong, or be interrupted, is a test on all
of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents import CheckpointManager, SqliteStore, TaskManager, open_store
from durable_agents.errors import DatabaseFull, DatabaseLocked, DatabaseUnavailable, InheritedTransaction, StoreError
from durable_agents.store import ConnectionFactory, init_factory
from durable_agents.store.rows import Audit
from durable_agents.store.sqlite import group_commit

from tests.recovery.interrupts import Interrupt
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from durable_agents.store.sqlite.store import SqliteTransaction

_TIMEOUT_S: Final = 60.0
_STORE_CODE: Final = ("file_lock.py", "sqlite/group_commit.py", "sqlite/store.py", "sqlite/write_lock_queue.py")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(autouse=True)
def _ageless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no group end by its age: a busy machine would decide then what these tests find."""
    monkeypatch.setattr(group_commit, "AGE_S_MAX", 3600.0)


@pytest.fixture(name="store")
def _store(path: Path) -> Iterator[SqliteStore]:
    with open_store(path) as store:
        TaskManager(store).create("t")
        yield store


class Writer(threading.Thread):
    """A thread whose one block does ``work``, when it is its turn, and ends when it may."""

    def __init__(self, store: SqliteStore, work: Callable[[SqliteTransaction], object]) -> None:
        super().__init__(daemon=True)
        self.store, self.work = store, work
        self.inside, self.may_end = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do the block and keep what it raised."""
        try:
            with self.store.transaction() as transaction:
                self.inside.set()
                assert self.may_end.wait(_TIMEOUT_S)
                self.work(transaction)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> BaseException | None:
        """Wait for its end and return what it raised."""
        self.join(_TIMEOUT_S)
        assert not self.is_alive()
        return self.error


def note(name: str) -> Callable[[SqliteTransaction], object]:
    """Return work that adds an audit row of this name."""
    return lambda transaction: transaction.insert_audit(Audit("t", name, None, None, "", 1))


def queued(store: SqliteStore, *works: Callable[[SqliteTransaction], object]) -> list[Writer]:
    """Start a writer for each piece of work: the first is in its block,
    the others wait behind it in this order.
    """
    writers: list[Writer] = []
    for number, work in enumerate(works):
        writers.append(Writer(store, work))
        if number == 0:
            assert writers[0].inside.wait(_TIMEOUT_S)
        until(lambda wanted=number: len(store.group_commit._queue) == wanted)  # type: ignore[misc]
    return writers


def all_end(writers: list[Writer]) -> list[BaseException | None]:
    """Let every block end and return what each raised."""
    for writer in writers:
        writer.may_end.set()
    return [writer.ended() for writer in writers]


def events(store: SqliteStore) -> list[str]:
    """Return the names of the audit rows, without the one of the task's creation."""
    return [audit.event for audit in store.audits("t")][1:]


def traced(store: SqliteStore) -> Counter[str]:
    """Return a counter of the statements of the store's one connection, by their first word."""
    counter: Counter[str] = Counter()
    connection = store.borrow()
    connection.set_trace_callback(lambda statement: counter.update([statement.split()[0]]))
    store.give_back(connection)
    return counter


@pytest.mark.parametrize("is_wrong", [False, True], ids=["kept", "raises"])
def test_an_interrupt_anywhere_leaves_the_store_to_others(store: SqliteStore, path: Path, is_wrong: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Wherever Ctrl-C comes: a block is there or not, one that raised is not,
    and others can write at once.
    """
    number, was_interrupted, kept = 0, True, 0
    with open_store(path, busy_timeout_s=30.0) as other:
        while was_interrupted:
            number += 1
            was_interrupted = _interrupted(store, number, is_wrong=is_wrong)
            found = events(store)
            assert len(found) - kept in ({0} if is_wrong else {0, 1} if was_interrupted else {1})
            for each in (other, store):
                with each.transaction() as transaction:
                    transaction.insert_audit(Audit("t", "after", None, None, "", 1))
            kept = len(found) + 2
            assert len(events(store)) == kept
    assert number > 20, "the interrupts did not come at all"


def _interrupted(store: SqliteStore, number: int, *, is_wrong: bool) -> bool:
    """Write in a block that is interrupted at this moment;
    return whether there was such a moment.
    """
    try:
        with Interrupt(number, *_STORE_CODE), store.transaction() as transaction:
            transaction.insert_audit(Audit("t", f"block {number}", None, None, "", 1))
            assert not is_wrong
    except KeyboardInterrupt:
        return True
    except AssertionError:
        pass
    return False


def test_an_interrupt_in_a_common_commit_tells_the_others_what_became_of_theirs(store: SqliteStore) -> None:
    """A thread before the one that is interrupted and two behind it end;
    what was acknowledged to them is there.
    """
    number, was_interrupted = 0, True
    while was_interrupted:
        number += 1
        names = [f"{number} {place}" for place in range(3)]
        (early,) = queued(store, note(names[0]))
        late: list[Writer] = []
        was_interrupted = _interrupted_between(store, number, early, names, late)
        errors = [writer.ended() for writer in (early, *late)]
        found = events(store)
        for name, error in zip(names, errors, strict=True):
            assert error is None or isinstance(error, DatabaseUnavailable)
            assert name in found or error is not None
            assert name not in found or error is None or "Read what became" in str(error)
        assert f"{number} ours" in found or was_interrupted
    assert number > 10, "the interrupts did not come at all"


def _interrupted_between(store: SqliteStore, number: int, early: Writer, names: list[str], late: list[Writer]) -> bool:
    """Join the group of ``early``, let two more wait, and be interrupted at this moment of the end,
    if there is one.
    """

    def let_early_end() -> None:
        until(lambda: len(store.group_commit._queue) == 1)
        early.may_end.set()

    helper = threading.Thread(target=let_early_end)
    helper.start()
    try:
        with store.transaction() as transaction:
            late += [Writer(store, note(name)) for name in names[1:]]
            until(lambda: len(store.group_commit._queue) == len(late))
            for writer in late:
                writer.may_end.set()
            transaction.insert_audit(Audit("t", f"{number} ours", None, None, "", 1))
            Interrupt(number, *_STORE_CODE).__enter__()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        helper.join()
    return False


def test_a_child_that_is_forked_in_a_block_cannot_end_it(store: SqliteStore, path: Path) -> None:
    """It is told so, keeps nothing, and the parent's transaction is as it was."""
    told, tell = os.pipe()
    with store.transaction() as transaction:
        transaction.insert_audit(Audit("t", "before", None, None, "", 1))
        child = os.fork()
        if child == 0:
            transaction.insert_audit(Audit("t", "of the child", None, None, "", 1))
            try:
                transaction.__exit__(None, None, None)
            except InheritedTransaction:
                os.write(tell, b"told")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(told, 10) == b"told"
        transaction.insert_audit(Audit("t", "after", None, None, "", 1))
    assert events(store) == ["before", "after"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    os.close(told)
    os.close(tell)


def test_blocks_that_wait_for_each_other_share_one_commit(store: SqliteStore) -> None:
    """Four threads, one BEGIN and one COMMIT, and everything is there, in their order."""
    statements = traced(store)
    assert all_end(queued(store, *(note(name) for name in "abcd"))) == [None] * 4
    assert (statements["BEGIN"], statements["COMMIT"], statements["SAVEPOINT"]) == (1, 1, 3)
    assert events(store) == ["a", "b", "c", "d"]


def test_one_thread_alone_pays_nothing(store: SqliteStore) -> None:
    """Without others there is no savepoint."""
    statements = traced(store)
    CheckpointManager(store).save("t", 1)
    assert (statements["BEGIN"], statements["COMMIT"], statements["SAVEPOINT"]) == (1, 1, 0)


def test_no_call_returns_before_the_common_commit(store: SqliteStore, path: Path) -> None:
    """A block that has ended is neither acknowledged nor seen by others as long as one of its group
    goes on.
    """
    first, second = queued(store, note("first"), note("second"))
    first.may_end.set()
    assert second.inside.wait(_TIMEOUT_S)
    first.join(0.05)
    assert first.is_alive()
    with open_store(path) as other:
        assert events(other) == events(store) == []
        second.may_end.set()
        assert [first.ended(), second.ended()] == [None, None]
        assert events(other) == ["first", "second"]


class Eager(group_commit.GroupCommit):
    """Planted: a member's call returns when its block has ended,
    and the commit comes when it comes.
    """

    __slots__ = ()

    def _wait(self, group: group_commit.Group, bell: object) -> None:
        """Wait for nobody."""


class AllForOne(group_commit.GroupCommit):
    """Planted: a block that raises rolls back all that is open,
    and the others are told that all is well.
    """

    __slots__ = ()

    def _settle(self, group: group_commit.Group, error: BaseException | None) -> None:
        if error is not None:
            self._end(group, None)
        else:
            super()._settle(group, error)


def test_an_eager_acknowledgement_would_be_seen(store: SqliteStore, path: Path) -> None:
    """With the planted defect, a call returns whose change is not there for others."""
    store._group_commit = Eager(store)
    first, second = queued(store, note("first"), note("second"))
    first.may_end.set()
    assert first.ended() is None
    with open_store(path) as other:
        assert events(other) == []
    assert all_end([second]) == [None]


def test_a_rollback_of_others_would_be_seen(store: SqliteStore) -> None:
    """With the planted defect, a change that was acknowledged is not there."""
    store._group_commit = AllForOne(store)

    def fails(_: SqliteTransaction) -> None:
        raise OwnError

    first, second = all_end(queued(store, note("first"), fails))
    assert first is None
    assert isinstance(second, OwnError)
    assert events(store) == []


class OwnError(Exception):
    """What a block raises by itself."""


class InterruptedBlock(BaseException):
    """What ends a block from outside: no Exception."""


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("kind", [OwnError, InterruptedBlock])
def test_a_block_that_raises_undoes_nobody_else(store: SqliteStore, kind: type[BaseException], which: int) -> None:
    """Whether it is the first, one in between or the last: its own changes go, all others' stay."""

    def fails(transaction: SqliteTransaction) -> None:
        note("never")(transaction)
        raise kind

    works = [note("a"), note("b")]
    works.insert(which, fails)
    raised = all_end(queued(store, *works))
    assert [type(error) for error in raised if error is not None] == [kind]
    assert events(store) == ["a", "b"]
    note_alone(store, "later")


def note_alone(store: SqliteStore, name: str) -> None:
    """Write once more, to see that the seat is free and the connections are sound."""
    before = events(store)
    with store.transaction() as transaction:
        note(name)(transaction)
    assert events(store) == [*before, name]


def test_a_block_among_others_sees_what_they_did(store: SqliteStore) -> None:
    """Numbers go on within a group, so none is given out twice."""
    seen: list[int] = []
    manager = CheckpointManager(store)

    def save(transaction: SqliteTransaction) -> None:
        seen.append(manager.append(transaction, manager.draft("t", 1, type="x")).sequence_number)

    assert all_end(queued(store, *[save] * 5)) == [None] * 5
    assert seen == [1, 2, 3, 4, 5]


def test_an_error_of_the_commit_is_everybodys(store: SqliteStore) -> None:
    """A COMMIT that SQLite refuses keeps nothing, and each of the group is told so,
    by an exception of its own.
    """

    def breaks(transaction: SqliteTransaction) -> None:
        transaction.connection.execute("PRAGMA defer_foreign_keys = 1")
        transaction.insert_audit(Audit("no such task", "x", None, None, "", 1))

    raised = all_end(queued(store, note("a"), breaks, note("b")))
    assert [type(error) for error in raised] == [StoreError] * 3
    assert len({id(error) for error in raised}) == 3
    assert {str(error) for error in raised} == {str(raised[0])}
    assert "FOREIGN KEY" in str(raised[0])
    assert events(store) == []
    note_alone(store, "later")


class SmallFactory(ConnectionFactory):
    """Makes connections that may not let the file grow."""

    __slots__ = ()

    def __call__(self) -> sqlite3.Connection:
        """Open a connection with a limit."""
        connection = ConnectionFactory.__call__(self)
        connection.execute("PRAGMA max_page_count = 1")  # which SQLite takes for as many as there are
        return connection


def test_a_full_disk_is_everybodys_when_it_undoes_everybody(path: Path) -> None:
    """SQLite may roll back all that is open when it finds no room;
    whoever was in it is told, and nothing is half.
    """
    with SqliteStore(init_factory(path)) as store:
        TaskManager(store).create("t")
    with SqliteStore(SmallFactory(**dataclasses.asdict(init_factory(path)))) as store:
        large = Audit("t", "large", None, None, "x" * 100_000, 1)
        raised = all_end(queued(store, note("a"), lambda transaction: transaction.insert_audit(large), note("b")))
        kept = events(store)
        assert isinstance(raised[1], DatabaseFull)
        assert [error is None for error in (raised[0], raised[2])] == ["a" in kept, "b" in kept]
        assert "large" not in kept
        note_alone(store, "later")


def test_a_block_that_goes_on_after_sqlite_rolled_back_is_told(store: SqliteStore) -> None:
    """An end of the transaction behind the store's back is an error of all who were in it."""
    raised = all_end(queued(store, note("a"), lambda transaction: transaction.connection.execute("ROLLBACK")))
    assert [type(error) for error in raised] == [StoreError] * 2
    assert "rollback by SQLite" in str(raised[0])
    assert events(store) == []
    note_alone(store, "later")


def test_the_wait_for_another_thread_has_a_bound(path: Path) -> None:
    """A thread that does not end its block turns others away after the busy timeout,
    and they leave the queue.
    """
    with open_store(path, busy_timeout_s=0.05) as store:
        TaskManager(store).create("t")
        slow = queued(store, note("slow"))
        with pytest.raises(DatabaseLocked, match=r"within 0\.05 s; got no turn, since another thread of this process"):
            note_alone(store, "turned away")
        assert not store.group_commit._queue
        assert all_end(slow) == [None]
        assert events(store) == ["slow"]


def test_a_group_has_an_end(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is full commits although others wait:
    no stream of threads puts off an acknowledgement for ever.
    """
    monkeypatch.setattr(group_commit, "MEMBERS_MAX", 2)
    statements = traced(store)
    assert all_end(queued(store, *(note(name) for name in "abcde"))) == [None] * 5
    assert statements["COMMIT"] == 3
    assert events(store) == ["a", "b", "c", "d", "e"]


def test_an_old_group_takes_nobody_in(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group whose first block was long commits with it, whoever waits."""
    monkeypatch.setattr(group_commit, "AGE_S_MAX", 0.0)
    statements = traced(store)
    assert all_end(queued(store, note("a"), note("b"))) == [None] * 2
    assert statements["COMMIT"] == 2


_THREADS: Final = """
import json, os, sys, threading
from durable_agents import CheckpointManager, open_store
with open_store(sys.argv[1], queue_writers=sys.argv[2] == "queue") as store:
    manager = CheckpointManager(store)
    def write(name):
        for n in range(100_000):
            saved = manager.save("t", [name, n])
            os.write(1, (json.dumps([saved.sequence_number, name, n]) + "\\n").encode())
    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("way", ["queue", "plain"])
def test_what_threads_were_told_survives_a_kill(store: SqliteStore, path: Path, way: str) -> None:
    """Eight threads are killed in full flight: each acknowledged checkpoint is there,
    with its number and content.
    """
    command = [sys.executable, "-c", _THREADS, str(path), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(500)]
        os.kill(process.pid, signal.SIGKILL)
        lines += [line for line in process.stdout if line.endswith(b"\n")]
    rows = {row.sequence_number: row.snapshot for row in CheckpointManager(store).list("t", limit=1_000_000)}
    assert sorted(rows) == list(range(1, len(rows) + 1))
    acknowledged = [json.loads(line) for line in lines]
    assert len(acknowledged) >= 500
    assert all(rows[number] == snapshot for number, *snapshot in acknowledged)


@pytest.mark.parametrize("queue_writers", [True, False])
def test_threads_and_processes_mix(path: Path, *, queue_writers: bool) -> None:
    """Threads of two stores on one file, as two processes would have:
    every number once, no error.
    """
    taken: list[int] = []
    with open_store(path, queue_writers=queue_writers) as one, open_store(path, queue_writers=queue_writers) as two:
        TaskManager(one).create("t")

        def write(store: SqliteStore) -> None:
            manager = CheckpointManager(store)
            taken.extend(manager.save("t", number).sequence_number for number in range(25))

        threads = [threading.Thread(target=write, args=(store,)) for store in (one, two) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_TIMEOUT_S)
    assert sorted(taken) == list(range(1, 201))
