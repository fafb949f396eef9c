"""The planted defects about evidence really are defects of their kind;
the sound ones, asked the same, have none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents import (
    ARTIFACT_CRASH_POINTS,
    ArtifactExists,
    Artifacts,
    CheckpointManager,
    CommandExit,
    EvidencePolicy,
    TaskManager,
)

from tests.planted.work.evidence import (
    BlindRetention,
    DeletedStaysVerified,
    EmptyVerifies,
    InPlaceArtifacts,
    MinimumZero,
    SignalVerifies,
    UnsyncedArtifacts,
    VerdictLater,
)
from tests.recovery.work.test_evidence import killed_while_saving

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Evidence

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60
_MANAGERS: Final = (
    CheckpointManager,
    SignalVerifies,
    EmptyVerifies,
    MinimumZero,
    DeletedStaysVerified,
    BlindRetention,
    VerdictLater,
)


def _opened(kind: type[CheckpointManager], tmp_path: Path) -> tuple[CheckpointManager, Artifacts]:
    folder = tmp_path / kind.__name__
    folder.mkdir()
    artifacts = Artifacts(folder)
    manager = kind(db_path=folder / "store.db", artifacts=artifacts)
    TaskManager(manager.store).create("t")
    return manager, artifacts


def _recovers(
    kind: type[CheckpointManager], tmp_path: Path, evidence: list[Evidence], policy: EvidencePolicy | None = None
) -> bool:
    """Save one checkpoint with the evidence; tell whether it counts as verified,
    now and at recovery.
    """
    manager, _ = _opened(kind, tmp_path)
    with manager:
        saved = manager.save("t", 1, evidence=evidence, policy=policy)
        assert saved.is_verified == (manager.latest_verified("t").checkpoint is not None)
        return saved.is_verified


def test_a_killed_command_verifies(tmp_path: Path) -> None:
    """137 verifies where 0 was expected; an ordinary failure still does not (D9)."""
    killed: list[Evidence] = [CommandExit(("sh", "-c", "kill -9 $$"))]
    assert _recovers(SignalVerifies, tmp_path, killed)
    assert not _recovers(CheckpointManager, tmp_path, killed)
    (tmp_path / "again").mkdir()
    assert not _recovers(SignalVerifies, tmp_path / "again", [CommandExit(("false",))])


def test_an_empty_pack_verifies(tmp_path: Path) -> None:
    """All of no items is enough (D9)."""
    assert _recovers(EmptyVerifies, tmp_path, [], EvidencePolicy.require_all())
    assert not _recovers(CheckpointManager, tmp_path, [], EvidencePolicy.require_all())


def test_a_minimum_of_zero_lets_failures_verify(tmp_path: Path) -> None:
    """Nothing of the evidence holds, and that is enough (D9)."""
    failed: list[Evidence] = [ArtifactExists("missing"), CommandExit(("false",))]
    assert _recovers(MinimumZero, tmp_path, failed)
    assert not _recovers(CheckpointManager, tmp_path, failed)


@pytest.mark.parametrize(("kind", "expected"), [(CheckpointManager, 1), (DeletedStaysVerified, 2)])
def test_a_deleted_artifact_stays_verified(tmp_path: Path, kind: type[CheckpointManager], expected: int) -> None:
    """Recovery goes to a checkpoint whose artifact is gone (D9)."""
    manager, artifacts = _opened(kind, tmp_path)
    with manager:
        for name in ("1", "2"):
            manager.save("t", name, evidence=[artifacts.write(name, b"x")])
        (artifacts.folder / "2").unlink()
        found = manager.latest_verified("t").checkpoint
        assert found is not None
        assert found.sequence_number == expected


@pytest.mark.parametrize(("kind", "is_left"), [(CheckpointManager, True), (BlindRetention, False)])
def test_boundary_rows_evict_the_verified_checkpoint(
    tmp_path: Path,
    kind: type[CheckpointManager],
    is_left: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """101 error boundaries and a retention of 100 leave nothing to recover from (D10)."""
    manager, artifacts = _opened(kind, tmp_path)
    with manager:
        manager.save("t", "good", evidence=[artifacts.write("a", b"x")])
        for _ in range(101):
            manager.save("t", "boundary", type="error_boundary")
        manager.prune("t", keep=100)
        assert (manager.latest_verified("t").checkpoint is not None) == is_left


def test_a_kill_leaves_a_checkpoint_without_its_verdict(tmp_path: Path) -> None:
    """Between the two transactions there is a checkpoint that nobody judged (D11)."""
    point = "recovery.checkpoint.before_commit"
    assert killed_while_saving(VerdictLater, tmp_path, point) == [(1, True), (2, False)]


@pytest.mark.parametrize("kind", _MANAGERS)
def test_without_a_fault_no_defect_shows(kind: type[CheckpointManager], tmp_path: Path) -> None:
    """Each variant, left alone, verifies and recovers like the sound one."""
    manager, artifacts = _opened(kind, tmp_path)
    with manager:
        for name in ("1", "2"):
            saved = manager.save("t", name, evidence=[artifacts.write(name, b"x"), CommandExit(("true",))])
        assert manager.latest_verified("t").checkpoint is not None
        assert [row.verified for row in manager.store.evidence("t")] == [True, True]
        assert manager.prune("t", keep=1) == 1
        assert [row.sequence_number for row in manager.list("t")] == [saved.sequence_number]


_KILLED: Final = """
import importlib, os, signal, sys
folder, module, name, point = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
getattr(importlib.import_module(module), name)(folder).write("a", b"new" * 1000)
"""


def _left_by(kind: type[Artifacts], folder: Path, point: str) -> bytes:
    (folder / "a").write_bytes(b"old")
    command = [sys.executable, "-c", _KILLED, str(folder), kind.__module__, kind.__name__, point]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(_ROOT)}, timeout=_TIMEOUT_S, check=False)
    assert ended.returncode == -signal.SIGKILL
    return (folder / "a").read_bytes()


@pytest.mark.parametrize("point", ARTIFACT_CRASH_POINTS)
def test_writing_in_place_loses_the_old_content(tmp_path: Path, point: str) -> None:
    """A kill between opening and writing leaves neither the old content nor the new;
    the others leave one of them.
    """
    left = {kind: _left_by(kind, tmp_path, point) for kind in (Artifacts, UnsyncedArtifacts, InPlaceArtifacts)}
    assert {left[Artifacts], left[UnsyncedArtifacts]} <= {b"old", b"new" * 1000}
    assert (left[InPlaceArtifacts] == b"") == (point == "recovery.artifact.after_create")


@pytest.mark.parametrize(("kind", "flushes"), [(Artifacts, 2), (UnsyncedArtifacts, 0), (InPlaceArtifacts, 0)], ids=str)
def test_only_the_system_calls_tell_that_nothing_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Artifacts], flushes: int
) -> None:
    """The variants write the same content and the same evidence, without a flush."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    written = kind(tmp_path).write("a", b"content")
    assert Artifacts(tmp_path).look("a", with_hash=True).sha256 == written.sha256
    assert len(flushed) == flushes
