"""Workspaces: files win, ghosts fail in the registry and on disk, the living stay,
and nothing else is touched.

It is long because what can lie in the place of a status file is much, and each is a test.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import (
    ManualClock,
    Roots,
    RuntimeState,
    StateGroup,
    StateStore,
    Workspaces,
    WorkspaceStatus,
    load_runtime,
    persist_runtime,
)
from durable_agents.errors import (
    CorruptState,
    FolderLocked,
    InvalidSetting,
    InvalidState,
    InvalidWorkspace,
    WorkspaceNotWritten,
)
from durable_agents.processes import start_of
from durable_agents.state.groups import checked_entry
from durable_agents.state.status_files import STATUS_BYTES_MAX, StatusFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME: Final = "core/go-io/task-5"
DEAD_PID: Final = 2**22 + 1
"""Above the largest number that Linux gives out."""


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "root"))


@pytest.fixture(name="state")
def _state(roots: Roots) -> Iterator[StateStore]:
    roots.make()
    with StateStore(db_path=roots.database) as state:
        yield state


@pytest.fixture(name="workspaces")
def _workspaces(roots: Roots, state: StateStore) -> Workspaces:
    return Workspaces(roots, state, clock=ManualClock())


@pytest.fixture(name="process")
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that lives until it is told otherwise."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def status(**fields: Any) -> WorkspaceStatus:
    """Return a status, running unless said otherwise."""
    return WorkspaceStatus(**{"status": "running", "agent": "codex:gpt-5.4", "repo": "go-io", **fields})


def file_of(roots: Roots, name: str = NAME) -> Path:
    """Return the status file of a workspace."""
    return roots.workspaces / name / "status.json"


def put_file(roots: Roots, name: str = NAME, **fields: Any) -> Path:
    """Write a status file as any other program would."""
    file = file_of(roots, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"status": "running", "agent": "codex:gpt-5.4", "pid": DEAD_PID, **fields}))
    return file


def reopened(workspaces: Workspaces, state: StateStore) -> Workspaces:
    """Return the registry of an agent that has started again, hydrated."""
    again = Workspaces(workspaces.roots, state)
    again.hydrate()
    return again


def test_roots_come_from_settings_and_never_from_the_current_folder(tmp_path: Path) -> None:
    """CORE_WORKSPACE goes before CORE_HOME; none, and one that depends on where one stands,
    are refused.
    """
    both = {"CORE_WORKSPACE": str(tmp_path / "w"), "CORE_HOME": str(tmp_path / "h")}
    assert Roots.from_environment(both).folder == str(tmp_path / "w")
    assert Roots.from_environment({"CORE_HOME": "/h"}).database == Path("/h/.core/db.sqlite")
    for environment in ({}, {"CORE_WORKSPACE": "relative"}, {"CORE_HOME": "."}):
        with pytest.raises(InvalidSetting, match="Set CORE_WORKSPACE or CORE_HOME"):
            Roots.from_environment(environment)


def test_a_ghost_that_only_the_store_knows_fails(workspaces: Workspaces, state: StateStore) -> None:
    """Seed: restored from the store, with pid 0, it is failed; no folder is made for it."""
    state.set(StateGroup.REGISTRY, NAME, {"status": "running", "agent": "codex:gpt-5.4", "pid": 0})
    found = workspaces.hydrate()
    assert found.ghosts == (NAME,)
    known = workspaces.get(NAME)
    assert known is not None
    assert (known.status, known.agent) == ("failed", "codex:gpt-5.4")
    assert state.get(StateGroup.REGISTRY, NAME)["status"] == "failed"
    assert not file_of(workspaces.roots).parent.exists()


def test_a_ghost_fails_on_disk_too(workspaces: Workspaces, state: StateStore) -> None:
    """Seed: its file says failed and why, keeps what is not ours, and the store says the same."""
    file = put_file(workspaces.roots, pr_url="https://example.invalid/1", runs=3)
    assert workspaces.hydrate().ghosts == (NAME,)
    written = json.loads(file.read_text())
    assert (written["status"], written["pr_url"], written["runs"], written["version"]) == (
        "failed",
        "https://example.invalid/1",
        3,
        1,
    )
    assert f"process {DEAD_PID}, was gone" in written["error"]
    assert state.get(StateGroup.REGISTRY, NAME)["status"] == "failed"
    assert sorted(path.name for path in file.parent.iterdir()) == ["status.json"]


def _live(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid, "pid_start": start_of(process.pid)}


def _stopped(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    fields = _live(process)
    os.kill(process.pid, 19)
    os.waitpid(process.pid, os.WUNTRACED)
    return fields


def _without_start(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid}


def _zombie(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    fields = _live(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return fields


def _reused(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid, "pid_start": "another-boot:1"}


@pytest.mark.parametrize(
    ("fields", "is_live"),
    [
        (_live, True),
        (_stopped, True),
        (_without_start, True),
        (_zombie, False),
        (_reused, False),
        (lambda _: {"pid": DEAD_PID}, False),
        (lambda _: {"pid": 0}, False),
        (lambda _: {"pid": -1}, False),
        (lambda _: {"pid": None}, False),
    ],
    ids=["live", "stopped", "no start", "zombie", "reused", "dead", "zero", "negative", "missing"],
)
def test_who_lives_and_who_does_not(
    workspaces: Workspaces,
    process: subprocess.Popen[bytes],
    fields: Callable[[subprocess.Popen[bytes]], dict[str, Any]],
    is_live: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """D23: a live executor's workspace stays running, its file byte for byte; any other fails."""
    file = put_file(workspaces.roots, **fields(process))
    before = file.read_bytes()
    found = workspaces.hydrate()
    assert (found.live, found.ghosts) == (((NAME,), ()) if is_live else ((), (NAME,)))
    assert (file.read_bytes() == before) is is_live
    known = workspaces.get(NAME)
    assert known is not None
    assert known.status == ("running" if is_live else "failed")


def test_the_file_wins_over_the_store(workspaces: Workspaces, state: StateStore) -> None:
    """What the file says counts, and the store is brought in line."""
    workspaces.track(NAME, status(status="queued"))
    put_file(workspaces.roots, status="completed", branch="agent/x")
    again = reopened(workspaces, state)
    known = again.get(NAME)
    assert known is not None
    assert (known.status, known.branch) == ("completed", "agent/x")
    assert state.get(StateGroup.REGISTRY, NAME)["status"] == "completed"
    assert again.queue() == {}


def test_hydrating_twice_changes_nothing(workspaces: Workspaces, state: StateStore) -> None:
    """The second time there is nothing to fail and nothing to write."""
    put_file(workspaces.roots)
    put_file(workspaces.roots, "core/other", status="queued", agent="claude")
    first = workspaces.hydrate()
    before = _everything(workspaces.roots)
    second = reopened(workspaces, state)
    assert first.ghosts == (NAME,)
    assert second.hydrate().ghosts == ()
    assert _everything(workspaces.roots) == before
    assert second.all() == workspaces.all()


def _everything(roots: Roots) -> tuple[dict[str, bytes], list[tuple[object, ...]]]:
    files = {str(file): file.read_bytes() for file in roots.workspaces.rglob("*") if file.is_file()}
    with closing(sqlite3.connect(roots.database)) as connection:
        return files, connection.execute("SELECT * FROM state_entries ORDER BY 1, 2").fetchall()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"status": "runn',
        b"\0" * 40,
        b'{"status": "queued", "task": "\xff"}',
        b'{"x": "\xff", "status": "queued"}',
    ],
)
def test_a_half_written_file_is_put_right_from_the_store(
    workspaces: Workspaces, state: StateStore, content: bytes
) -> None:
    """Empty, cut, zeros after a power loss, not UTF-8:
    the store's status takes its place, and the rest is kept.
    """
    written = workspaces.track(NAME, status(status="queued", branch="b"))
    file = file_of(workspaces.roots)
    file.write_bytes(content)
    again = Workspaces(workspaces.roots, state)
    found = again.hydrate()
    assert [problem.problem for problem in found.problems] == ["half_written"]
    assert found.restored == (NAME,)
    assert again.get(NAME) == written
    assert json.loads(file.read_text())["branch"] == "b"
    kept = file.with_name("status.json.damaged")
    assert (kept.read_bytes() if kept.exists() else b"") == content


def test_a_half_written_ghost_fails(workspaces: Workspaces, state: StateStore) -> None:
    """The store knows that it ran; its executor is dead;
    the file is whole again and says failed.
    """
    workspaces.track(NAME, status(pid=DEAD_PID))
    file_of(workspaces.roots).write_bytes(b"{")
    assert reopened(workspaces, state).all()[NAME].status == "failed"
    assert json.loads(file_of(workspaces.roots).read_text())["status"] == "failed"


def test_a_half_written_file_of_a_live_executor_is_left(
    workspaces: Workspaces, state: StateStore, process: subprocess.Popen[bytes]
) -> None:
    """Its owner may be just writing it; the store stands in."""
    workspaces.track(NAME, status(pid=process.pid))
    file_of(workspaces.roots).write_bytes(b"{")
    assert reopened(workspaces, state).all()[NAME].status == "running"
    assert file_of(workspaces.roots).read_bytes() == b"{"


def test_a_half_written_file_that_nobody_knows_is_left_and_told(workspaces: Workspaces) -> None:
    """There is nothing to put in its place, so nothing is lost of it."""
    file = put_file(workspaces.roots)
    file.write_bytes(b"{")
    found = workspaces.hydrate()
    assert [(each.workspace, each.problem) for each in found.problems] == [(NAME, "half_written")]
    assert (workspaces.all(), file.read_bytes()) == ({}, b"{")


def _folder(file: Path, outside: Path) -> None:
    file.mkdir()
    (file / "inside").write_text("kept")


def _link(file: Path, outside: Path) -> None:
    file.symlink_to(outside)


def _dangling_link(file: Path, outside: Path) -> None:
    file.symlink_to(outside.with_name("nobody"))


def _fifo(file: Path, outside: Path) -> None:
    os.mkfifo(file)


def _large(file: Path, outside: Path) -> None:
    file.write_bytes(b" " * 100)
    os.truncate(file, 100 * 1024 * 1024)


def _newer(file: Path, outside: Path) -> None:
    file.write_text('{"version": 2, "status": {"now": "an object"}}')


def _list(file: Path, outside: Path) -> None:
    file.write_text("[]")


def _typed_otherwise(file: Path, outside: Path) -> None:
    file.write_text('{"status": "running", "pid": "7"}')


@pytest.mark.parametrize(
    ("lay", "problem"),
    [
        (_folder, "not_a_file"),
        (_link, "link"),
        (_dangling_link, "link"),
        (_fifo, "not_a_file"),
        (_large, "too_large"),
        (_newer, "other_version"),
        (_list, "no_status"),
        (_typed_otherwise, "no_status"),
    ],
)
def test_what_is_not_ours_is_left_and_told(
    workspaces: Workspaces, state: StateStore, tmp_path: Path, lay: Callable[[Path, Path], None], problem: str
) -> None:
    """The store stands in, its ghost fails in the registry alone;
    the file, and what it leads to, are as they were.
    """
    outside = tmp_path / "outside"
    outside.write_text('{"status": "running", "pid": 0}')
    state.set(StateGroup.REGISTRY, NAME, {"status": "running", "pid": 0, "branch": "from the store"})
    file = file_of(workspaces.roots)
    file.parent.mkdir(parents=True)
    lay(file, outside)
    before = os.lstat(file)
    found = workspaces.hydrate()
    assert [(each.workspace, each.problem) for each in found.problems] == [(NAME, problem)]
    known = workspaces.get(NAME)
    assert known is not None
    assert (known.status, known.branch) == ("failed", "from the store")
    assert os.lstat(file) == before
    assert outside.read_text() == '{"status": "running", "pid": 0}'
    with pytest.raises(WorkspaceNotWritten, match="move it away"):
        workspaces.track(NAME, status())
    assert os.lstat(file) == before


def test_a_status_of_the_largest_size_is_read(workspaces: Workspaces) -> None:
    """The bound is where it says it is."""
    file = put_file(workspaces.roots, status="queued")
    content = file.read_bytes()
    file.write_bytes(content + b" " * (STATUS_BYTES_MAX - len(content)))
    assert workspaces.hydrate().problems == ()
    file.write_bytes(content + b" " * (STATUS_BYTES_MAX - len(content) + 1))
    assert [each.problem for each in workspaces.hydrate().problems] == ["too_large"]


def test_folders_that_are_links_are_not_entered(workspaces: Workspaces, tmp_path: Path) -> None:
    """A link to a workspace elsewhere is told, and what is there is not changed."""
    elsewhere = put_file(Roots(str(tmp_path / "elsewhere")), "w")
    before = elsewhere.read_bytes()
    (workspaces.roots.workspaces / "core").mkdir(parents=True)
    (workspaces.roots.workspaces / "core" / "linked").symlink_to(elsewhere.parent)
    found = workspaces.hydrate()
    assert [(each.workspace, each.problem) for each in found.problems] == [("core/linked", "link")]
    assert (workspaces.all(), elsewhere.read_bytes()) == ({}, before)


@pytest.mark.parametrize(
    "name",
    ["", "/etc", "../x", "a/../../x", "a//b", "./a", "a/", "a/./b", ".core/x", "a/b/c/d/e", "n" * 600, "a\0", "\ud800"],
)
def test_a_name_that_would_lead_elsewhere_is_refused(workspaces: Workspaces, tmp_path: Path, name: str) -> None:
    """Nothing is written for it, anywhere; nor is it forgotten, or taken from the store."""
    for call in (lambda: workspaces.track(name, status()), lambda: workspaces.untrack(name)):
        with pytest.raises(InvalidWorkspace):
            call()
    assert workspaces.all() == {}
    assert list(tmp_path.rglob("status.json*")) == []


@pytest.mark.parametrize("is_taken", [False, True], ids=["alone", "beside-one-of-that-name"])
def test_a_folder_whose_name_is_no_text_is_left_and_told(workspaces: Workspaces, *, is_taken: bool) -> None:
    """It is not taken for the folder whose name it would be told by:
    no such one is made, or changed.
    """
    roots = workspaces.roots
    strange = put_file(roots, os.fsdecode(b"org/\xff\xfe"))
    content = strange.read_bytes()
    if is_taken:
        put_file(roots, "org/\\xff\\xfe", status="queued")
    for _ in range(2):
        hydration = workspaces.hydrate()
        assert hydration.workspaces == int(is_taken)
        assert [each.detail for each in hydration.problems] == ["the name of its folder is not UTF-8; rename it"]
    assert strange.read_bytes() == content
    assert (roots.workspaces / "org" / "\\xff\\xfe").exists() == is_taken
    named = workspaces.get("org/\\xff\\xfe")
    assert (None if named is None else named.status) == ("queued" if is_taken else None)


def test_a_name_in_the_store_that_would_lead_elsewhere_is_told(workspaces: Workspaces, state: StateStore) -> None:
    """Somebody else wrote it: it is not taken over, nothing outside is made, and the others are."""
    state.set(StateGroup.REGISTRY, "../../outside", {"status": "running", "pid": 0})
    state.set(StateGroup.REGISTRY, "torn", ["no status"])
    state.set(StateGroup.REGISTRY, "whole", {"status": "completed"})
    found = workspaces.hydrate()
    assert sorted((each.workspace, each.problem) for each in found.problems) == [
        ("../../outside", "invalid_name"),
        ("torn", "corrupt_entry"),
    ]
    assert list(workspaces.all()) == ["whole"]


def test_the_queue_holds_what_waits_and_nothing_else(workspaces: Workspaces, state: StateStore) -> None:
    """Seed: queued it is there with its repo and branch; running it is not;
    the history has its dispatch.
    """
    queued = status(status="queued", branch="agent/fix-tests", org="core", task="Fix tests")
    workspaces.track(NAME, queued)
    (entry,) = workspaces.queue().values()
    assert (entry.repo, entry.branch, entry.org, entry.task, entry.agent) == (
        "go-io",
        "agent/fix-tests",
        "core",
        "Fix tests",
        "codex:gpt-5.4",
    )
    assert entry.started_at > 0
    workspaces.track(NAME, status(pid=os.getpid()))
    assert (workspaces.queue(), state.count(StateGroup.QUEUE)) == ({}, 0)
    assert [dispatch.workspace for _, dispatch in workspaces.dispatches()] == [NAME]


def test_running_is_counted_by_type_of_agent(workspaces: Workspaces, state: StateStore) -> None:
    """Seed: two models of one type are two; one untracked leaves one;
    the last leaves a stored 0.
    """
    workspaces.track(NAME, status())
    workspaces.track("core/go-store/task-2", status(agent="codex:gpt-5.4-mini"))
    workspaces.track("core/x", status(agent="claude", status="queued"))
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 2}
    assert workspaces.running("codex") == 2
    workspaces.untrack(NAME)
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 1}
    workspaces.track("core/go-store/task-2", status(agent="codex", status="completed"))
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 0}
    workspaces.untrack("core/go-store/task-2")
    workspaces.untrack("never-known")
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 0}


def test_two_agents_on_one_store_count_together(workspaces: Workspaces, state: StateStore) -> None:
    """Each tracks its own; the stored count is that of both, though neither knows the other's."""
    other = Workspaces(workspaces.roots, state)
    workspaces.track("a", status())
    other.track("b", status())
    workspaces.track("a", status(status="completed"))
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 1}


def test_hydrating_counts_anew(workspaces: Workspaces, state: StateStore) -> None:
    """Counts that are wrong, or of types that no longer run, and a queue that is stale,
    are put right.
    """
    state.set(StateGroup.CONCURRENCY, "codex", {"running": 7})
    state.set(StateGroup.CONCURRENCY, "gone", {"running": 2})
    state.set(StateGroup.QUEUE, "stale", {"repo": "r"})
    put_file(workspaces.roots, "w", pid=os.getpid())
    put_file(workspaces.roots, "waiting", status="queued")
    workspaces.hydrate()
    assert dict(state.restore(StateGroup.CONCURRENCY)) == {"codex": {"running": 1}, "gone": {"running": 0}}
    assert list(workspaces.queue()) == ["waiting"]


def test_a_dispatch_is_one_row_however_often_it_is_told(workspaces: Workspaces, state: StateStore) -> None:
    """Tracked twice, and found again by a start, a dispatch is one row;
    the next dispatch is another.
    """
    first = workspaces.track(NAME, status(pid=os.getpid(), started_at=5))
    workspaces.track(NAME, first)
    state.delete(StateGroup.REGISTRY, NAME)
    reopened(workspaces, state)
    assert [key for key, _ in workspaces.dispatches()] == [f"{5:020d} {NAME}"]
    workspaces.track(NAME, status(pid=os.getpid(), started_at=6))
    assert [dispatch.started_at for _, dispatch in workspaces.dispatches()] == [5, 6]


def test_a_dispatch_whose_row_was_lost_in_a_crash_is_made_up_for(workspaces: Workspaces) -> None:
    """The file was written, the store was not: hydrating adds the row,
    though the executor is dead by now.
    """
    put_file(workspaces.roots, started_at=9)
    workspaces.hydrate()
    assert [dispatch.workspace for _, dispatch in workspaces.dispatches()] == [NAME]


def test_old_dispatches_can_be_forgotten(workspaces: Workspaces, state: StateStore) -> None:
    """Those before a moment go, more than a batch of them, and the others stay."""
    assert state.store is not None
    with state.store.transaction() as transaction:
        rows = [checked_entry("dispatch_history", f"{number:020d} w", {"of": number}) for number in range(2500)]
        transaction.put_states(rows)
    assert workspaces.forget_dispatches(before=2300) == 2300
    assert workspaces.forget_dispatches(before=2300) == 0
    assert state.count(StateGroup.DISPATCH_HISTORY) == 200


def test_what_was_tracked_is_there_after_a_restart(workspaces: Workspaces, state: StateStore) -> None:
    """Everything that was given, the start of the executor that was looked up, and the moment."""
    written = workspaces.track(NAME, status(pid=os.getpid(), task="t", org="o", branch="b"))
    assert written.pid_start == start_of(os.getpid())
    assert written.started_at == written.updated_at > 0
    assert reopened(workspaces, state).all() == {NAME: written}


def test_an_executor_that_had_ended_when_it_was_tracked_has_a_start_of_its_own(workspaces: Workspaces) -> None:
    """Whoever gets its number later is not taken for it."""
    written = workspaces.track(NAME, status(pid=DEAD_PID))
    assert written.pid_start is not None
    assert written.pid_start != start_of(os.getpid())


def test_what_was_untracked_comes_back_only_by_its_file(workspaces: Workspaces, state: StateStore) -> None:
    """The store forgets it; its folder is its owner's, and with that gone nobody knows it."""
    workspaces.track(NAME, status(status="completed"))
    workspaces.untrack(NAME)
    assert state.count(StateGroup.REGISTRY) == 0
    assert list(reopened(workspaces, state).all()) == [NAME]
    workspaces.untrack(NAME)
    shutil.rmtree(file_of(workspaces.roots).parent)
    state.delete(StateGroup.REGISTRY, NAME)
    assert reopened(workspaces, state).all() == {}


@pytest.mark.parametrize(
    "given", [None, {"status": "running"}, status(status=""), status(status=7), status(pid="7"), status(task="\ud800")]
)
def test_a_status_that_is_none_is_refused(workspaces: Workspaces, given: Any) -> None:
    """Nothing is written for it."""
    with pytest.raises(InvalidWorkspace):
        workspaces.track(NAME, given)
    assert not file_of(workspaces.roots).exists()


def test_a_root_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file is where the folder is to be: the status is not written,
    and neither registry nor file change.
    """
    (tmp_path / "file").write_text("mine")
    roots = Roots(str(tmp_path / "file"))
    with StateStore(db_path=roots.database) as state:
        workspaces = Workspaces(roots, state)
        with pytest.raises(WorkspaceNotWritten, match="Make it, or let"):
            workspaces.track(NAME, status())
        assert workspaces.get(NAME) is None
    assert (tmp_path / "file").read_text() == "mine"


def test_without_a_store_files_and_registry_do(roots: Roots) -> None:
    """The store cannot be opened: tracking and hydrating go on with files,
    and nothing is stored.
    """
    roots.make()
    roots.database.mkdir()
    with StateStore(db_path=roots.database) as state:
        workspaces = Workspaces(roots, state)
        workspaces.track(NAME, status(status="queued"))
        put_file(roots, "ghost")
        again = Workspaces(roots, state)
        found = again.hydrate()
    assert (found.workspaces, found.ghosts) == (2, ("ghost",))
    assert json.loads(file_of(roots, "ghost").read_text())["status"] == "failed"


def test_a_start_waits_for_the_lock_and_names_its_holder(roots: Roots) -> None:
    """Another process that keeps the folder is named; nothing was changed meanwhile."""
    with (
        roots.locked("workspaces"),
        pytest.raises(FolderLocked, match=f"process {os.getpid()} was the last"),
        roots.locked("workspaces", timeout_s=0.05),
    ):
        pass


def test_threads_that_track_at_once_lose_nothing(workspaces: Workspaces, state: StateStore) -> None:
    """Each of many changes is in the file, the store, the counts and the registry."""
    names = [f"w{number}" for number in range(24)]
    threads = [threading.Thread(target=workspaces.track, args=(name, status())) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(workspaces.all()) == sorted(names)
    assert state.get(StateGroup.CONCURRENCY, "codex") == {"running": 24}
    assert sorted(name for name, _ in StatusFiles(workspaces.roots.workspaces).walk()) == sorted(names)


def test_runtime_state_survives_a_restart(roots: Roots, state: StateStore) -> None:
    """Seed: deadlines and counts are there for the next agent; what is empty has no row."""
    kept = RuntimeState({"codex": 1_700_000_900_000_000}, {"codex": 3})
    assert persist_runtime(state, kept)
    with StateStore(db_path=roots.database) as other:
        assert load_runtime(other) == kept
        assert persist_runtime(other, RuntimeState({}, {"codex": 1}))
        assert list(dict(other.restore(StateGroup.RUNTIME))) == ["fail_count"]
        assert persist_runtime(other, RuntimeState())
        assert other.count(StateGroup.RUNTIME) == 0
        assert load_runtime(other) == RuntimeState()


def test_runtime_state_that_is_none_is_refused(state: StateStore) -> None:
    """Neither written nor believed: what is no number by agent is an error."""
    with pytest.raises(InvalidState):
        persist_runtime(state, RuntimeState({"codex": "soon"}, {}))  # type: ignore[dict-item]
    state.set(StateGroup.RUNTIME, "backoff", ["damaged"])
    with pytest.raises(CorruptState, match="'backoff' of 'runtime'"):
        load_runtime(state)


def test_damaged_rows_of_the_queue_are_told(workspaces: Workspaces, state: StateStore) -> None:
    """A row that is no queue entry is an error that names its key,
    until the next start writes it again.
    """
    workspaces.track(NAME, status(status="queued"))
    state.set(StateGroup.QUEUE, NAME, 7)
    with pytest.raises(CorruptState, match=NAME):
        workspaces.queue()
    assert list(reopened(workspaces, state).queue()) == [NAME]


def test_what_killed_writers_left_is_removed(workspaces: Workspaces) -> None:
    """Beside a status file, and where none was written yet; that of a writer at work stays."""
    beside = put_file(workspaces.roots, status="queued").with_name(".unfinished-1")
    alone = file_of(workspaces.roots, "core/new").with_name(".unfinished-2")
    at_work = file_of(workspaces.roots, "core/busy").with_name(".unfinished-3")
    for path in (beside, alone, at_work):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with at_work.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert workspaces.hydrate().problems == ()
    assert [path.exists() for path in (beside, alone, at_work)] == [False, False, True]
