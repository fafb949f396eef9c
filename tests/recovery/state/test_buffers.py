"""Buffers: a cycle is in the history whole or not at all, orphans go, the living stay;
the state of every file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import Buffers, Disposition, Roots, StateCrashPoint, StateStore, open_store
from durable_agents.errors import BufferNotWritten, CycleEnded, DatabaseLocked, InvalidCycle
from durable_agents.processes import start_of
from durable_agents.state.buffers import SIDECARS, BufferOwner

from tests.recovery.disks import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60
_DEAD: Final = BufferOwner("qa", "0" * 16 + "-" + "a" * 12, 4_194_305, "00000000-0000-0000-0000-000000000000:1")

_CYCLE: Final = """
import os, signal, sys
from durable_agents import Buffers, Roots, StateStore
root, name, point, entries = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
roots = Roots(root)
with StateStore(db_path=roots.database) as state, Buffers(roots, state).begin(name) as cycle:
    for number in range(int(entries)):
        cycle.put("finding", {"number": number})
    if point == "wait":
        print(cycle.path, flush=True)
        input()
    cycle.commit()
"""


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    roots = Roots(str(tmp_path))
    roots.make()
    return roots


@pytest.fixture(name="state")
def _state(roots: Roots) -> Iterator[StateStore]:
    with StateStore(db_path=roots.database) as state:
        yield state


@pytest.fixture(name="buffers")
def _buffers(roots: Roots, state: StateStore) -> Buffers:
    return Buffers(roots, state)


def start_cycle(roots: Roots, point: str, *, name: str = "qa", entries: int = 3) -> subprocess.Popen[str]:
    """Start a process with a cycle, which dies at the point, or waits."""
    return subprocess.Popen(
        [sys.executable, "-c", _CYCLE, roots.folder, name, point, str(entries)],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_cycle(roots: Roots, point: str, *, name: str = "qa") -> None:
    """Run a cycle that is killed at the point."""
    with start_cycle(roots, point, name=name) as process:
        process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL


def files(folder: Path) -> list[str]:
    """Return the names of what lies in a folder, and in those below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def history(buffers: Buffers) -> list[tuple[str, list[Any]]]:
    """Return the history: name and entries of each cycle."""
    return [(cycle.name, list(buffers.entries(cycle.cycle_id))) for cycle in buffers.history()]


def test_a_committed_cycle_is_in_the_history_and_its_buffer_is_gone(buffers: Buffers) -> None:
    """Everything it found is there in its order, more than a page of it,
    and nothing is left beside it.
    """
    with buffers.begin("qa") as cycle:
        assert [cycle.put("finding", {"n": number}) for number in range(2500)] == list(range(1, 2501))
        assert files(buffers.folder) != []
        assert cycle.commit()
    assert history(buffers) == [("qa", [("finding", {"n": number}) for number in range(2500)])]
    assert files(buffers.folder) == []


def test_a_cycle_that_is_not_committed_leaves_nothing(buffers: Buffers) -> None:
    """Neither one that raises nor one that simply ends is in the history."""
    with contextlib.suppress(KeyError), buffers.begin("qa") as cycle:
        cycle.put("finding", 1)
        raise KeyError
    with buffers.begin("qa") as cycle:
        cycle.put("finding", 1)
    assert (history(buffers), files(buffers.folder)) == ([], [])


def test_a_cycle_that_has_ended_is_over(buffers: Buffers) -> None:
    """Put and commit say so; discarding again is fine."""
    cycle = buffers.begin("qa")
    cycle.discard()
    cycle.discard()
    with pytest.raises(CycleEnded, match="Begin another"):
        cycle.put("finding", 1)
    with pytest.raises(CycleEnded, match="Begin another"):
        cycle.commit()


@pytest.mark.parametrize("point", StateCrashPoint.of("cycle"))
def test_a_cycle_killed_anywhere_is_there_whole_or_not_at_all(buffers: Buffers, roots: Roots, point: str) -> None:
    """After the orphans are recovered the folder is empty, and the history has all of it,
    or none.
    """
    killed_cycle(roots, point)
    before = files(buffers.folder)
    found = buffers.recover_orphans()
    points = StateCrashPoint.of("cycle")
    is_committed = points.index(StateCrashPoint(point)) >= points.index(StateCrashPoint.CYCLE_AFTER_COMMIT)
    whole = ("qa", [("finding", {"number": number}) for number in range(3)])
    assert history(buffers) == [whole][: int(is_committed)]
    assert files(buffers.folder) == []
    assert (
        found.count(Disposition.DISCARDED)
        == (0 if point.endswith(("before_begin", "after_remove")) else 1)
        == bool(before)
    )
    assert found.problems == ()
    assert buffers.recover_orphans().found == ()


def test_a_live_owners_buffer_is_not_touched(buffers: Buffers, roots: Roots) -> None:
    """D24: byte for byte it stays, sidecars too, and its cycle is committed afterwards;
    also one of this process.
    """
    with start_cycle(roots, "wait") as process, buffers.begin("ours") as ours:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        ours.put("finding", 1)
        before = {name: (buffers.folder / name).read_bytes() for name in files(buffers.folder)}
        assert path.name in before
        found = buffers.recover_orphans()
        assert {each.disposition for each in found.found} == {Disposition.LEFT}
        assert len(found.found) == 2
        assert {name: (buffers.folder / name).read_bytes() for name in files(buffers.folder)} == before
        ours.commit()
        process.communicate("go\n", timeout=_TIMEOUT_S)
    assert process.returncode == 0
    assert sorted(name for name, _ in history(buffers)) == ["ours", "qa"]


def test_a_stopped_owner_lives(buffers: Buffers, roots: Roots) -> None:
    """It goes on when it is continued, and must find what it had."""
    with start_cycle(roots, "wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert [each.disposition for each in buffers.recover_orphans().found] == [Disposition.LEFT]
        process.send_signal(signal.SIGCONT)
        process.communicate("go\n", timeout=_TIMEOUT_S)
    assert [name for name, _ in history(buffers)] == ["qa"]


def test_a_number_that_went_round_is_not_the_owner(buffers: Buffers, state: StateStore) -> None:
    """The pid is alive and was started at another time: the buffer is an orphan."""
    start = start_of(os.getpid())
    assert start is not None
    owner = BufferOwner("qa", _DEAD.cycle_id, os.getpid(), start[:-1] + str((int(start[-1]) + 1) % 10))
    lay_buffer(buffers, owner)
    assert [each.disposition for each in buffers.recover_orphans().found] == [Disposition.DISCARDED]
    assert files(buffers.folder) == []


def test_a_name_comes_again(buffers: Buffers, roots: Roots) -> None:
    """D25: committed, killed and committed under one name:
    two are in the history, each with its own entries.
    """
    for number in (1, 2):
        killed_cycle(roots, "recovery.cycle.before_commit", name="nightly")
        buffers.recover_orphans()
        with buffers.begin("nightly") as cycle:
            cycle.put("finding", number)
            assert cycle.commit()
    assert history(buffers) == [("nightly", [("finding", 1)]), ("nightly", [("finding", 2)])]


def test_two_cycles_of_one_name_at_once(buffers: Buffers) -> None:
    """They do not see each other, and both are in the history."""
    with buffers.begin("qa") as first, buffers.begin("qa") as second:
        first.put("finding", "first")
        second.put("finding", "second")
        assert second.commit()
        assert first.commit()
    assert sorted(entries[0][1] for _, entries in history(buffers)) == ["first", "second"]


def lay_buffer(buffers: Buffers, owner: BufferOwner, content: bytes | None = None) -> Path:
    """Put a buffer into the folder, sound unless its content is given."""
    path = buffers.folder / (owner.stem + ".buffer")
    if content is None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE entries (place INTEGER PRIMARY KEY, kind TEXT, value TEXT)")
    else:
        path.write_bytes(content)
    return path


def _damaged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 900,)] * 200)
        connection.commit()
    content = bytearray(path.read_bytes())
    content[8192:16384] = b"\x5a" * 8192
    path.write_bytes(content)


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 500)


def _link(path: Path) -> None:
    path.with_name("target").write_text("kept")
    path.symlink_to("target")


def _dangling(path: Path) -> None:
    path.symlink_to("nobody")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("kept")


@pytest.mark.parametrize("lay", [_damaged, _garbage, _link, _dangling, _folder])
def test_an_unreadable_orphan_is_quarantined_with_what_is_beside_it(
    buffers: Buffers, lay: Callable[[Path], None]
) -> None:
    """Every one of its files is in the quarantine as it was, and none is left;
    others are not touched.
    """
    path = buffers.folder / (_DEAD.stem + ".buffer")
    lay(path)
    for suffix in SIDECARS:
        path.with_name(path.name + suffix).write_bytes(f"beside{suffix}".encode())
    content = path.read_bytes() if path.is_file() else b""
    (buffers.folder / "stranger.txt").write_text("kept")
    found = buffers.recover_orphans()
    assert [each.disposition for each in found.found] == [Disposition.QUARANTINED]
    place = buffers.folder / "quarantine"
    assert {entry.name for entry in place.iterdir()} == {path.name + suffix for suffix in ("", *SIDECARS)}
    if content and lay is not _link:
        assert (place / path.name).read_bytes() == content
    assert (place / (path.name + "-journal")).read_bytes() == b"beside-journal"
    kept = {"quarantine", "stranger.txt", "target"}
    assert {entry.name for entry in buffers.folder.iterdir()} <= kept
    assert (buffers.folder / "stranger.txt").read_text() == "kept"
    assert buffers.recover_orphans().found == ()


def test_a_buffer_whose_name_tells_no_owner_is_quarantined(buffers: Buffers) -> None:
    """Nobody can tell whether its owner lives, so it is neither committed nor removed."""
    path = buffers.folder / "somebody's.buffer"
    path.write_bytes(b"")
    assert [each.disposition for each in buffers.recover_orphans().found] == [Disposition.QUARANTINED]
    assert files(buffers.folder) == ["quarantine/somebody's.buffer"]


def test_an_empty_orphan_is_discarded(buffers: Buffers) -> None:
    """Its owner died before it wrote anything: there is nothing to look at."""
    lay_buffer(buffers, _DEAD, b"")
    assert [each.disposition for each in buffers.recover_orphans().found] == [Disposition.DISCARDED]
    assert files(buffers.folder) == []


def test_a_quarantine_keeps_every_buffer_of_a_name(buffers: Buffers) -> None:
    """A name that is not of our making comes again; what was put away before is there still,
    with what was beside.
    """
    contents = ["first", "second", "third"]
    for content in contents:
        for suffix in ("", "-wal"):
            (buffers.folder / f"somebody's.buffer{suffix}").write_text(content + suffix)
        assert buffers.recover_orphans().count(Disposition.QUARANTINED) == 1
    place = buffers.folder / "quarantine"
    names = ["somebody's.1", "somebody's.2", "somebody's"]
    assert [(place / f"{name}.buffer").read_text() for name in names] == contents
    assert [(place / f"{name}.buffer-wal").read_text() for name in names] == [f"{text}-wal" for text in contents]
    assert len(list(place.iterdir())) == 6


@pytest.mark.parametrize("is_quarantined", [False, True])
def test_what_an_interrupted_recovery_left_is_finished(buffers: Buffers, is_quarantined: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Only sidecars are left: they go where their file went."""
    name = _DEAD.stem + ".buffer"
    (buffers.folder / (name + "-wal")).write_bytes(b"beside")
    if is_quarantined:
        (buffers.folder / "quarantine").mkdir()
        (buffers.folder / "quarantine" / name).write_bytes(b"garbage")
    buffers.recover_orphans()
    assert files(buffers.folder) == ([f"quarantine/{name}", f"quarantine/{name}-wal"] if is_quarantined else [])


def test_a_quarantine_that_leads_outside_is_not_used(buffers: Buffers, tmp_path: Path) -> None:
    """The link is told, the orphan stays, and nothing is moved out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (buffers.folder / "quarantine").symlink_to(outside)
    path = lay_buffer(buffers, _DEAD, b"garbage" * 100)
    found = buffers.recover_orphans()
    assert (found.found, len(found.problems)) == ((), 1)
    assert (path.read_bytes(), list(outside.iterdir())) == (b"garbage" * 100, [])


def test_a_missing_folder_has_no_orphans(buffers: Buffers) -> None:
    """Seed: before the first cycle there is no folder, and looking makes no difference."""
    buffers.folder.rmdir()
    assert buffers.recover_orphans().found == ()
    assert files(buffers.folder) == []


def test_without_a_store_a_cycle_is_not_stored(roots: Roots) -> None:
    """The commit says so, and its buffer is gone; orphans are recovered all the same."""
    roots.database.mkdir()
    with StateStore(db_path=roots.database) as state:
        buffers = Buffers(roots, state)
        lay_buffer(buffers, _DEAD)
        assert buffers.recover_orphans().count(Disposition.DISCARDED) == 1
        with buffers.begin("qa") as cycle:
            cycle.put("finding", 1)
            assert not cycle.commit()
        assert (history(buffers), files(buffers.folder)) == ([], [])


def test_a_commit_that_failed_can_be_repeated(roots: Roots) -> None:
    """A locked database leaves the cycle open; later it is committed, once."""
    with open_store(roots.database, busy_timeout_s=0.05) as store, StateStore(store) as state:
        buffers = Buffers(roots, state)
        with buffers.begin("qa") as cycle:
            cycle.put("finding", 1)
            with closing(sqlite3.connect(roots.database, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(DatabaseLocked):
                    cycle.commit()
            cycle.put("finding", 2)
            assert cycle.commit()
        assert history(buffers) == [("qa", [("finding", 1), ("finding", 2)])]


@pytest.mark.parametrize("name", ["", "a/b", "..~", "x" * 101, "ключ", "a b", 7, "a~b", "\0"])
def test_a_name_that_cannot_be_a_files_is_refused(buffers: Buffers, name: Any) -> None:
    """Nothing is made for it."""
    with pytest.raises(InvalidCycle, match="Replace the other characters"):
        buffers.begin(name)
    assert files(buffers.folder) == []


@pytest.mark.parametrize(
    ("kind", "value"), [("", 1), (7, 1), ("a\0", 1), ("k", {1: 2}), ("k", float("nan")), ("\ud800", 1)]
)
def test_an_entry_that_cannot_be_kept_is_refused(buffers: Buffers, kind: Any, value: object) -> None:
    """The cycle goes on without it."""
    with buffers.begin("qa") as cycle:
        with pytest.raises(InvalidCycle):
            cycle.put(kind, value)
        cycle.put("finding", 1)
        assert cycle.commit()
    assert history(buffers) == [("qa", [("finding", 1)])]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Neither a cycle that cannot begin nor one that cannot go on is in the history;
    what was there stays.
    """
    with small_disk(tmp_path / "disk") as disk:
        roots = Roots(str(disk))
        with StateStore(db_path=roots.database) as state:
            buffers = Buffers(roots, state)
            with buffers.begin("first") as cycle:
                cycle.put("finding", 1)
                assert cycle.commit()
            with buffers.begin("second") as cycle, pytest.raises(BufferNotWritten):
                cycle.put("finding", "x" * 2_000_000)
            filler = fill(disk)
            with pytest.raises(BufferNotWritten):
                buffers.begin("third")
            filler.unlink()
            assert history(buffers) == [("first", [("finding", 1)])]
            assert files(buffers.folder) == []
