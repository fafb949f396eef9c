"""Every scenario catches its planted defects by name, and holds on the sound core under the same seed and plans.

Each session here is an inner one, a pytest of its own with results of its own: none of its runs is in the matrix.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import records
from harness.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model import RunRecord

    Session = Callable[[str, str], "Outcome"]

ROOT = Path(__file__).resolve().parents[2]
SEED = "planted"
SOUND = "recovery:CheckpointManager"
KILL_9 = "scenarios/test_01_kill_9.py"
CONCURRENT = "scenarios/test_02_concurrent_checkpoints.py"
TAKEOVER = "scenarios/test_03_lease_takeover.py"
END_TO_END = "scenarios/test_07_end_to_end.py"
SWEEP = "scenarios/test_04_recovery_sweep.py"
VARIANTS = "tests.planted.checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What an inner session amounted to: its exit code, and its runs by node id."""

    code: int
    runs: dict[str, RunRecord]

    def violated_by(self) -> dict[str, set[str]]:
        """Return the signatures of each run that was violated."""
        return {
            name: {finding.signature for finding in run.findings}
            for name, run in self.runs.items()
            if run.verdict is Verdict.VIOLATED
        }


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a function that runs a scenario with a manager, once for each pair of them."""
    known: dict[tuple[str, str], Outcome] = {}

    def run(scenario: str, manager: str) -> Outcome:
        if (scenario, manager) not in known:
            known[scenario, manager] = _run(scenario, manager, tmp_path_factory.mktemp("inner"))
        return known[scenario, manager]

    return run


def _run(scenario: str, manager: str, results: Path) -> Outcome:
    options = ["--chaos-plant", manager, "--chaos-seed", SEED, "--chaos-results", str(results), "--chaos-confirm", "0"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        scenario,
        "-m",
        "chaos",
        "-q",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, timeout=200, check=False
    )
    return Outcome(done.returncode, {run.node_id: run for run in records.read(results).runs})


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("NumberOutsideTransaction", "durability:number-repeated", "test_paused_between_number_and_insert"),
        ("AckBeforeCommit", "durability:acknowledged-lost", "test_killed_at_moments_drawn_from_the_seed"),
        ("TwoTransactions", "durability:half-there", "test_killed_at_a_named_point[before_commit]"),
        ("SynchronousOff", "pragma:synchronous", "test_without_faults_every_crash_point_is_passed"),
    ],
)
def test_kill_9_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """A core with one known bug is VIOLATED, by the finding with that bug's name, in the run that provokes it."""
    outcome = session(KILL_9, f"{VARIANTS}:{variant}")
    assert outcome.code == 1
    assert signature in outcome.violated_by()[f"{KILL_9}::{test}"]


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("NumberOutsideTransaction", "durability:number-repeated", "test_one_database"),
        ("Impatient", "agent:raised:DatabaseLocked", "test_one_database"),
        ("SynchronousOff", "pragma:synchronous", "test_ten_databases"),
    ],
)
def test_concurrent_writers_catch_their_planted_defects(
    session: Session, variant: str, signature: str, test: str
) -> None:
    """Numbers that are shared, a writer that does not wait for a lock, and one that does not sync are all found."""
    outcome = session(CONCURRENT, f"{VARIANTS}:{variant}")
    assert outcome.code == 1
    assert signature in outcome.violated_by()[f"{CONCURRENT}::{test}"]


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("RenewsExpired", "expectation:the zombie is refused", "test_a_zombie_wakes_before_anybody_took_over"),
        ("EndsByName", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
        ("Unfenced", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
    ],
)
def test_takeovers_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """A lease that is renewed when it is over, an end without a token, and a write without a fence are found."""
    outcome = session(TAKEOVER, f"tests.planted.leases:{variant}")
    assert outcome.code == 1
    assert signature in outcome.violated_by()[f"{TAKEOVER}::{test}"]


@pytest.mark.parametrize("variant", ["SweepsById", "CountsWhatItFinds"])
def test_sweeps_catch_their_planted_defects(session: Session, variant: str) -> None:
    """Sweeps that act on what they no longer know, or report what another did, recover leases twice."""
    outcome = session(SWEEP, f"tests.planted.leases:{variant}")
    assert outcome.code == 1
    found = outcome.violated_by()[f"{SWEEP}::test_ten_thousand_leases_and_four_sweepers"]
    assert "exactly-once:repeated" in found


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("ForgetsProgress", "attempts:checkpointed-work-repeated", "test_killed_six_times"),
        ("TrustsNewest", "effects:missing-or-torn", "test_an_artifact_is_lost"),
    ],
)
def test_end_to_end_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """A worker that begins anew, and one that believes a checkpoint whose artifact is gone, are found."""
    outcome = session(END_TO_END, f"tests.planted.workers:{variant}")
    assert outcome.code == 1
    assert signature in outcome.violated_by()[f"{END_TO_END}::{test}"]


@pytest.mark.parametrize("scenario", [TAKEOVER, SWEEP, END_TO_END])
def test_the_sound_core_holds_under_the_same_seed(session: Session, scenario: str) -> None:
    """With the same seed the sound leases, sweeps and workers hold."""
    sound = session(scenario, SOUND)
    assert sound.code == 0
    assert {run.verdict for run in sound.runs.values()} == {Verdict.HELD}


@pytest.mark.parametrize("scenario", [KILL_9, CONCURRENT])
def test_the_sound_core_holds_under_the_same_plans(session: Session, scenario: str) -> None:
    """With the seed that the defects were found with, the sound core holds, and met the very same faults."""
    sound = session(scenario, SOUND)
    assert sound.code == 0
    assert {run.verdict for run in sound.runs.values()} == {Verdict.HELD}
    for variant in ("NumberOutsideTransaction", "SynchronousOff"):
        planted = session(scenario, f"{VARIANTS}:{variant}")
        assert {name: run.plan for name, run in planted.runs.items()} == {
            name: run.plan for name, run in sound.runs.items()
        }


def test_every_kill_has_its_receipt(session: Session) -> None:
    """On the sound core every planned kill was seen as an exit by signal 9."""
    receipts = [receipt for run in session(KILL_9, SOUND).runs.values() for receipt in run.receipts]
    kills = [receipt for receipt in receipts if receipt.kind == "kill"]
    assert len(kills) > 20
    assert {receipt.evidence for receipt in kills} == {"process ended by signal 9"}
