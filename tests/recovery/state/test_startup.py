"""Start-up: one order, the same state however often,
and an answer to every folder that is not as it should be.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents import (
    Buffers,
    Disposition,
    PeriodicService,
    Roots,
    RuntimeState,
    Startup,
    StateCrashPoint,
    StateGroup,
    StateStore,
    Workspaces,
    persist_runtime,
)
from durable_agents.errors import FolderLocked
from durable_agents.state.buffers import BufferOwner
from durable_agents.state.startup import startup

from tests.recovery.disks import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

GHOST: Final = "core/go-io/ghost"
_ORPHAN: Final = BufferOwner("qa", "0" * 16 + "-" + "a" * 12, 4_194_305, "00000000-0000-0000-0000-000000000000:1")

_heard: list[str] | None = None


def _listen(event: str, _: tuple[object, ...]) -> None:
    if _heard is not None and event.startswith("recovery."):
        _heard.append(event)


sys.addaudithook(_listen)


@pytest.fixture(name="heard")
def _hear() -> Iterator[list[str]]:
    """Return the crash points that a test passes. A hook cannot be removed, so there is one,
    switched off.
    """
    global _heard  # noqa: PLW0603 - the one place that switches the hook
    _heard = []
    yield _heard
    _heard = None


class Loop:
    """Something that is started."""

    def __init__(self, name: str, started: list[str]) -> None:
        self._name = name
        self._started = started

    def start(self) -> None:
        """Note it."""
        sys.audit(f"recovery.test.{self._name}")
        self._started.append(self._name)


def lay(roots: Roots) -> None:
    """Lay a ghost and two orphans into the folder."""
    roots.make()
    file = roots.workspaces / GHOST / "status.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"status": "running", "pid": 0, "agent": "codex:x"}))
    (roots.buffers / (_ORPHAN.stem + ".buffer")).write_bytes(b"")
    (roots.buffers / "unknown.buffer").write_bytes(b"")


def start(roots: Roots, started: list[str] | None = None) -> Startup:
    """Start an agent on a folder, as a new process would, and close its store."""
    with StateStore(db_path=roots.database) as state:
        loops = [Loop(name, started) for name in ("first", "second")] if started is not None else []
        return startup(Workspaces(roots, state), Buffers(roots, state), state, loops)


def ghost(roots: Roots) -> str:
    """Return what the ghost's file says."""
    return str(json.loads((roots.workspaces / GHOST / "status.json").read_text())["status"])


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "root"))


def test_the_order_is_workspaces_runtime_orphans_loops(roots: Roots, heard: list[str]) -> None:
    """Every named point is passed, in the order that is promised."""
    lay(roots)
    started: list[str] = []
    found = start(roots, started)
    assert started == ["first", "second"]
    passed = list(dict.fromkeys(event for event in heard if not event.startswith("recovery.artifact.")))
    hydrate, orphans = list(StateCrashPoint.of("hydrate")), list(StateCrashPoint.of("orphans"))
    begin, runtime, recover, loops, end = StateCrashPoint.of("startup")
    tests = ["recovery.test.first", "recovery.test.second"]
    assert passed == [begin, *hydrate, runtime, recover, *orphans, loops, *tests, end]
    assert (found.hydration.ghosts, found.problems) == ((GHOST,), ())
    assert (found.orphans.count(Disposition.DISCARDED), found.orphans.count(Disposition.QUARANTINED)) == (1, 1)


def test_a_loop_is_a_periodic_service(roots: Roots) -> None:
    """What the core has for loops can be started, once the state is there."""
    with StateStore(db_path=roots.database) as state:
        workspaces, ran = Workspaces(roots, state), threading.Event()

        def run_once(_: int) -> None:
            if workspaces.get(GHOST) is not None:
                ran.set()

        service = PeriodicService(run_once, interval_s=60)
        lay(roots)
        startup(workspaces, Buffers(roots, state), state, [service])
        assert ran.wait(10)
        assert service.stop()


def test_after_a_clean_stop_there_is_nothing_to_do(roots: Roots, heard: list[str]) -> None:
    """The second start finds the same and writes nothing, not even an empty transaction."""
    lay(roots)
    start(roots)
    before = _bytes(roots)
    heard.clear()
    again = start(roots)
    assert (again.hydration.workspaces, again.hydration.ghosts, again.orphans.found) == (1, (), ())
    assert "recovery.hydrate.in_commit" not in heard
    assert _bytes(roots) == before


def _bytes(roots: Roots) -> dict[str, bytes]:
    found = (path for path in Path(roots.folder).rglob("*") if path.is_file())
    transient = ("-queue", "-lock", "-shm", "-wal")
    return {str(path): path.read_bytes() for path in found if not path.name.endswith(transient)}


def test_runtime_state_is_loaded(roots: Roots) -> None:
    """Deadlines of before are known when the loops start;
    damaged ones are told and not believed.
    """
    roots.make()
    with StateStore(db_path=roots.database) as state:
        persist_runtime(state, RuntimeState({"codex": 9}, {"codex": 2}))
    assert start(roots).runtime == RuntimeState({"codex": 9}, {"codex": 2})
    with StateStore(db_path=roots.database) as state:
        state.set(StateGroup.RUNTIME, "backoff", "damaged")
    found = start(roots)
    assert (found.runtime, len(found.problems)) == (RuntimeState(), 1)


def test_a_missing_folder_is_made(roots: Roots) -> None:
    """The first start of all: nothing is found, and the folders are there."""
    found = start(roots)
    assert (found.hydration.workspaces, found.orphans.found, found.problems) == (0, (), ())
    assert roots.database.exists()


def test_two_starts_at_once_do_everything_once(roots: Roots) -> None:
    """The second waits and finds nothing left: one ghost and two orphans in all, and one state."""
    lay(roots)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: start(roots), range(4)))
    assert [each.problems for each in found] == [()] * 4
    assert sum(len(each.hydration.ghosts) for each in found) == 1
    assert sum(len(each.orphans.found) for each in found) == 2
    assert ghost(roots) == "failed"


def test_a_start_that_waits_too_long_names_who_keeps_the_folder(roots: Roots) -> None:
    """Nothing is hydrated and no loop is started."""
    lay(roots)
    started: list[str] = []
    with roots.locked("startup"), StateStore(db_path=roots.database) as state:
        parts = Workspaces(roots, state), Buffers(roots, state), state
        with pytest.raises(FolderLocked, match=f"process {os.getpid()}"):
            startup(*parts, [Loop("first", started)], lock_timeout_s=0.05)
    assert (started, ghost(roots)) == ([], "running")


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_read_only_folder_is_started_on(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ghosts fail in the registry alone, orphans stay, nothing is stored;
    each is told, and the loops are started.
    """
    roots = Roots(str(disk))
    lay(roots)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    started: list[str] = []
    with caplog.at_level(logging.WARNING):
        found = start(roots, started)
    assert found.hydration.ghosts == (GHOST,)
    assert (ghost(roots), started) == ("running", ["first", "second"])
    assert sum("nothing will be stored" in record.getMessage() for record in caplog.records) == 1
    assert len(found.problems) == 3
    assert len(list(roots.buffers.iterdir())) == 2
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert start(roots).problems == ()
    assert ghost(roots) == "failed"


@pytest.mark.parametrize("has_database", [False, True])
def test_a_full_folder_is_started_on(disk: Path, has_database: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """What cannot be written is told and left whole; once there is room, the next start does it."""
    roots = Roots(str(disk))
    roots.make()
    if has_database:
        start(roots)
    lay(roots)
    filler = fill(disk)
    started: list[str] = []
    found = start(roots, started)
    assert found.hydration.ghosts == (GHOST,)
    assert (ghost(roots), started) == ("running", ["first", "second"])
    assert any("not_written" in problem for problem in found.problems)
    filler.unlink()
    again = start(roots)
    assert (again.problems, ghost(roots)) == ((), "failed")
    with StateStore(db_path=roots.database) as state:
        assert state.get(StateGroup.REGISTRY, GHOST)["status"] == "failed"
