"""Workloads: operations from a seed, and clients whose marks are a history that can be judged."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos import History, Marks
from pytest_chaos.checkers.elements import total_queue
from pytest_chaos.checkers.isolation import list_append
from pytest_chaos.checkers.linearizability import linearizable
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Outcome, calls_of
from pytest_chaos.model.seed import stream
from pytest_chaos.workloads.clients import append_lists, do, lock_and_unlock, put_and_take
from pytest_chaos.workloads.generators import ZipfKeys, transactions

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_seed_gives_the_same_transactions() -> None:
    """Operations depend on seed, client and number alone, so a client can go on where it was."""
    assert list(transactions("s", 1, 5))[3:] == list(transactions("s", 1, 2, first=3))
    assert list(transactions("s", 1, 5)) != list(transactions("s", 2, 5))
    appended = [step[1:] for _, steps in transactions("s", 1, 500) for step in steps if step[0] == "append"]
    assert len({tuple(each) for each in appended}) == len(appended)


def test_few_keys_get_most_of_the_load() -> None:
    """The first of eight keys comes about twice as often as the second."""
    keys = ZipfKeys(8, stream("s", "keys"))
    counted = Counter(keys.draw() for _ in range(4000))
    assert [key for key, _ in counted.most_common(2)] == [0, 1]
    assert 1.8 < counted[0] / counted[1] < 2.6
    with pytest.raises(UsageError, match="keys must be 1 or more, and their exponent 0 or more; got 0"):
        ZipfKeys(0, stream("s", "keys"))


def history(path: Path) -> History:
    """Return the marks of a file."""
    return History.from_lines(path.read_bytes())


def test_a_database_is_tried_in_ten_lines(tmp_path: Path) -> None:
    """``txn(connection, operations)`` is all that list-append needs: here of SQLite."""

    def txn(connection: sqlite3.Connection, operations: list[list[Any]]) -> list[list[Any]]:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for operation in operations:
                if operation[0] == "append":
                    connection.execute("INSERT INTO items VALUES (?, ?)", operation[1:])
                else:
                    found = connection.execute("SELECT item FROM items WHERE key = ? ORDER BY rowid", operation[1:2])
                    operation[2] = [item for (item,) in found]
        return operations

    connection = sqlite3.connect(tmp_path / "lists.db", isolation_level=None)
    connection.execute("CREATE TABLE items (key TEXT, item TEXT)")
    for client in (0, 1):
        append_lists(Marks(tmp_path / "marks"), txn, connection, seed="s", client=client, count=50)
    connection.close()
    assert len(calls_of(history(tmp_path / "marks"))) == 100
    assert list_append()(history(tmp_path / "marks")) == ()


def test_a_queue_and_a_lock_are_tried(tmp_path: Path) -> None:
    """The marks of both clients can be judged; a lock that never frees is refused."""
    queue: list[str] = []
    put_and_take(Marks(tmp_path / "queue"), queue.append, lambda: queue.pop(0) if queue else None, client=1)
    assert total_queue()(history(tmp_path / "queue")) == ()
    assert linearizable("queue")(history(tmp_path / "queue")) == ()
    tokens = iter(range(1, 1000))
    lock_and_unlock(Marks(tmp_path / "lock"), lambda: next(tokens), lambda _: None, count=5)
    assert linearizable("lock")(history(tmp_path / "lock")) == ()
    lock_and_unlock(Marks(tmp_path / "held"), lambda: next(tokens), lambda _: False, count=2)
    assert linearizable("lock")(history(tmp_path / "held"))


def test_what_the_target_raises_is_unknown_unless_it_refuses(tmp_path: Path) -> None:
    """An exception leaves the outcome unknown; one that is a refusal says that nothing happened."""

    def fail() -> None:
        raise ConnectionError

    marks = Marks(tmp_path / "marks")
    assert do(marks, "write", "x", 1, fail) is None
    assert do(marks, "write", "x", 2, fail, refusals=(ConnectionError,)) is None
    assert do(marks, "write", "x", 3, lambda: "done") == "done"
    outcomes = [call.outcome for call in calls_of(history(tmp_path / "marks"))]
    assert outcomes == [Outcome.UNKNOWN, Outcome.FAIL, Outcome.OK]
