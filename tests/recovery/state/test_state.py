"""Grouped state: what is set is there after a restart, what cannot be kept is refused,
and no store is no memory.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from durable_agents import StateGroup, StateStore, open_store
from durable_agents.errors import CorruptState, DatabaseFull, DatabaseLocked, InvalidSetting, InvalidState, StoreClosed
from durable_agents.state.groups import KEY_BYTES_MAX, VALUE_BYTES_MAX, checked_entry

from tests.recovery.disks import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(name="state")
def _state(path: Path) -> Iterator[StateStore]:
    with StateStore(db_path=path) as state:
        yield state


def test_a_store_is_opened_by_its_first_use_and_once(path: Path) -> None:
    """Nothing is made before it is needed; then all, threads too, get the same store."""
    with StateStore(db_path=path) as state:
        assert not path.exists()
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(lambda _: state.store, range(32)))
        assert path.exists()
        assert stores[0] is not None
        assert all(store is stores[0] for store in stores)


def test_a_store_that_was_given_stays_open(path: Path) -> None:
    """Whoever opened a store closes it."""
    with open_store(path) as store:
        with StateStore(store) as state:
            assert state.set("g", "k", 1)
        assert store.state_count("g") == 1


def test_a_store_or_a_path_and_not_both(path: Path) -> None:
    """Of two stores one would silently win, so neither both nor none can be given."""
    with open_store(path) as store, pytest.raises(InvalidSetting, match="Give exactly one"):
        StateStore(store, db_path=path)
    with pytest.raises(InvalidSetting, match="Give exactly one"):
        StateStore()


def test_what_was_set_is_restored_after_a_restart(path: Path) -> None:
    """Seed: each entry of a group comes back, with its value,
    in another state store on the same file.
    """
    values = {"core/go-io": {"status": "running"}, "core/go-store": {"status": "queued"}, "ключ": [None, 1.5, "x"]}
    with StateStore(db_path=path) as state:
        for key, value in values.items():
            assert state.set(StateGroup.REGISTRY, key, value)
    with StateStore(db_path=path) as state:
        assert dict(state.restore(StateGroup.REGISTRY)) == values
        assert state.get(StateGroup.REGISTRY, "ключ") == [None, 1.5, "x"]
        assert state.get(StateGroup.QUEUE, "ключ") is None


def test_a_restore_walks_every_page_and_may_stop_early(state: StateStore) -> None:
    """More entries than a page come in the order of their keys; who stops reads no further."""
    assert state.store is not None
    with state.store.transaction() as transaction:
        transaction.put_states([checked_entry("g", f"{number:05d}", number) for number in range(1100)])
    assert [value for _, value in state.restore("g")] == list(range(1100))
    walk = state.restore("g")
    assert [key for key, _ in itertools.islice(walk, 2)] == ["00000", "00001"]
    assert state.count("g") == 1100


def test_deleting_what_is_not_there_changes_nothing(state: StateStore) -> None:
    """Seed: an unknown key is no error, and a known one is gone."""
    assert not state.delete("g", "never-existed")
    state.set("g", "real", 1)
    assert state.delete("g", "real")
    assert (state.count("g"), state.get("g", "real")) == (0, None)


def test_close_comes_in_any_order(path: Path) -> None:
    """Seed: closing before opening, and twice, is fine;
    afterwards every call says that it is closed.
    """
    state = StateStore(db_path=path)
    state.close()
    state.close()
    with pytest.raises(StoreClosed):
        state.set("g", "k", 1)
    assert not path.exists()
    opened = StateStore(db_path=path)
    opened.set("g", "k", 1)
    opened.close()
    opened.close()
    with pytest.raises(StoreClosed):
        opened.get("g", "k")


def _folder(path: Path) -> None:
    path.mkdir()


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 1")


def _no_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"in the way")


@pytest.mark.parametrize("spoil", [_folder, _garbage, _foreign, _no_folder])
def test_without_a_store_nothing_is_stored_and_that_is_said_once(
    path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    """A folder, garbage, a stranger's file or a file for a folder:
    reads find nothing, writes say so, one warning.
    """
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with caplog.at_level(logging.WARNING), StateStore(db_path=path) as state:
        assert not state.set("g", "k", 1)
        assert state.get("g", "k") is None
        assert not state.delete("g", "k")
        assert state.count("g") == 0
        assert list(state.restore("g")) == []
        assert list(state.entries("g")) == []
    (warning,) = caplog.records
    assert warning.getMessage().startswith("going on without a state store, nothing will be stored: ")
    assert before == (path.read_bytes() if path.is_file() else b"")


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    """The first agent of all finds nothing, and has a memory."""
    path = tmp_path / "not" / "there" / "state.db"
    with StateStore(db_path=path) as state:
        assert state.get("g", "k") is None
        assert state.set("g", "k", 1)
    assert path.exists()


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    """A store that is there and refuses a write raises, since its caller would rely on it;
    later there is room.
    """
    with small_disk(tmp_path / "disk") as disk, StateStore(db_path=disk / "state.db") as state:
        assert state.set("g", "k", "kept")
        with pytest.raises(DatabaseFull):
            state.set("g", "large", "x" * 2_000_000)
        assert dict(state.restore("g")) == {"k": "kept"}
        assert state.set("g", "k", "later")


@pytest.mark.parametrize("room", [0, 4096, 20_000, 60_000])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there"])
def test_a_disk_that_is_full_at_the_opening_is_no_reason_to_go_without_a_store(
    tmp_path: Path,
    room: int,
    is_there: bool,  # noqa: FBT001 - a parameter of the test
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever of the store finds no room: reads and writes raise alike, nobody is told of a loss,
    and it passes.
    """
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "state.db"
        if is_there:
            with StateStore(db_path=path) as before:
                assert before.set("g", "k", "kept")
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - room)
        with StateStore(db_path=path) as state:
            if not (is_there and room > 40_000):  # an existing one needs no more to be opened and read
                with pytest.raises(DatabaseFull, match=r"(?i)free some space"):
                    state.get("g", "k")
            with pytest.raises(DatabaseFull, match=r"(?i)free some space"):
                state.set("g", "large", "x" * 200_000)
            filler.unlink()
            assert state.get("g", "k") == ("kept" if is_there else None)
            assert state.set("g", "k", "later")
    assert caplog.records == []


def test_a_folder_that_finds_no_room_is_no_reason_to_go_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota counts as a full disk; when there is room the folder is made,
    and the store with it.
    """

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with StateStore(db_path=tmp_path / "new" / "state.db") as state:
        with monkeypatch.context() as patched:
            patched.setattr("pathlib.Path.mkdir", refuse)
            with pytest.raises(DatabaseFull, match=r"(?i)free some space"):
                state.set("g", "k", 1)
        assert state.set("g", "k", 1)


def test_a_locked_database_is_no_reason_to_go_without_a_store(path: Path) -> None:
    """A lock passes: it is raised, and the next call finds the store."""
    open_store(path).close()
    with open_store(path, busy_timeout_s=0.05) as quick, StateStore(quick) as state:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseLocked):
                state.set("g", "k", 1)
            other.execute("ROLLBACK")
        assert state.set("g", "k", 1)


@pytest.mark.parametrize("name", ["", "k" * 1_048_576, "k" * (KEY_BYTES_MAX + 1), "ж" * 513, "a\0b", "\ud800", 7, None])
def test_a_key_or_group_that_cannot_be_kept_is_refused(state: StateStore, name: str) -> None:
    """Empty, a megabyte, NUL, not UTF-8, not text:
    the error is typed, short, and nothing changes.
    """
    state.set("g", "k", 1)
    for call in (lambda: state.set("g", name, 1), lambda: state.get(name, "k"), lambda: state.delete("g", name)):
        with pytest.raises(InvalidState, match=r"^(key|group) must be 1 to 1024 bytes of text; got") as caught:
            call()
        assert len(str(caught.value)) < 400
    assert dict(state.restore("g")) == {"k": 1}
    assert state.set("g", "k" * KEY_BYTES_MAX, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, (1, 2), {"a": {3}}, b"x", object(), "\ud800"])
def test_a_value_that_is_not_json_is_refused(state: StateStore, value: object) -> None:
    """What would come back as something else is refused, and what was there stays."""
    state.set("g", "k", "old")
    with pytest.raises(InvalidState, match="must be JSON of at most"):
        state.set("g", "k", value)
    assert state.get("g", "k") == "old"


def test_a_value_that_is_too_large_is_refused(state: StateStore) -> None:
    """The bound is on the JSON, and what is just below it is kept."""
    with pytest.raises(InvalidState, match=str(VALUE_BYTES_MAX)):
        state.set("g", "k", "x" * VALUE_BYTES_MAX)
    assert state.set("g", "k", "x" * (VALUE_BYTES_MAX - 2))
    assert len(state.get("g", "k")) == VALUE_BYTES_MAX - 2


def test_a_value_that_somebody_else_damaged_is_told(state: StateStore, path: Path) -> None:
    """A stored text that is no JSON is an error that names its key,
    and its neighbours can still be read.
    """
    state.set("g", "a", 1)
    state.set("g", "b", 2)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE state_entries SET value = '{torn' WHERE key = 'b'")
    with pytest.raises(CorruptState, match="under 'b' of 'g'"):
        state.get("g", "b")
    walk = state.restore("g")
    assert next(walk) == ("a", 1)
    with pytest.raises(CorruptState):
        next(walk)
