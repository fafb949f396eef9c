"""The sync queue: in order, at least once, with growing pauses,
and with two copies of which either may be lost.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import ManualClock, Roots, StateGroup, StateStore, SyncEntry, SyncQueue
from durable_agents.errors import InvalidSetting, InvalidSyncEntry, PushFailed, SyncQueueFull, SyncQueueNotWritten
from durable_agents.state.sync_queue import SYNC_QUEUE_KEY

from tests.recovery.disks import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DISPATCHES: Final = [{"workspace": "core/go-io/task-5", "status": "completed"}]


class Receiver:
    """What takes pushes, in memory: it fails as often as it is told to."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.asked: list[str] = []
        self.failures = 0

    def __call__(self, entry: SyncEntry) -> None:
        """Take an entry."""
        self.asked.append(entry.agent_id)
        if self.failures:
            self.failures -= 1
            message = f"{entry.agent_id} was refused"
            raise PushFailed(message)
        self.taken.append(entry.agent_id)


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "root"))


@pytest.fixture(name="state")
def _state(roots: Roots) -> Iterator[StateStore]:
    roots.make()
    with StateStore(db_path=roots.database) as state:
        yield state


@pytest.fixture(name="receiver")
def _receiver() -> Receiver:
    return Receiver()


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(name="queue")
def _queue(roots: Roots, state: StateStore, receiver: Receiver, clock: ManualClock) -> SyncQueue:
    return SyncQueue(roots, state, receiver, clock=clock)


def file_of(roots: Roots) -> Path:
    """Return the file copy."""
    return roots.state / "sync_queue.json"


def agents(queue: SyncQueue) -> list[str]:
    """Return whose entries wait."""
    return [entry.agent_id for entry in queue.entries()]


def test_an_entry_is_in_both_copies(queue: SyncQueue, state: StateStore, roots: Roots) -> None:
    """Seed: agent, moment and dispatches come back from the store, from the file,
    and from the queue.
    """
    entry = queue.enqueue("charon", DISPATCHES)
    for copy in (state.get(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY), json.loads(file_of(roots).read_text())):
        (kept,) = copy["entries"]
        assert (kept["agent_id"], kept["queued_at"], kept["dispatches"]) == ("charon", entry.queued_at, DISPATCHES)
    assert queue.entries() == (entry,)


def test_an_empty_queue_has_no_row(queue: SyncQueue, state: StateStore, receiver: Receiver) -> None:
    """Seed: pushed, or dropped, the last entry takes the row with it."""
    queue.enqueue("charon", DISPATCHES)
    assert state.count(StateGroup.SYNC_QUEUE) == 1
    assert queue.run_once().pushed == 1
    assert (state.count(StateGroup.SYNC_QUEUE), queue.entries(), receiver.taken) == (0, (), ["charon"])
    entry = queue.enqueue("again", [])
    assert queue.drop(entry.key)
    assert not queue.drop(entry.key)
    assert (state.count(StateGroup.SYNC_QUEUE), queue.entries()) == (0, ())


def test_entries_are_pushed_in_their_order(queue: SyncQueue, receiver: Receiver) -> None:
    """One run takes them all while nothing fails."""
    for name in "abcd":
        queue.enqueue(name, [])
    assert queue.run_once().pushed == 4
    assert receiver.taken == list("abcd")


def test_nobody_overtakes_the_head(queue: SyncQueue, receiver: Receiver, clock: ManualClock) -> None:
    """While the head fails no other is tried; then all go, in order."""
    for name in "abc":
        queue.enqueue(name, [])
    receiver.failures = 3
    found = queue.run_once()
    assert (found.pushed, found.waiting, found.error) == (0, 3, "a was refused")
    for _ in range(4):
        clock.advance(61)
        queue.run_once()
    assert receiver.asked == ["a", "a", "a", "a", "b", "c"]
    assert receiver.taken == list("abc")


def test_the_pauses_grow_and_stay_at_five_minutes(queue: SyncQueue, receiver: Receiver, clock: ManualClock) -> None:
    """1, 5, 15, 60, 300, 300 s: a moment before nothing is asked, at it the head is."""
    queue.enqueue("a", [])
    receiver.failures = 100
    queue.run_once()
    for number, pause_s in enumerate((1, 5, 15, 60, 300, 300, 300), start=1):
        clock.advance(pause_s - 0.001)
        assert queue.run_once().next_attempt_at == clock.now() + 1000
        assert len(receiver.asked) == number
        clock.advance(0.001)
        queue.run_once()
        assert len(receiver.asked) == number + 1
    assert queue.entries()[0].attempts == 8


def test_a_push_that_raises_anything_is_put_off(roots: Roots, state: StateStore, clock: ManualClock) -> None:
    """Else the head would be tried again without a pause,
    and nobody would find a reason in the queue.
    """

    def push(entry: SyncEntry) -> None:
        entry.dispatches[0]["workspace"]

    queue = SyncQueue(roots, state, push, clock=clock)
    queue.enqueue("charon", [{}])
    found = queue.run_once()
    assert (found.pushed, found.waiting) == (0, 1)
    assert "KeyError: 'workspace'" in found.error
    assert queue.entries()[0].next_attempt_at > clock.now()


def test_each_entry_begins_with_the_shortest_pause(queue: SyncQueue, receiver: Receiver, clock: ManualClock) -> None:
    """What the head has suffered is not the next one's."""
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    receiver.failures = 2
    queue.run_once()
    clock.advance(1)
    queue.run_once()
    clock.advance(5)
    receiver.failures = 0
    queue.run_once()
    receiver.failures = 1
    queue.enqueue("c", [])
    found = queue.run_once()
    assert found.next_attempt_at == clock.now() + 1_000_000


def test_pauses_survive_a_restart(roots: Roots, state: StateStore, queue: SyncQueue, receiver: Receiver) -> None:
    """Another process does not ask sooner, and under the same key."""
    key = queue.enqueue("a", []).key
    receiver.failures = 1
    queue.run_once()
    clock = ManualClock()
    again = SyncQueue(roots, state, receiver, clock=clock)
    assert (again.run_once().pushed, len(receiver.asked)) == (0, 1)
    assert (again.entries()[0].key, again.entries()[0].attempts) == (key, 1)
    clock.advance(1)
    assert again.run_once().pushed == 1


def test_a_clock_that_was_set_back_does_not_stop_the_queue(
    queue: SyncQueue, receiver: Receiver, clock: ManualClock
) -> None:
    """A pause that is longer than the longest one cannot be meant."""
    queue.enqueue("a", [])
    receiver.failures = 1
    queue.run_once()
    clock.jump(clock.now() - 10**12)
    assert queue.run_once().pushed == 1


def test_a_key_of_the_callers_own_is_queued_once(queue: SyncQueue) -> None:
    """A caller that was killed and asks again gets what waits."""
    first = queue.enqueue("a", DISPATCHES, key="mine")
    assert queue.enqueue("a", DISPATCHES, key="mine") == first
    assert len(queue.entries()) == 1


def test_a_full_queue_says_so(roots: Roots, state: StateStore, receiver: Receiver) -> None:
    """The bound is told with what stands at the head; nothing is lost of what waits."""
    queue = SyncQueue(roots, state, receiver, entries_max=2)
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    with pytest.raises(SyncQueueFull, match="got 2 that wait"):
        queue.enqueue("c", [])
    assert agents(queue) == ["a", "b"]
    with pytest.raises(InvalidSetting):
        SyncQueue(roots, state, receiver, entries_max=0)


def _gone(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def _not_utf8(file: Path) -> None:
    file.write_bytes(b'{"revision": 9, "entries": [], "x": "\xff"}')


def _something_else(file: Path) -> None:
    file.write_text("[1, 2]")


@pytest.mark.parametrize("lose", [_gone, _empty, _torn, _not_utf8, _something_else])
def test_a_lost_file_is_made_up_for_by_the_store(
    queue: SyncQueue, roots: Roots, receiver: Receiver, lose: Callable[[Path], None]
) -> None:
    """Seed: rotated, wiped or damaged, the next write makes it whole;
    nothing is pushed twice or lost.
    """
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    lose(file_of(roots))
    assert agents(queue) == ["a", "b"]
    queue.enqueue("c", [])
    assert [entry["agent_id"] for entry in json.loads(file_of(roots).read_text())["entries"]] == ["a", "b", "c"]
    queue.run_once()
    assert receiver.taken == ["a", "b", "c"]


def _folder(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(file: Path, outside: Path) -> None:
    file.unlink()
    file.symlink_to(outside)


def _newer(file: Path, _: Path) -> None:
    file.write_text('{"version": 2, "revision": 99, "entries": "otherwise"}')


def _large(file: Path, _: Path) -> None:
    os.truncate(file, 100 * 1024 * 1024)


@pytest.mark.parametrize("lay", [_folder, _link, _newer, _large])
def test_a_file_that_is_not_ours_is_left_and_the_store_has_the_queue(
    queue: SyncQueue,
    roots: Roots,
    receiver: Receiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lay: Callable[[Path, Path], None],
) -> None:
    """It is told, it stays as it is, and no old entry of it ever comes back,
    however often the queue runs empty.
    """
    outside = tmp_path / "outside"
    outside.write_text("kept")
    queue.enqueue("a", [])
    lay(file_of(roots), outside)
    before = os.lstat(file_of(roots))
    with caplog.at_level(logging.WARNING):
        queue.enqueue("b", [])
        assert [queue.run_once().pushed for _ in range(3)] == [2, 0, 0]
    assert receiver.taken == ["a", "b"]
    assert (os.lstat(file_of(roots)), outside.read_text()) == (before, "kept")
    assert {record.getMessage().partition(" fails")[0].rpartition(", its ")[2] for record in caplog.records} <= {
        "file",
        "file read",
    }
    assert 1 <= len(caplog.records) <= 2


def test_a_file_that_could_not_be_written_brings_nothing_back(
    queue: SyncQueue, roots: Roots, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still holds what was pushed meanwhile;
    the row of the empty queue says that this is over.
    """
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    kept = file_of(roots).read_bytes()
    file_of(roots).unlink()
    file_of(roots).mkdir()
    assert queue.run_once().pushed == 2
    file_of(roots).rmdir()
    file_of(roots).write_bytes(kept)
    assert (queue.run_once().pushed, receiver.taken) == (0, ["a", "b"])


def test_a_lost_store_is_made_up_for_by_the_file(queue: SyncQueue, roots: Roots, state: StateStore) -> None:
    """The database is gone; the queue goes on from the file,
    and both are whole again with the next write.
    """
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    state.close()
    for path in roots.state.glob("db.sqlite*"):
        path.unlink()
    receiver = Receiver()
    with StateStore(db_path=roots.database) as fresh:
        again = SyncQueue(roots, fresh, receiver)
        assert agents(again) == ["a", "b"]
        again.enqueue("c", [])
        assert len(fresh.get(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY)["entries"]) == 3
        assert again.run_once().pushed == 3
    assert receiver.taken == ["a", "b", "c"]


def test_without_a_store_the_file_is_the_queue(roots: Roots, receiver: Receiver) -> None:
    """It degrades to one copy, in order, over restarts."""
    roots.make()
    roots.database.mkdir()
    for number in range(3):
        with StateStore(db_path=roots.database) as state:
            SyncQueue(roots, state, receiver).enqueue(str(number), [])
    with StateStore(db_path=roots.database) as state:
        assert SyncQueue(roots, state, receiver).run_once().pushed == 3
        assert SyncQueue(roots, state, receiver).run_once().pushed == 0
    assert receiver.taken == ["0", "1", "2"]


def test_with_neither_copy_nothing_is_queued(roots: Roots, receiver: Receiver) -> None:
    """The caller is told, since nobody would remember."""
    roots.make()
    roots.database.mkdir()
    file_of(roots).mkdir()
    with StateStore(db_path=roots.database) as state, pytest.raises(SyncQueueNotWritten, match="got two errors"):
        SyncQueue(roots, state, receiver).enqueue("a", [])


def test_on_a_full_disk_nothing_is_queued_and_nothing_lost(tmp_path: Path, receiver: Receiver) -> None:
    """The caller is told; what waited waits, and goes out once there is room."""
    with small_disk(tmp_path / "disk") as disk:
        roots = Roots(str(disk))
        with StateStore(db_path=roots.database) as state:
            queue = SyncQueue(roots, state, receiver)
            queue.enqueue("a", [])
            filler = fill(disk)
            with pytest.raises(SyncQueueNotWritten):
                queue.enqueue("b", [{"large": "x" * 16_000}])
            assert agents(queue) == ["a"]
            filler.unlink()
            assert queue.run_once().pushed == 1
    assert receiver.taken == ["a"]


def test_two_pushers_at_once_dequeue_once(roots: Roots, state: StateStore, receiver: Receiver) -> None:
    """While one sends, another sends and dequeues the same:
    the first finds it gone, and takes no other for it.
    """
    other = SyncQueue(roots, state, receiver)

    def slowly(entry: SyncEntry) -> None:
        if entry.agent_id == "a":
            other.run_once()
            other.enqueue("c", [])
        receiver(entry)

    queue = SyncQueue(roots, state, slowly)
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    queue.run_once()
    assert receiver.taken == ["a", "b", "a", "c"]
    assert queue.entries() == ()


@pytest.mark.parametrize(
    ("agent_id", "dispatches", "key"),
    [
        ("", [], None),
        (7, [], None),
        ("a" * 201, [], None),
        ("a", ["text"], None),
        ("a", [{1: 2}], None),
        ("a", [{"x": float("nan")}], None),
        ("a", [{"x": "y" * 100_000}], None),
        ("a", [], "ключ"),
        ("a", [], "a\r\nX-Forged: 1"),
        ("\ud800", [], None),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(queue: SyncQueue, agent_id: Any, dispatches: Any, key: Any) -> None:
    """Nothing is queued, in either copy."""
    with pytest.raises(InvalidSyncEntry):
        queue.enqueue(agent_id, dispatches, key=key)
    assert queue.entries() == ()


def test_many_threads_lose_nothing(queue: SyncQueue) -> None:
    """Each entry of many at once is there."""
    threads = [threading.Thread(target=queue.enqueue, args=(str(number), [])) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(agents(queue)) == sorted(str(number) for number in range(24))
