"""Every scenario catches its planted defects by name,
and holds on the sound core under the same seed and plans.

Each session here is an inner one, a pytest of its own with results of its own: none of its runs is
in the matrix.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict

from tests.acceptance.once import made_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.model.values import RunRecord

    Session = Callable[..., "Outcome"]

ROOT = Path(__file__).resolve().parents[2]
SEED = "planted"
SESSION_S = 900
"""The bound on an inner session. On a busy machine, all runs of scenario 12 took more than 200 s.
"""

pytestmark = pytest.mark.timeout(2 * SESSION_S + 60)  # a test makes two of them, or waits for another worker
SOUND = "durable_agents:CheckpointManager"
KILL_9 = "scenarios/work/test_01_kill_9.py"
CONCURRENT = "scenarios/work/test_02_concurrent_checkpoints.py"
TAKEOVER = "scenarios/work/test_03_lease_takeover.py"
END_TO_END = "scenarios/work/test_07_end_to_end.py"
SWEEP = "scenarios/work/test_04_recovery_sweep.py"
FINALISE = "scenarios/jobs/test_08_job_finalisation.py"
LIVENESS = "scenarios/jobs/test_09_executor_liveness.py"
RIVALS = "scenarios/jobs/test_10_rival_reapers.py"
LOST = "scenarios/webhooks/test_11_lost_webhooks.py"
UNRULY = "scenarios/webhooks/test_12_unruly_deliveries.py"
RED_GATE = "scenarios/jobs/test_16_red_gate.py"
GHOSTS = "scenarios/state/test_13_restart_with_ghosts.py"
ORPHANS = "scenarios/state/test_14_orphan_buffers.py"
SYNC = "scenarios/state/test_15_sync_queue.py"
CALIBRATION = "scenarios/calibration/test_17_calibration.py"
CACHE = "scenarios/once/test_05_llm_cache.py"
TOOLS = "scenarios/once/test_06_tool_replay.py"
VARIANTS = "tests.planted.work.checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What an inner session amounted to: its exit code, and its runs by node id."""

    code: int
    runs: dict[str, RunRecord]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a function that runs a scenario, or one test of it, with a manager,
    once in all workers.
    """

    def run(scenario: str, manager: str, test: str = "") -> Outcome:
        node_id = f"{scenario}::{test}" if test else scenario
        name = re.sub(r"[^a-zA-Z0-9]+", "-", f"inner {node_id} {manager}")
        folder = made_once(tmp_path_factory, name, lambda folder: _run(node_id, manager, folder))
        runs = records.read(folder).runs
        return Outcome(int((folder / "exit-code").read_text()), {run.node_id: run for run in runs})

    return run


def _run(node_id: str, manager: str, results: Path) -> None:
    command = [sys.executable, "-m", "pytest", node_id, "-m", "chaos", "-q", "-p", "no:randomly"]
    command += ["-p", "no:cacheprovider", f"--chaos-plant={manager}", f"--chaos-seed={SEED}"]
    command += [f"--chaos-results={results}", "--chaos-confirm=0", "--chaos-report=json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SESSION_S, check=False)
    (results / "exit-code").write_text(str(done.returncode))


def check_caught(session: Session, scenario: str, manager: str, test: str, signature: str) -> None:
    """Expect a violation of this name with the planted core,
    and that every run of the sound one holds, this one against the same faults.
    """
    planted, sound = session(scenario, manager, test), session(scenario, SOUND)
    assert planted.code == 1
    (run,) = planted.runs.values()
    assert run.node_id == f"{scenario}::{test}"
    assert run.verdict is Verdict.VIOLATED
    assert signature in {finding.signature for finding in run.findings}
    assert {each.node_id: str(each.verdict) for each in sound.runs.values() if each.verdict is not Verdict.HELD} == {}
    assert (sound.code, sound.runs[run.node_id].plan) == (0, run.plan)
    assert run.plan is None or run.plan.seed == SEED


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
    """A core with one known bug is VIOLATED, by the finding with that bug's name,
    in the run that provokes it.
    """
    check_caught(session, KILL_9, f"{VARIANTS}:{variant}", test, signature)


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
    """Numbers that are shared, a writer that does not wait for a lock,
    and one that does not sync are all found.
    """
    check_caught(session, CONCURRENT, f"{VARIANTS}:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("RenewsExpired", "expectation:the zombie is refused", "test_a_zombie_wakes_before_anybody_took_over"),
        ("EndsByName", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
        ("Unfenced", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
    ],
)
def test_takeovers_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """A lease that is renewed when it is over, an end without a token,
    and a write without a fence are found.
    """
    check_caught(session, TAKEOVER, f"tests.planted.work.leases:{variant}", test, signature)


@pytest.mark.parametrize("variant", ["SweepsById", "CountsWhatItFinds"])
def test_sweeps_catch_their_planted_defects(session: Session, variant: str) -> None:
    """Sweeps that act on what they no longer know, or report what another did,
    recover leases twice.
    """
    test = "test_ten_thousand_leases_and_four_sweepers"
    check_caught(session, SWEEP, f"tests.planted.work.leases:{variant}", test, "exactly-once:repeated")


def test_a_holder_at_the_boundary_catches_a_sweep_that_is_early(session: Session) -> None:
    """What a sweep takes for expired before it is, a holder that renews late misses."""
    test = "test_a_holder_at_the_boundary_is_left_alone"
    check_caught(
        session, SWEEP, "tests.planted.work.leases:SweepsEarly", test, "expectation:leases recovered meanwhile"
    )


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("ForgetsProgress", "attempts:checkpointed-work-repeated", "test_killed_six_times"),
        ("TrustsNewest", "effects:missing-or-torn", "test_an_artifact_is_lost"),
    ],
)
def test_end_to_end_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """A worker that begins anew, and one that believes a checkpoint whose artifact is gone,
    are found.
    """
    check_caught(session, END_TO_END, f"tests.planted.work.workers:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("jobs.reaper:AdvancesAfterwards", "stages:not-advanced", "test_a_reaper_killed_at_a_named_point[after_claim]"),
        (
            "jobs.jobs:AdvancesAfterwards",
            "stages:not-advanced",
            "test_a_monitor_killed_at_a_named_point[job.after_settle]",
        ),
        (
            "jobs.reaper:AdvancesBeforeClaim",
            "stages:advanced-twice",
            "test_a_webhook_comes_while_the_reaper_holds_its_claim_back",
        ),
        (
            "jobs.stages:AdvancesBlindly",
            "stages:advanced-twice",
            "test_a_webhook_comes_between_the_claim_and_the_advance",
        ),
        (
            "jobs.stages:AdvancesFirst",
            "jobs:next-missing",
            "test_a_monitor_killed_at_a_named_point[stage.after_next_job]",
        ),
        ("jobs.jobs:StartsUnseen", "executors:began-unseen", "test_an_executor_that_nobody_knows_of_does_not_begin"),
    ],
)
def test_finalisation_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """D16, D19, D22: lost advances, doubled ones, and executors that nobody knows of are found."""
    check_caught(session, FINALISE, f"tests.planted.{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        (
            "jobs.reaper:RequeuesTheLiving",
            "executors:two-at-once",
            "test_an_executor_past_the_ceiling_is_ended_before_the_next_one[linger-S]",
        ),
        (
            "jobs.jobs:UnfencedEnd",
            "jobs:taken-from-its-owner",
            "test_a_monitor_that_wakes_when_its_job_is_another_ones",
        ),
        ("jobs.reaper:AsksSignalZero", "ghosts:not-reaped", "test_ghosts_are_noticed_by_reapers_that_restart"),
        ("jobs.reaper:ForgetsStreaks", "ghosts:not-reaped", "test_ghosts_are_noticed_by_reapers_that_restart"),
        (
            "jobs.reaper:ReapsFinalising",
            "reaper:reaped-the-living",
            "test_a_monitor_that_stands_still_while_it_finalises[recovery.monitor.after_finalise]",
        ),
    ],
)
def test_liveness_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """D17, D18, D20: two executors, the dead that count as alive,
    and the living that are reaped are found.
    """
    check_caught(session, LIVENESS, f"tests.planted.{variant}", test, signature)


def test_rivals_catch_a_claim_that_is_won_by_many(session: Session) -> None:
    """A reaper that ends what another has ended is found in the rows, and in its own counters."""
    test = "test_five_reapers_and_two_start_ups"
    check_caught(session, RIVALS, "tests.planted.jobs.reaper:CountsLostClaims", test, "jobs:claim-ended-twice")


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("SpeaksOnRed", "silence:rows-written", "test_hundreds_of_looks"),
        ("IgnoresTheGate", "silence:advanced", "test_hundreds_of_looks"),
        ("CountsAllThatHangs", "stages:not-advanced", "test_a_gate_hangs_for_one_task"),
    ],
)
def test_red_gates_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Words at each look, a gate that is not heard, and one task's hanging gate that is red for
    all, are found.
    """
    check_caught(session, RED_GATE, f"tests.planted.jobs.stages:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("FailsEveryone", "workspaces:live-failed", "test_executors_of_every_kind"),
        ("TrustsTheNumber", "workspaces:ghost-running", "test_executors_of_every_kind"),
        ("ForgetsTheDisk", "workspaces:disk-differs", "test_executors_of_every_kind"),
        ("StoreWins", "workspaces:store-won", "test_executors_of_every_kind"),
        ("StartsBeside", "expectation:ghosts of the second", "test_two_starts_at_once"),
        ("CountsFromMemory", "workspaces:miscounted", "test_executors_of_every_kind"),
        ("WritesInPlace", "workspaces:torn", "test_an_agent_killed_while_it_tracks[artifact.after_write]"),
        ("ForgetsThatItRan", "expectation:dispatches in the history", "test_a_start_killed_at_every_named_point"),
    ],
)
def test_restarts_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """The living failed, ghosts that run, a disk that is not told, a file that is torn:
    each is found by its name.
    """
    check_caught(session, GHOSTS, f"tests.planted.state.workspaces:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("DiscardsTheLiving", "orphans:live-touched", "test_a_second_instance_is_at_work"),
        ("MarksByName", "durability:acknowledged-lost", "test_a_name_comes_again"),
        ("CommitsOrphans", "durability:half-there", "test_cycles_killed_at_every_point"),
        ("TwoTransactions", "durability:half-there", "test_cycles_killed_at_every_point"),
        ("LeavesSidecars", "orphans:sidecar-left", "test_cycles_killed_at_every_point"),
        ("DiscardsTheUnreadable", "expectation:files set aside", "test_a_buffer_cannot_be_read"),
    ],
)
def test_orphans_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Buffers of the living removed, cycles half in the history or lost by their name,
    and what is left, are found.
    """
    check_caught(session, ORPHANS, f"tests.planted.state.buffers:{variant}", test, signature)


def test_an_explored_agent_catches_a_cycle_in_two_transactions(session: Session) -> None:
    """A crash at every step finds the moment between the two, at which there is no named point."""
    variant = "tests.planted.state.buffers:TwoTransactions"
    check_caught(session, GHOSTS, variant, "test_a_crash_at_every_step_of_an_agent", "cycles:half-there")


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("DequeuesFirst", "durability:acknowledged-lost", "test_pushes_fail"),
        ("BelievesAnybody", "durability:acknowledged-lost", "test_pushes_fail"),
        ("Overtakes", "sync:out-of-order", "test_pushes_fail"),
        ("NewKeyEachTime", "exactly-once:repeated", "test_killed_between_send_and_dequeue"),
        ("FileOnly", "durability:acknowledged-lost", "test_the_json_copy_is_lost"),
        ("StoreOnly", "durability:acknowledged-lost", "test_the_store_is_lost"),
    ],
)
def test_sync_queues_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Pushes that are lost with a copy, or with an answer that proves nothing, doubled,
    or out of order, are found.
    """
    check_caught(session, SYNC, f"tests.planted.state.sync_queue:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("TakesOneAnswerTwice", "gate:opened-by-no-human", "test_one_approval_opens_one_human_gate"),
        ("AgesTheRow", "stages:stuck", "test_a_busy_task_is_unblocked_all_the_same"),
        ("ReadsOnePage", "stages:stuck", "test_the_lost_verdict_is_on_the_second_page"),
        ("StopsAtTheFirst", "stages:stuck", "test_the_lost_verdict_is_on_the_second_page"),
        ("OpensTheHumanGate", "gate:opened-by-no-human", "test_no_delivery_is_lost"),
        ("SpeaksOnRed", "silence:notified", "test_red_is_silence"),
        ("TrustsMemory", "stages:stuck", "test_red_is_silence"),
        ("DisturbsWork", "gate:left-while-at-work", "test_a_task_at_work_is_left_alone"),
        ("HasNoGrace", "time:too-early", "test_one_delivery_is_lost[status]"),
        ("ForgetsGatesBehindTheTracker", "stages:stuck", "test_the_tracker_is_out_of_order"),
    ],
)
def test_reconcilers_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Tasks that stay stuck, gates that open for nobody, work that is disturbed,
    and words about nothing, are found.
    """
    check_caught(session, LOST, f"tests.planted.webhooks.reconciler:{variant}", test, signature)


def test_lost_rejections_catch_a_claim_that_begins_what_was_cancelled(session: Session) -> None:
    """A job whose task was cancelled while it waited, and that is done all the same, is found."""
    test = "test_a_rejection_is_lost_before_the_work_begins"
    check_caught(session, LOST, "tests.planted.jobs.jobs:BeginsTheCancelled", test, "jobs:begun-when-cancelled")


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        (
            "webhooks.webhooks:AcknowledgesFirst",
            "durability:acknowledged-lost",
            "test_the_receiver_dies_when_it_has_answered",
        ),
        ("webhooks.webhooks:HandlesInHalves", "time:too-late", "test_the_receiver_is_killed[start-after_handle]"),
        (
            "webhooks.webhooks:KnowsNobody",
            "inbox:accepted-twice",
            "test_every_delivery_comes_three_times[one-after-the-other]",
        ),
        ("webhooks.webhooks:TrustsAnybody", "receiver:forgery-accepted", "test_forged_deliveries"),
        ("webhooks.webhooks:KnowsNoTime", "receiver:forgery-accepted", "test_forged_deliveries"),
        (
            "webhooks.webhooks:ChecksThenInserts",
            "tasks:created-twice",
            "test_the_reconciler_starts_what_a_webhook_starts",
        ),
        ("webhooks.webhooks:BelievesTheStatus", "gate:left-while-red", "test_an_old_green_comes_late"),
        ("jobs.stages:AdvancesBlindly", "stages:advanced-twice", "test_the_reconciler_moves_what_a_webhook_moves"),
        ("jobs.stages:AdvancesBlindly", "stages:advanced-twice", "test_a_webhook_moves_what_the_reconciler_moves"),
    ],
)
def test_receivers_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Deliveries that are lost, believed or done twice, and moves that somebody else has made,
    are found.
    """
    check_caught(session, UNRULY, f"tests.planted.{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature"),
    [
        ("SynchronousOff", "checkpoints:acknowledged-lost"),
        ("AckBeforeCommit", "checkpoints:acknowledged-lost"),
        ("TwoTransactions", "checkpoints:unreadable"),
    ],
)
def test_explorations_catch_planted_defects(session: Session, variant: str, signature: str) -> None:
    """A core that does not sync, acknowledges too early or commits in halves is found by exploring
    it.
    """
    planted = session(CALIBRATION, f"{VARIANTS}:{variant}", "test_checkpoints_survive")
    sound = session(CALIBRATION, SOUND, "test_checkpoints_survive")
    (run,) = planted.runs.values()
    assert (planted.code, run.verdict) == (1, Verdict.VIOLATED)
    assert signature in {finding.signature for finding in run.findings}
    assert (sound.code, sound.runs[run.node_id].verdict) == (0, Verdict.HELD)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("ChecksThenInserts", "exactly-once:repeated", "test_a_stampede_generates_once"),
        ("NeverRefreshes", "exactly-once:repeated", "test_all_outputs_expire_under_load"),
        ("KeepsTheDead", "agent:raised:InProgress", "test_callers_are_killed_while_they_generate"),
        ("ForgetsParameters", "cache:wrong-output", "test_a_thousand_misses_then_a_thousand_hits"),
        ("LosesCounts", "expectation:hit_rate", "test_a_thousand_misses_then_a_thousand_hits"),
    ],
)
def test_the_cache_catches_its_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Outputs that are generated twice, never refreshed, stuck with the dead, of another request,
    or not counted.
    """
    check_caught(session, CACHE, f"tests.planted.once.cache:{variant}", test, signature)


@pytest.mark.parametrize(
    ("variant", "signature", "test"),
    [
        ("IntentAfterEffect", "exactly-once:repeated", "test_agents_die_around_the_effect[raise]"),
        ("IgnoresProbe", "exactly-once:repeated", "test_agents_die_around_the_effect[probe]"),
        ("ForgetsDoubt", "exactly-once:repeated", "test_agents_die_around_the_effect[raise]"),
        ("LeavesToolsRunning", "tool:left-running", "test_an_interrupted_tool_has_ended"),
        ("LargeChangesType", "tool:type-changed", "test_tools_run_once_and_are_replayed"),
        ("CachesFailures", "tool:failure-replayed", "test_a_failure_is_run_again"),
        ("CutsOutput", "tool:output-differs", "test_tools_run_once_and_are_replayed"),
    ],
)
def test_tools_catch_their_planted_defects(session: Session, variant: str, signature: str, test: str) -> None:
    """Effects that happen twice, and answers that are not what the tool gave, are found."""
    check_caught(session, TOOLS, f"tests.planted.once.ledger:{variant}", test, signature)


@pytest.mark.parametrize(
    "scenario",
    [
        KILL_9,
        CONCURRENT,
        TAKEOVER,
        SWEEP,
        END_TO_END,
        CACHE,
        TOOLS,
        FINALISE,
        LIVENESS,
        RIVALS,
        LOST,
        UNRULY,
        RED_GATE,
        GHOSTS,
        ORPHANS,
        SYNC,
    ],
)
def test_the_sound_core_holds_under_the_same_seed(session: Session, scenario: str) -> None:
    """With the seed that the defects were found with, every run of the sound core holds."""
    sound = session(scenario, SOUND)
    assert sound.code == 0
    assert {run.verdict for run in sound.runs.values()} == {Verdict.HELD}


def test_every_kill_has_its_receipt(session: Session) -> None:
    """On the sound core every planned kill was seen as an exit by signal 9."""
    receipts = [receipt for run in session(KILL_9, SOUND).runs.values() for receipt in run.receipts]
    kills = [receipt for receipt in receipts if receipt.kind == "kill"]
    assert len(kills) > 20
    assert {receipt.evidence for receipt in kills} == {"process ended by signal 9"}
