"""The questions about an agent's own state: buffers of cycles, and the sync queue."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import Artifacts, Buffers, Roots, StateStore, SyncQueue
from durable_agents.errors import ArtifactNotWritten, DatabaseLocked
from durable_agents.state.buffers import Buffer, BufferOwner
from durable_agents.state.groups import VALUE_BYTES_MAX
from durable_agents.store.rows import StateEntry

from scenarios.questions.files import ODD, REFUSING
from scenarios.questions.world import GONE, Questions, World, open_in, refused, rooted, unlocked

if TYPE_CHECKING:
    from collections.abc import Callable


def cycle(world: World) -> list[Any]:
    """Return what a buffer answers: places, a commit, and what comes after the commit."""
    roots = Roots(str(world.folder))
    roots.make()
    state = world.open.enter_context(StateStore(db_path=roots.database))
    buffers = Buffers(roots, state)
    buffer = buffers.begin("cycle")
    places = [buffer.put("k", number) for number in range(3)]
    is_committed = buffer.commit()
    late = [refused(lambda: buffer.put("k", 4)), refused(buffer.commit), refused(buffer.discard)]
    full = buffers.begin("full")
    full._entries = 999_999  # noqa: SLF001 - a million puts take too long
    over = [refused(lambda: full.put("k", 1)), refused(lambda: full.put("k", 1))]
    full.discard()
    return [places, is_committed, late, over]


def entries_of_a_cycle(world: World) -> list[Any]:
    """Return how entries and names of cycles are answered, and what the history has in the end."""
    roots, state = rooted(world)
    buffers = Buffers(roots, state, clock=world.clock)
    names: tuple[Any, ...] = ("", "a/b", "n" * 101, 7, None)
    found: list[Any] = [refused(lambda name=name: buffers.begin(name)) for name in names]  # type: ignore[misc]
    with buffers.begin("left"):
        pass
    found.append(sorted(path.name for path in roots.buffers.iterdir()))
    with buffers.begin("kept") as buffer:
        (file,) = roots.buffers.glob("*.buffer")
        found.append(file.stat().st_size)  # the table is in the log, since a log is there before it
        kinds: tuple[Any, ...] = ("", "\0", "\ud800", 7, None)
        found += [refused(lambda kind=kind: buffer.put(kind, 1)) for kind in kinds]  # type: ignore[misc]
        values = (float("nan"), (1,), "v" * VALUE_BYTES_MAX)
        found += [refused(functools.partial(buffer.put, "k", value)) for value in values]
        connection = buffer._connection  # noqa: SLF001 - a full disk that ends, without a disk
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        found += [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        found.append(refused(lambda: buffer.put("k", "v" * 100_000)))
        connection.execute("PRAGMA max_page_count = 1000000")
        found += [buffer.put("k", 1), buffer.put("l", [2]), buffer.commit()]
    (cycle,) = buffers.history()
    return [*found, cycle.name, list(buffers.entries(cycle.cycle_id)), list(roots.buffers.iterdir())]


def failing_cycles(world: World) -> list[Any]:
    """Return what is left of a cycle whose buffer cannot be set up, and how the caller is told."""
    roots, state = rooted(world)
    found: list[Any] = []
    for error in (sqlite3.OperationalError("the disk is full"), OSError("no such device"), KeyboardInterrupt()):
        buffers = Buffers(roots, state)
        try:
            with mock.patch.object(Buffer, "_set_up", side_effect=error):
                found.append(refused(lambda: buffers.begin("cycle")))  # noqa: B023 - called at once
        except KeyboardInterrupt:
            found.append("interrupted")
        found.append(sorted(path.name for path in roots.buffers.iterdir()))
    return found


def orphan(roots: Roots, name: str, content: bytes, *suffixes: str) -> str:
    """Leave files of a dead cycle; return the stem of their names."""
    stem = BufferOwner(name, "0" * 16 + "-" + "a" * 12, *GONE).stem
    for suffix in suffixes or ("",):
        (roots.buffers / f"{stem}.buffer{suffix}").write_bytes(content)
    return stem


def orphans(world: World) -> list[Any]:
    """Return what becomes of odd files in the folder of buffers.

    A link, a folder, a damaged one, one whose name has no owner, one that was moved in part, and
    files that are no buffers. In the quarantine are an earlier one of a name, and a sidecar alone.
    """
    roots, state = rooted(world)
    buffers, aside = Buffers(roots, state), roots.buffers / "quarantine"
    aside.mkdir()
    living = buffers.begin("living")
    sound = world.folder / "sound.db"
    with contextlib.closing(sqlite3.connect(sound)) as connection:
        connection.execute("CREATE TABLE t (x)")
    stem = BufferOwner("link", "0" * 16 + "-" + "a" * 12, *GONE).stem
    (roots.buffers / f"{stem}.buffer").symlink_to(sound)
    (roots.buffers / f"{stem.replace('link', 'folder')}.buffer").mkdir()
    orphan(roots, "damaged", b"SQLite format 3\0" + b"\xff" * 5000)
    orphan(roots, "sound", sound.read_bytes())
    orphan(roots, "moved", b"", "-wal")
    (aside / f"{stem.replace('link', 'moved')}.buffer").write_bytes(b"")
    for name in ("x.buffer", "x.buffer-shm", "y.buffer"):
        (roots.buffers / name).write_bytes(b"new")
    for name in ("x.buffer", "x.buffer-wal", "y.buffer-wal"):
        (aside / name).write_bytes(b"old")
    for name in ("-wal", "z.buffer.txt", "notes"):
        (roots.buffers / name).write_bytes(b"no buffer")
    found = buffers.recover_orphans()
    shown = {
        each.file.partition("~")[0]: f"{each.disposition} {each.detail.partition('(')[0]}".replace(
            str(os.getpid()), "PID"
        )
        for each in found.found
    }
    again = buffers.recover_orphans()
    files = {
        f"{path.relative_to(roots.buffers)}".replace(GONE[1], "").partition("~")[0]: path.read_bytes().decode()
        for path in sorted(roots.buffers.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name[0] in "xyz-n"
    }
    left = [living.put("k", 1), living.commit()]
    return [shown, list(found.problems), files, len(again.found), sound.exists(), left]


def unlistable(world: World) -> list[Any]:
    """Return what a recovery says of folders that are not there, no folders, or cannot be moved to.

    And how many descriptors more are open after a move that failed.
    """
    found: list[Any] = []
    for name in ("missing", "file"):
        roots = Roots(str(world.folder / name))
        roots.state.mkdir(parents=True)
        if name == "file":
            roots.buffers.touch()
        else:
            roots.buffers.symlink_to("nowhere")
        recovered = Buffers(roots, StateStore(db_path=roots.database)).recover_orphans()
        found.append([recovered.found, [text.rpartition(": ")[2] for text in recovered.problems]])
    roots, state = rooted(world)
    orphan(roots, "damaged", b"nothing of SQLite's")
    before = open_in(world.folder)
    buffers = Buffers(roots, state)
    for call, error in itertools.product(("os.mkdir", "os.listdir"), (REFUSING, ODD)):
        with mock.patch(call, side_effect=error):
            found.append([text.rpartition(": ")[2] for text in buffers.recover_orphans().problems])
    found.append(open_in(world.folder) - before)
    return found


def invalid_entries(world: World) -> list[Any]:
    """Return how entries of the sync queue are answered, and bounds of the queue."""
    roots, state = rooted(world)
    queue = SyncQueue(roots, state, lambda _: None, clock=world.clock)
    names: tuple[Any, ...] = (7, "\n", "k" * 201, "\u00e9", "\ud800")
    found = [refused(lambda name=name: queue.enqueue("agent", [], key=name)) for name in names]  # type: ignore[misc]
    agents: tuple[Any, ...] = (7, "", "\n", "a" * 201, "\ud800")
    found += [refused(lambda name=name: queue.enqueue(name, [], key="k")) for name in agents]  # type: ignore[misc]
    dispatches: tuple[Any, ...] = ([1], ["text"], [{"x": float("nan")}], [{"x": "v" * 2_000_000}], [{1: 2}])
    found += [refused(lambda each=each: queue.enqueue("agent", each, key="k")) for each in dispatches]  # type: ignore[misc]
    bounds: tuple[Any, ...] = (True, 1.5, -1)
    found += [
        refused(lambda each=each: SyncQueue(roots, state, lambda _: None, entries_max=each))  # type: ignore[misc]
        for each in bounds
    ]
    unnamed = [queue.enqueue("agent", [{}]).key for _ in range(2)]
    return [*found, [len(key) for key in unnamed], len(set(unnamed)), len(queue.entries())]


def copies_of_the_queue(world: World) -> list[Any]:
    """Return what the sync queue has and says, when its copies cannot be read or written.

    Its file belongs to a newer version, or fails; its row is damaged, or there is no store.
    """
    roots, state = rooted(world)
    queue, file = SyncQueue(roots, state, lambda _: None, clock=world.clock), roots.state / "sync_queue.json"
    found: list[Any] = []

    def say(what: str, call: Callable[[], object]) -> None:
        with mock.patch("durable_agents.state.sync_queue._log") as log:
            told = refused(call)
        found.append([what, told, [entry.key for entry in queue.entries()], log.warning.call_count])

    file.write_bytes(newer := b'{"version": 99}')
    say("a newer file", lambda: queue.enqueue("agent", [{}], key="a"))
    say("again", lambda: queue.enqueue("agent", [{}], key="b"))
    found.append(file.read_bytes() == newer)
    file.unlink()
    say("no file", lambda: queue.enqueue("agent", [{}], key="c"))
    fails = mock.patch.object(Artifacts, "write", side_effect=ArtifactNotWritten("the disk is full"))
    with fails:
        say("a file that fails", lambda: queue.drop("a"))
        say("the last one", lambda: [queue.drop(key) for key in "bc"])
    say("a file that works", lambda: queue.enqueue("agent", [{}], key="d"))
    assert state.store is not None
    with state.store.transaction() as transaction:
        transaction.put_state(StateEntry("sync_queue", "queue", b"damaged"))
    say("a damaged row", queue.entries)
    say("is replaced", lambda: queue.enqueue("agent", [{}], key="e"))
    with fails, mock.patch.object(type(state.store), "transaction", side_effect=DatabaseLocked("locked")):
        say("neither", lambda: queue.enqueue("agent", [{}], key="f"))
    nowhere = Roots(str(world.folder / "nowhere"))
    queue = SyncQueue(nowhere, StateStore(db_path=world.folder), lambda _: None)  # a folder is no database
    say("nothing is there", queue.entries)
    say("no store", lambda: queue.enqueue("agent", [{}], key="g"))
    with fails:
        say("no store, and no file", lambda: queue.enqueue("agent", [{}], key="h"))
    return found


def without_a_store(world: World) -> list[Any]:
    """Return what buffers have that no store keeps."""
    roots = Roots(str(world.folder))
    roots.make()
    buffers = Buffers(roots, StateStore(db_path=world.folder))  # a folder is no database
    buffer = buffers.begin("cycle")
    buffer.put("k", 1)
    return [buffer.commit(), list(buffers.history()), list(buffers.entries("x"))]


def pushes(world: World) -> list[Any]:
    """Return how many of four entries one pass of at most three pushes, and how many wait."""
    roots = Roots(str(world.folder))
    roots.make()
    state = world.open.enter_context(StateStore(db_path=roots.database))
    queue = SyncQueue(roots, state, lambda _: None, clock=world.clock)
    bounds = [
        refused(lambda each=each: SyncQueue(roots, state, lambda _: None, entries_max=each))  # type: ignore[misc]
        for each in (0, 1)
    ]
    bounds += [
        refused(lambda name=name: queue.enqueue("agent", [{}], key=name))  # type: ignore[misc]
        for name in ("k" * 201, "k" * 200)
    ]
    queue.drop("k" * 200)
    for number in range(4):
        queue.enqueue("agent", [{"n": number}], key=str(number))
    with mock.patch("durable_agents.state.sync_queue.PUSHES_MAX", 3):  # a hundred take seconds
        found = queue.run_once()
    return [found.pushed, found.waiting, bounds]


def locked_buffers(world: World) -> list[str]:
    """Return which calls of a buffer do not wait for its lock."""
    roots = Roots(str(world.folder))
    roots.make()
    buffers = Buffers(roots, world.open.enter_context(StateStore(db_path=roots.database)))
    found = []
    for name, call in (
        ("put", lambda buffer: buffer.put("k", 1)),
        ("commit", lambda buffer: buffer.commit()),
        ("discard", lambda buffer: buffer.discard()),
    ):
        buffer = buffers.begin(name)
        found += unlocked(buffer._lock, **{name: lambda call=call, buffer=buffer: call(buffer)})  # noqa: SLF001 - as above
    return found


QUESTIONS: Final[Questions] = {
    "state: a cycle": (cycle, [[1, 2, 3], True, ["CycleEnded", "CycleEnded", ""], ["", "InvalidCycle"]]),
    "state: pushes of one pass": (pushes, [3, 1, ["InvalidSetting", "", "InvalidSyncEntry", ""]]),
    "state: buffers without a store": (without_a_store, [False, [], []]),
    "state: entries of a cycle": (
        entries_of_a_cycle,
        [
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            [],
            4096,
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "InvalidCycle",
            "wal",
            0,
            "BufferNotWritten",
            1,
            2,
            True,
            "kept",
            [["k", 1], ["l", [2]]],
            [],
        ],
    ),
    "state: cycles that cannot begin": (
        failing_cycles,
        ["BufferNotWritten", [], "BufferNotWritten", [], "interrupted", []],
    ),
    "state: odd orphans": (
        orphans,
        [
            {
                "damaged": "quarantined file is not a database",
                "folder": "quarantined is not a regular file",
                "link": "quarantined is a link",
                "living": "left process PID lives",
                "moved": "quarantined its file is there already",
                "sound": "discarded its owner is dead",
                "x": "quarantined its name tells no owner",
                "y": "quarantined its name tells no owner",
            },
            [],
            {
                "-wal": "no buffer",
                "notes": "no buffer",
                "quarantine/x.1.buffer": "old",
                "quarantine/x.1.buffer-wal": "old",
                "quarantine/x.buffer": "new",
                "quarantine/x.buffer-shm": "new",
                "quarantine/y.1.buffer-wal": "old",
                "quarantine/y.buffer": "new",
                "z.buffer.txt": "no buffer",
            },
            1,
            True,
            [1, True],
        ],
    ),
    "state: folders that cannot be listed": (
        unlistable,
        [
            [[], []],
            [[], ["Not a directory"]],
            ["Permission denied"],
            ["of no number"],
            ["Permission denied"],
            ["of no number"],
            0,
        ],
    ),
    "state: entries of the sync queue": (
        invalid_entries,
        [
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSyncEntry",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            [32, 32],
            2,
            2,
        ],
    ),
    "state: copies of the sync queue": (
        copies_of_the_queue,
        [
            ["a newer file", "", ["a"], 2],
            ["again", "", ["a", "b"], 0],
            True,
            ["no file", "", ["a", "b", "c"], 0],
            ["a file that fails", "", ["b", "c"], 1],
            ["the last one", "", [], 0],
            ["a file that works", "", ["d"], 0],
            ["a damaged row", "", ["d"], 1],
            ["is replaced", "", ["d", "e"], 0],
            ["neither", "SyncQueueNotWritten", ["d", "e"], 0],
            ["nothing is there", "", [], 0],
            ["no store", "", ["g"], 1],
            ["no store, and no file", "SyncQueueNotWritten", ["g"], 0],
        ],
    ),
    "state: locks": (locked_buffers, []),
}
