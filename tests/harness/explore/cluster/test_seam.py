"""A pool whose batches are judged elsewhere finds the same as ours, whatever becomes of a batch.

The benches are real; in the place of Dask there are threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.explore.cluster import seam
from pytest_chaos.explore.cluster.wire import BatchTask
from pytest_chaos.explore.explorer import Explorer
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import CommandSubject, subject_of
from pytest_chaos.model.values import Verdict

from scenarios.whole.clusters import told
from tests.harness.explore import explored as targets
from tests.harness.explore.cluster.engines import RefusingEngine, ThreadEngine
from tests.planted import seams

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.report import Exploration
    from pytest_chaos.explore.target import Subject

pytest.importorskip("cloudpickle", reason="a target is sent to a cluster by cloudpickle: pip install '.[cluster]'")


def explored(target: object, folder: Path, engine: ThreadEngine | None = None, **chosen: Any) -> Exploration:
    """Explore a target in this process."""
    subject: Subject = subject_of(target)
    chosen.setdefault("families", (Family.CRASH, Family.POWER))
    options = Options(seed="seam", kept=folder / "states", **chosen)
    work = folder / ("theirs" if engine is not None else "ours")
    work.mkdir()
    return Explorer(subject, step_source(), options, work, engine=engine).explore()  # type: ignore[arg-type] # as one


@pytest.mark.parametrize(
    ("target", "families"),
    [
        pytest.param(targets.Careful, (Family.CRASH, Family.POWER), marks=pytest.mark.nightly),
        (targets.Unsynced, (Family.CRASH, Family.POWER)),
        pytest.param(targets.BadRecovery, (Family.CRASH, Family.RECOVERY), marks=pytest.mark.nightly),
        pytest.param(targets.BadOnErrors, (Family.IO,), marks=pytest.mark.nightly),
    ],
)
def test_the_same_is_found_as_by_our_pool(target: type, families: tuple[Family, ...], tmp_path: Path) -> None:
    """Verdicts, counts, findings and state codes are those of the pool, for the same seed."""
    with ThreadEngine() as engine:
        theirs = explored(target, tmp_path, engine, families=families)
    assert engine.batches > 0
    assert told(theirs) == told(explored(target, tmp_path, families=families))


@pytest.mark.nightly
def test_a_parcel_is_shipped_once(tmp_path: Path) -> None:
    """However many batches there are, and families."""
    with ThreadEngine() as engine:
        explored(targets.Careful, tmp_path, engine)
    assert len(engine.parcels) == 1
    assert engine.batches > 2


@pytest.mark.nightly
def test_what_was_judged_twice_is_counted_once(tmp_path: Path) -> None:
    """Each batch has two answers."""
    with ThreadEngine(twice=True) as engine:
        theirs = explored(targets.Unsynced, tmp_path, engine)
    assert told(theirs) == told(explored(targets.Unsynced, tmp_path))


def test_a_lost_batch_is_handed_in_again(tmp_path: Path) -> None:
    """The first is lost, and so is the first that takes its place."""
    with ThreadEngine(lost=(1, 2, 5), workers=1) as engine:
        theirs = explored(targets.Unsynced, tmp_path, engine)
    assert told(theirs) == told(explored(targets.Unsynced, tmp_path))


@pytest.mark.nightly
def test_a_batch_that_is_lost_each_time_is_inconclusive(tmp_path: Path) -> None:
    """After four times its states are not judged, which is said, and never green."""
    with ThreadEngine(lost=range(1, 100)) as engine:
        found = explored(targets.Careful, tmp_path, engine, families=(Family.CRASH,))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "handed to the cluster 4 times, and were not judged: KilledWorker" in str(found.findings)


def test_a_cluster_that_goes_away_is_inconclusive(tmp_path: Path) -> None:
    """What was judged by then counts, and the rest is not green."""
    with ThreadEngine(gone_after=3, workers=1) as engine:
        found = explored(targets.Careful, tmp_path, engine)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert [each.signature for each in found.findings] == ["harness:cluster-lost"]
    assert "went away; run it again to go on" in found.findings[0].text
    assert not all(family.is_complete for family in found.families)


def test_a_worker_that_refuses_is_inconclusive(tmp_path: Path) -> None:
    """Its reason is told."""
    with RefusingEngine(lambda: "a worker has Python 2.7") as engine:
        found = explored(targets.Careful, tmp_path, engine)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "a worker has Python 2.7" in str(found.findings)


@pytest.mark.nightly
def test_a_worker_that_builds_another_state_does_not_judge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of each state is compared: a finding of another state would be nobody's."""
    true = seam._task_of

    def wrong(task: Any) -> Any:
        return true(task) if task.state is None else BatchTask(task.state.code, task.marks, digest=b"another")

    monkeypatch.setattr(seam, "_task_of", wrong)
    with ThreadEngine() as engine:
        found = explored(targets.Careful, tmp_path, engine, families=(Family.CRASH,))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "harness:cluster-state-differs" in {each.signature for each in found.all_findings}


@pytest.mark.nightly
def test_a_target_of_commands_goes_with_its_files(tmp_path: Path) -> None:
    """A script that is not where the benches are is sent to them."""
    run, check = tmp_path / "run.sh", tmp_path / "check.sh"
    run.write_text("#!/bin/sh\nprintf one > file\nprintf two > file\n")
    check.write_text('#!/bin/sh\ntest ! -s file || grep -q . file || { echo "it is blank"; exit 1; }\n')
    for script in (run, check):
        script.chmod(0o755)
    subject = CommandSubject([str(run)], [str(check)])
    with ThreadEngine() as engine:
        theirs = explored(subject, tmp_path, engine, families=(Family.CRASH, Family.IO))
    assert engine.batches > 0
    assert told(theirs) == told(explored(subject, tmp_path, families=(Family.CRASH, Family.IO)))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("planted", "engine"),
    [(seams.CountsTwice, ThreadEngine(twice=True)), (seams.DropsLost, ThreadEngine(lost=(1, 2)))],
)
def test_a_planted_seam_is_caught(
    planted: type[seam.BatchPool], engine: ThreadEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seam with one known bug judges another number of states."""
    monkeypatch.setattr(seam, "BatchPool", planted)
    with engine:
        theirs = explored(targets.Unsynced, tmp_path, engine, families=(Family.POWER,))
    assert told(theirs) != told(explored(targets.Unsynced, tmp_path, families=(Family.POWER,)))
