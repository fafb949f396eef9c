"""Many writers on one database and one task: nothing lost, nothing twice, nobody turned away,
nobody starved.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents import CheckpointManager, TaskManager, open_store
from durable_agents.errors import DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable
from durable_agents.file_lock import FileLock, release, try_lock
from durable_agents.store.sqlite.write_lock_queue import SUFFIX, WriteLockQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore

_TIMEOUT_S: Final = 60
_WRITERS: Final = 10
_EACH: Final = 40

_WRITER: Final = """
import json, sys
from durable_agents import CheckpointManager, open_store
path, name, each = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open_store(path, queue_writers=True) as store:
    manager = CheckpointManager(store)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([manager.save("t", [name, n]).sequence_number for n in range(each)]))
"""

_HOLDER: Final = """
import sys
from durable_agents import open_store
with open_store(sys.argv[1], queue_writers=True) as store, store.transaction():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(name="store")
def _store(path: Path) -> Iterator[SqliteStore]:
    with open_store(path, busy_timeout_s=0.3, queue_writers=True) as store:
        TaskManager(store).create("t")
        yield store


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_ten_processes_share_one_task(path: Path, store: SqliteStore) -> None:
    """Every number once and none left out, and no writer waits until the others are done."""
    writers = [started(_WRITER, str(path), str(number), str(_EACH)) for number in range(_WRITERS)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    numbers = [json.loads(writer.communicate(timeout=_TIMEOUT_S)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * _WRITERS
    assert sorted(itertools.chain(*numbers)) == list(range(1, _WRITERS * _EACH + 1))
    saved = CheckpointManager(store).list("t")
    assert sorted(row.snapshot for row in saved) == sorted([str(w), n] for w in range(_WRITERS) for n in range(_EACH))
    waits = [later - earlier for taken in numbers for earlier, later in itertools.pairwise(taken)]
    # A writer that the machine does not run takes no turn, so the bound is not the queue's length.
    # A starved one waits for nearly all that the others do: that is what is ruled out here; how
    # evenly turns fall is for the benchmark.
    assert max(waits) <= _WRITERS * _EACH // 2


def test_a_stopped_holder_is_named(path: Path, store: SqliteStore) -> None:
    """The wait for a turn has a bound, and its error says which process has it;
    killed, it holds up nobody.
    """
    holder = started(_HOLDER, str(path))
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(DatabaseLocked, match=rf"process {holder.pid} was the last to get one"):
        CheckpointManager(store).save("t", 1)
    holder.kill()
    holder.communicate()
    assert CheckpointManager(store).save("t", 2).sequence_number == 1


def test_a_wait_that_was_given_up_keeps_nobody_out(path: Path, store: SqliteStore) -> None:
    """The lock that comes too late is given on."""
    holder = started(_HOLDER, str(path))
    for _ in range(3):
        with pytest.raises(DatabaseLocked):
            CheckpointManager(store).save("t", 1)
    holder.communicate("end\n", timeout=_TIMEOUT_S)
    with CheckpointManager(db_path=path) as manager:
        assert [manager.save("t", number).sequence_number for number in range(3)] == [1, 2, 3]


def test_trying_while_the_queue_stands_still_uses_nothing_up(path: Path, store: SqliteStore) -> None:
    """Its head is stopped, say. However often somebody tries, one thread waits;
    when the head goes on, all is well.
    """
    place = os.open(f"{path}{SUFFIX}", os.O_RDWR | os.O_CREAT)
    assert try_lock(place)
    with open_store(path, busy_timeout_s=0.02) as impatient:
        used: list[int] = []
        for number in range(10):
            with pytest.raises(DatabaseLocked):
                CheckpointManager(impatient).save("t", number)
            used.append(len(os.listdir("/proc/self/fd")))
        assert used == used[:1] * 10
    release(place)
    with CheckpointManager(db_path=path) as manager:
        assert manager.save("t", "all is well").sequence_number == 1


def test_a_place_that_was_given_up_is_taken_over(path: Path, store: SqliteStore) -> None:
    """The next writer of the same store need not go to the end of the queue."""
    place = os.open(f"{path}{SUFFIX}", os.O_RDWR | os.O_CREAT)
    assert try_lock(place)
    lock = FileLock(f"{path}{SUFFIX}")
    assert lock.acquire(0.02) is None
    waiter = lock._waiter
    assert waiter is not None

    def give_when_it_was_taken_over() -> None:
        pause = threading.Event()
        for _ in range(6000):
            if not waiter._is_abandoned:
                break
            pause.wait(0.01)
        release(place)

    giver = threading.Thread(target=give_when_it_was_taken_over)
    giver.start()
    mine = lock.acquire(_TIMEOUT_S)
    giver.join()
    assert mine == waiter.descriptor
    release(mine)
    assert CheckpointManager(store).save("t", 1).sequence_number == 1


def test_a_writer_outside_the_queue_is_waited_for(path: Path, store: SqliteStore) -> None:
    """The queue is an order and not the exclusion: another program's transaction counts,
    and its end is noticed.
    """
    with open_store(path) as other:
        with other.transaction(), pytest.raises(DatabaseLocked, match="was the last to get one"):
            CheckpointManager(store).save("t", 1)
        assert CheckpointManager(store).save("t", 1).sequence_number == 1
        assert CheckpointManager(other).save("t", 2).sequence_number == 2


def test_a_turn_ends_with_its_transaction_however_that_ends(store: SqliteStore) -> None:
    """After an exception in the block, and after one in BEGIN,
    the next writer gets its turn at once.
    """
    for _ in range(3):
        with pytest.raises(KeyError), store.transaction():
            raise KeyError
    assert CheckpointManager(store).save("t", 1).sequence_number == 1


def test_a_child_that_is_forked_in_the_queue_does_not_keep_it(store: SqliteStore, path: Path) -> None:
    """The child has a copy of the descriptor and with it of the lock;
    who gives its place up gives up both.
    """
    place = os.open(f"{path}{SUFFIX}", os.O_RDWR | os.O_CREAT)
    assert try_lock(place)
    reader, writer = os.pipe()
    child = subprocess.Popen(["cat"], stdin=reader, pass_fds=[place])
    os.close(reader)
    release(place)
    assert CheckpointManager(store).save("t", 1).sequence_number == 1
    os.close(writer)
    assert child.wait(_TIMEOUT_S) == 0


def test_threads_queue_too(store: SqliteStore, path: Path) -> None:
    """Eight threads of one process on one store: every number once."""
    manager = CheckpointManager(db_path=path)
    assert manager.store is not store
    taken: list[int] = []

    def write() -> None:
        taken.extend(manager.save("t", number).sequence_number for number in range(10))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_TIMEOUT_S)
    manager.close()
    assert sorted(taken) == list(range(1, 81))


def test_a_lock_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A folder that is missing, and one in the place of the file, are named."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        with pytest.raises(DatabaseUnavailable, match="No such file"):
            WriteLockQueue(str(tmp_path / "missing" / "store.db"), 1).begin(connection)
        (tmp_path / f"store.db{SUFFIX}").mkdir()
        with pytest.raises((DatabaseUnavailable, DatabaseReadOnly), match="directory"):
            WriteLockQueue(str(tmp_path / "store.db"), 1).begin(connection)
        assert not connection.in_transaction
