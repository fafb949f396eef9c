"""Recovery goes to the newest checkpoint that verifies now,
and retention never takes that one away.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from durable_agents import (
    ArtifactExists,
    Artifacts,
    CheckpointManager,
    CheckpointType,
    EvidencePolicy,
    Reason,
    SqliteStore,
    TaskManager,
)
from durable_agents.errors import UnknownTask
from durable_agents.work.checkpoints import PRUNE_BATCH, SKIPPED_MAX
from hypothesis import given, settings, strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="artifacts")
def _artifacts(tmp_path: Path) -> Artifacts:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Artifacts(folder)


@pytest.fixture(name="manager")
def _manager(tmp_path: Path, artifacts: Artifacts) -> Iterator[CheckpointManager]:
    with CheckpointManager(db_path=tmp_path / "store.db", artifacts=artifacts) as manager:
        TaskManager(manager.store).create("t")
        yield manager


def _save_verified(manager: CheckpointManager, artifacts: Artifacts, name: str) -> int:
    saved = manager.save("t", name, evidence=[artifacts.write(name, name.encode())])
    assert saved.is_verified
    return saved.sequence_number


def _numbers(manager: CheckpointManager) -> list[int]:
    return [checkpoint.sequence_number for checkpoint in manager.list("t")]


def test_recovery_goes_to_the_newest_that_verifies_now(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Deleted, changed and missing evidence is passed over, and told with its reason,
    newest first (D9).
    """
    saved = [manager.save("t", name, evidence=[artifacts.write(name, b"1")]) for name in ("a", "b", "c")]
    assert manager.latest_verified("t").checkpoint == saved[2]
    manager.save("t", "without")
    (artifacts.folder / "b").unlink()
    artifacts.write("c", b"changed")
    recovery = manager.latest_verified("t")
    assert recovery.checkpoint == saved[0]
    assert recovery.skipped_count == 3
    assert [(skipped.sequence_number, skipped.why.split(": ")[0]) for skipped in recovery.skipped] == [
        (4, "it was saved without evidence"),
        (3, "0 of 1 items verified where 1 must"),
        (2, "0 of 1 items verified where 1 must"),
    ]
    reasons = [skipped.verification.verdicts[0].reason for skipped in recovery.skipped if skipped.verification]
    assert reasons == [Reason.OTHER_CONTENT, Reason.MISSING]


def test_evidence_that_appears_later_verifies_later(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """The verdict of the day it was saved does not bind recovery, either way."""
    saved = manager.save("t", 1, evidence=[ArtifactExists("late")])
    assert not saved.is_verified
    assert manager.latest_verified("t").checkpoint is None
    artifacts.write("late", b"1")
    found = manager.latest_verified("t").checkpoint
    assert found is not None
    assert (found.sequence_number, found.is_verified) == (1, True)


def test_a_damaged_snapshot_is_passed_over(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Evidence that holds does not help a snapshot that does not match its hash."""
    for name in ("a", "b"):
        _save_verified(manager, artifacts, name)
    assert isinstance(manager.store, SqliteStore)
    with closing(sqlite3.connect(manager.store.path)) as connection:
        connection.execute("UPDATE checkpoints SET snapshot = '\"x\"' WHERE sequence_number = 2")
        connection.commit()
    recovery = manager.latest_verified("t")
    assert recovery.checkpoint is not None
    assert recovery.checkpoint.sequence_number == 1
    assert "must have the SHA-256" in recovery.skipped[0].why


def test_lost_items_of_evidence_do_not_make_a_checkpoint_verified(
    manager: CheckpointManager, artifacts: Artifacts
) -> None:
    """How many items must verify is stored apart from them, so that fewer items are not enough."""
    manager.save("t", 1, evidence=[artifacts.write("a", b"1"), artifacts.write("b", b"1")])
    assert isinstance(manager.store, SqliteStore)
    with closing(sqlite3.connect(manager.store.path)) as connection:
        connection.execute("UPDATE checkpoint_evidence SET verdicts = json_remove(verdicts, '$[1]')")
        connection.commit()
    assert manager.latest_verified("t").checkpoint is None


def test_recovery_of_nothing_finds_nothing(manager: CheckpointManager) -> None:
    """A task without checkpoints has none, and one that does not exist is an error."""
    recovery = manager.latest_verified("t")
    assert (recovery.checkpoint, recovery.skipped, recovery.skipped_count) == (None, (), 0)
    assert manager.prune("t", keep=1) == 0
    for call in (lambda: manager.latest_verified("nobody"), lambda: manager.prune("nobody", keep=1)):
        with pytest.raises(UnknownTask):
            call()


def test_recovery_tells_of_the_newest_skipped_only(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """However many were passed over, the list has a bound and the count is right."""
    first = _save_verified(manager, artifacts, "a")
    draft = manager.draft("t", None, type=CheckpointType.ERROR_BOUNDARY)
    with manager.store.transaction() as transaction:
        for _ in range(1200):
            manager.append(transaction, draft)
    recovery = manager.latest_verified("t")
    assert recovery.checkpoint is not None
    assert recovery.checkpoint.sequence_number == first
    assert recovery.skipped_count == 1200
    assert [skipped.sequence_number for skipped in recovery.skipped] == list(range(1201, 1201 - SKIPPED_MAX, -1))


def test_retention_keeps_as_many_as_it_is_told(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """The oldest go, with their evidence, and the next number goes on."""
    for name in "abcdef":
        _save_verified(manager, artifacts, name)
    assert manager.prune("t", keep=2) == 4
    assert _numbers(manager) == [5, 6]
    assert isinstance(manager.store, SqliteStore)
    with closing(sqlite3.connect(manager.store.path)) as connection:
        rows = connection.execute("SELECT sequence_number FROM checkpoint_evidence ORDER BY 1").fetchall()
    assert rows == [(5,), (6,)]
    assert manager.prune("t", keep=2) == 0
    assert _save_verified(manager, artifacts, "g") == 7


def test_boundary_rows_do_not_evict_the_verified_one(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """After 101 error boundaries the only verified checkpoint is still there (D10)."""
    _save_verified(manager, artifacts, "stale")
    good = _save_verified(manager, artifacts, "good")
    for _ in range(101):
        manager.save("t", {"error": "x"}, type=CheckpointType.ERROR_BOUNDARY)
    assert manager.prune("t", keep=100) == 1
    found = manager.latest_verified("t").checkpoint
    assert found is not None
    assert found.sequence_number == good
    assert _numbers(manager) == list(range(good, good + 102))


def test_retention_keeps_what_recovery_would_find(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """A checkpoint that verified once and no longer does is no reason to drop the one before it."""
    for name in "abcd":
        _save_verified(manager, artifacts, name)
    for name in "cd":
        (artifacts.folder / name).unlink()
    assert manager.prune("t", keep=1) == 1
    assert _numbers(manager) == [2, 3, 4]


def test_retention_waits_for_evidence_that_is_away(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """With nothing verifying now, as when a disk is not mounted, the newest that once did stays."""
    for name in "abc":
        _save_verified(manager, artifacts, name)
    manager.save("t", "boundary")
    away = artifacts.folder.with_name("away")
    artifacts.folder.rename(away)
    assert manager.prune("t", keep=1) == 2
    assert _numbers(manager) == [3, 4]
    away.rename(artifacts.folder)
    assert manager.latest_verified("t").checkpoint is not None


def test_retention_takes_short_turns(manager: CheckpointManager) -> None:
    """Many deletions are several transactions, each of which leaves contiguous numbers."""
    draft = manager.draft("t", None, type="x")
    with manager.store.transaction() as transaction:
        for _ in range(2 * PRUNE_BATCH + 10):
            manager.append(transaction, draft)
    with manager.store.transaction() as transaction:
        assert transaction.delete_checkpoints("t", 2**63 - 1, PRUNE_BATCH) == PRUNE_BATCH
    assert _numbers(manager)[0] == PRUNE_BATCH + 1
    assert manager.prune("t", keep=5) == PRUNE_BATCH + 5
    assert _numbers(manager) == list(range(2 * PRUNE_BATCH + 6, 2 * PRUNE_BATCH + 11))


def test_retention_leaves_other_tasks_alone(manager: CheckpointManager) -> None:
    """Only the named task loses checkpoints."""
    TaskManager(manager.store).create("other")
    for task_id in ("t", "other") * 3:
        manager.save(task_id, None)
    assert manager.prune("t", keep=1) == 2
    assert len(manager.list("other")) == 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["verified", "failed", "none", "lost"]), min_size=1, max_size=8), st.integers(1, 9))
def test_whatever_was_saved_retention_spares_what_recovery_needs(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], keep: int
) -> None:
    """Before and after, recovery finds the same; what stays is contiguous and at least what was to
    be kept.
    """
    artifacts = Artifacts(tmp_path_factory.mktemp("artifacts"))
    with CheckpointManager(db_path=artifacts.folder / "store.db", artifacts=artifacts) as manager:
        TaskManager(manager.store).create("t")
        for number, kind in enumerate(kinds):
            name = f"{kind}-{number}"
            if kind in {"verified", "lost"}:
                artifacts.write(name, b"1")
            manager.save(
                "t", number, evidence=[] if kind == "none" else [ArtifactExists(name)], policy=EvidencePolicy()
            )
            if kind == "lost":
                (artifacts.folder / name).unlink()
        before = manager.latest_verified("t").checkpoint
        deleted = manager.prune("t", keep=keep)
        assert manager.latest_verified("t").checkpoint == before
        assert _numbers(manager) == list(range(deleted + 1, len(kinds) + 1))
        newest_good = max((n for n, kind in enumerate(kinds) if kind == "verified"), default=None)
        if newest_good is None:
            newest_good = max((n for n, kind in enumerate(kinds) if kind == "lost"), default=len(kinds))
        assert deleted == max(0, min(len(kinds) - keep, newest_good))
