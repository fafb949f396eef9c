"""Every scenario catches its planted defects by name,
and holds on the sound core under the same seed and plans.

Each session here is an inner one, a pytest of its own with results of its own: none of its runs is
in the matrix. What it caught is kept in the results folder, where the matrix page lists it with the
scenario.
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
from pytest_chaos.mutate.planted import Planted, keep

from tests.acceptance.once import made_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _pytest.mark import ParameterSet
    from pytest_chaos.model.values import RunRecord

    Session = Callable[..., "Outcome"]

ROOT = Path(__file__).resolve().parents[2]
SEED = "planted"
EACH_TIME = 1
FEWER = {
    "scenarios/whole/test_22_explored_whole.py": 0,
    "scenarios/whole/test_25_outgrown.py": 0,
}
"""Scenarios with fewer planted defects in the gates: their checkers have tests of their own."""
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
PROVED = "scenarios/proved/test_19_proved.py"
CLOCKS = "scenarios/clocks/test_26_clocks.py"
PARTITIONS = "scenarios/partitions/test_27_partitions.py"
WHOLE = "scenarios/whole/test_22_explored_whole.py"
PAUSED = "scenarios/paused/test_23_paused_zombie.py"
OUTGROWN = "scenarios/whole/test_25_outgrown.py"

CAUGHT: dict[str, list[tuple[str, str, str]]] = {
    KILL_9: [
        # A core with one known bug is VIOLATED, by the finding with that bug's name, in the run
        # that provokes it.
        (
            "work.checkpoints:NumberOutsideTransaction",
            "durability:number-repeated",
            "test_paused_between_number_and_insert",
        ),
        (
            "work.checkpoints:AckBeforeCommit",
            "durability:acknowledged-lost",
            "test_killed_at_moments_drawn_from_the_seed",
        ),
        ("work.checkpoints:TwoTransactions", "durability:half-there", "test_killed_at_a_named_point[before_commit]"),
        ("work.checkpoints:SynchronousOff", "pragma:synchronous", "test_without_faults_every_crash_point_is_passed"),
    ],
    CONCURRENT: [
        # Numbers that are shared, a writer that does not wait for a lock, and one that does not
        # sync are all found.
        ("work.checkpoints:NumberOutsideTransaction", "durability:number-repeated", "test_one_database"),
        ("work.checkpoints:Impatient", "agent:raised:DatabaseLocked", "test_one_database"),
        ("work.checkpoints:Impatient", "agent:raised:DatabaseLocked", "test_the_lock_is_held_at_every_point"),
        ("work.checkpoints:SynchronousOff", "pragma:synchronous", "test_ten_databases"),
    ],
    TAKEOVER: [
        # An end that first makes the lease longer is right but for a death at one point: only the
        # sweep of a holder's points has it.
        ("work.leases:EndsForSure", "expectation:the item", "test_a_holder_stops_at_every_point[kill]"),
        # A lease that is renewed when it is over, an end without a token, and a write without a
        # fence are found.
        (
            "work.leases:RenewsExpired",
            "expectation:the zombie is refused",
            "test_a_zombie_wakes_before_anybody_took_over",
        ),
        ("work.leases:EndsByName", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
        ("work.leases:Unfenced", "ownership:stale-write", "test_a_zombie_wakes_while_the_second_works"),
        # A fence, a moment, an order and a count that are not as promised are found by the model.
        (
            "work.leases:FencesLoosely",
            "model:lease-renewed-after-loss",
            "test_what_is_promised_at_its_very_moment[of_leases]",
        ),
        (
            "work.leases:ExpiresLate",
            "model:lease-renewed-after-expiry",
            "test_what_is_promised_at_its_very_moment[of_leases]",
        ),
        (
            "work.leases:LowestFirst",
            "model:order-not-by-priority-and-age",
            "test_what_is_promised_at_its_very_moment[of_leases]",
        ),
        (
            "work.leases:ForgetsTheRetry",
            "model:retry-not-counted",
            "test_what_is_promised_at_its_very_moment[of_retries]",
        ),
    ],
    SWEEP: [
        # Sweeps that act on what they no longer know, or report what another did, recover leases
        # twice.
        ("work.leases:SweepsById", "exactly-once:repeated", "test_ten_thousand_leases_and_four_sweepers"),
        ("work.leases:CountsWhatItFinds", "exactly-once:repeated", "test_ten_thousand_leases_and_four_sweepers"),
        # What a sweep takes for expired before it is, a holder that renews late misses.
        (
            "work.leases:SweepsEarly",
            "expectation:leases recovered meanwhile",
            "test_a_holder_at_the_boundary_is_left_alone",
        ),
    ],
    END_TO_END: [
        # A worker that begins anew, and one that believes a checkpoint whose artifact is gone,
        # are found.
        ("work.workers:ForgetsProgress", "attempts:checkpointed-work-repeated", "test_killed_six_times"),
        ("work.workers:TrustsNewest", "effects:missing-or-torn", "test_an_artifact_is_lost"),
    ],
    FINALISE: [
        # D16, D19, D22: lost advances, doubled ones, and executors that nobody knows of are
        # found.
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
    LIVENESS: [
        # D17, D18, D20: two executors, the dead that count as alive, and the living that are
        # reaped are found.
        (
            "jobs.reaper:RequeuesTheLiving",
            "executors:two-at-once",
            "test_an_executor_past_the_ceiling_is_ended_before_the_next_one[linger-S]",
        ),
        (
            "jobs.reaper:OverlooksTheStarted",
            "reaper:reaped-the-living",
            "test_an_executor_that_starts_between_the_look_and_the_end",
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
    RIVALS: [
        # A reaper that ends what another has ended is found in the rows, and in its own counters.
        ("jobs.reaper:CountsLostClaims", "jobs:claim-ended-twice", "test_five_reapers_and_two_start_ups"),
        # One that does not wait for a lock is found wherever the lock is held.
        (
            "jobs.reaper:Impatient",
            "expectation:reaped_total of all together, of 8",
            "test_the_lock_is_held_at_every_point",
        ),
        # A streak, a grace and an age that are not as promised are found by the model.
        (
            "jobs.reaper:NeverResets",
            "model:dead-streak-not-as-promised",
            "test_what_is_promised_at_its_very_moment[of_looks]",
        ),
        (
            "jobs.reaper:GraceFromTheStart",
            "model:job-reaped-otherwise",
            "test_what_is_promised_at_its_very_moment[of_looks]",
        ),
        (
            "webhooks.reconciler:AgesTheTask",
            "model:task-not-due-as-promised",
            "test_what_is_promised_at_its_very_moment[of_stages]",
        ),
        (
            "webhooks.reconciler:OverlooksTheQueued",
            "model:task-not-due-as-promised",
            "test_what_is_promised_at_its_very_moment[of_stages]",
        ),
    ],
    RED_GATE: [
        # Words at each look, a gate that is not heard, and one task"s hanging gate that is red
        # for all, are found.
        ("jobs.stages:SpeaksOnRed", "silence:rows-written", "test_hundreds_of_looks"),
        ("jobs.stages:IgnoresTheGate", "silence:advanced", "test_hundreds_of_looks"),
        ("jobs.stages:CountsAllThatHangs", "stages:not-advanced", "test_a_gate_hangs_for_one_task"),
    ],
    GHOSTS: [
        # The living failed, ghosts that run, a disk that is not told, a file that is torn: each
        # is found by its name.
        ("state.workspaces:FailsEveryone", "workspaces:live-failed", "test_executors_of_every_kind"),
        ("state.workspaces:TrustsTheNumber", "workspaces:ghost-running", "test_executors_of_every_kind"),
        ("state.workspaces:ForgetsTheDisk", "workspaces:disk-differs", "test_executors_of_every_kind"),
        ("state.workspaces:StoreWins", "workspaces:store-won", "test_executors_of_every_kind"),
        ("state.workspaces:StartsBeside", "expectation:ghosts of the second", "test_two_starts_at_once"),
        ("state.workspaces:CountsFromMemory", "workspaces:miscounted", "test_executors_of_every_kind"),
        (
            "state.workspaces:WritesInPlace",
            "workspaces:torn",
            "test_an_agent_killed_while_it_tracks[artifact.after_write]",
        ),
        (
            "state.workspaces:ForgetsThatItRan",
            "expectation:dispatches in the history",
            "test_a_start_killed_at_every_named_point",
        ),
        # A crash at every step finds the moment between the two, at which there is no named
        # point.
        ("state.buffers:TwoTransactions", "cycles:half-there", "test_a_crash_at_every_step_of_an_agent"),
    ],
    ORPHANS: [
        # Buffers of the living removed, cycles half in the history or lost by their name, and
        # what is left, are found.
        ("state.buffers:DiscardsTheLiving", "orphans:live-touched", "test_a_second_instance_is_at_work"),
        ("state.buffers:MarksByName", "durability:acknowledged-lost", "test_a_name_comes_again"),
        ("state.buffers:CommitsOrphans", "durability:half-there", "test_cycles_killed_at_every_point"),
        ("state.buffers:TwoTransactions", "durability:half-there", "test_cycles_killed_at_every_point"),
        ("state.buffers:LeavesSidecars", "orphans:sidecar-left", "test_cycles_killed_at_every_point"),
        ("state.buffers:DiscardsTheUnreadable", "expectation:files set aside", "test_a_buffer_cannot_be_read"),
        # Only while one stands still at a point does another one meet what it has listed.
        (
            "state.buffers:RecoversBeside",
            "expectation:buffers that were put away",
            "test_a_recovery_stands_still_at_every_point",
        ),
    ],
    SYNC: [
        # Pushes that are lost with a copy, or with an answer that proves nothing, doubled, or out
        # of order, are found.
        ("state.sync_queue:DequeuesFirst", "durability:acknowledged-lost", "test_pushes_fail"),
        ("state.sync_queue:BelievesAnybody", "durability:acknowledged-lost", "test_pushes_fail"),
        ("state.sync_queue:Overtakes", "sync:out-of-order", "test_pushes_fail"),
        ("state.sync_queue:NewKeyEachTime", "exactly-once:repeated", "test_killed_between_send_and_dequeue"),
        ("state.sync_queue:FileOnly", "durability:acknowledged-lost", "test_the_json_copy_is_lost"),
        ("state.sync_queue:StoreOnly", "durability:acknowledged-lost", "test_the_store_is_lost"),
        (
            "state.sync_queue:NeverPausesLonger",
            "model:back-off-not-as-promised",
            "test_what_is_promised_at_its_very_moment",
        ),
    ],
    LOST: [
        # Tasks that stay stuck, gates that open for nobody, work that is disturbed, and words
        # about nothing, are found.
        (
            "webhooks.reconciler:TakesOneAnswerTwice",
            "gate:opened-by-no-human",
            "test_one_approval_opens_one_human_gate",
        ),
        ("webhooks.reconciler:AgesTheRow", "stages:stuck", "test_a_busy_task_is_unblocked_all_the_same"),
        ("webhooks.reconciler:ReadsOnePage", "stages:stuck", "test_the_lost_verdict_is_on_the_second_page"),
        ("webhooks.reconciler:StopsAtTheFirst", "stages:stuck", "test_the_lost_verdict_is_on_the_second_page"),
        ("webhooks.reconciler:OpensTheHumanGate", "gate:opened-by-no-human", "test_no_delivery_is_lost"),
        ("webhooks.reconciler:SpeaksOnRed", "silence:notified", "test_red_is_silence"),
        ("webhooks.reconciler:TrustsMemory", "stages:stuck", "test_red_is_silence"),
        ("webhooks.reconciler:DisturbsWork", "gate:left-while-at-work", "test_a_task_at_work_is_left_alone"),
        ("webhooks.reconciler:HasNoGrace", "time:too-early", "test_one_delivery_is_lost[status]"),
        ("webhooks.reconciler:ForgetsGatesBehindTheTracker", "stages:stuck", "test_the_tracker_is_out_of_order"),
        # A job whose task was cancelled while it waited, and that is done all the same, is found.
        (
            "jobs.jobs:BeginsTheCancelled",
            "jobs:begun-when-cancelled",
            "test_a_rejection_is_lost_before_the_work_begins",
        ),
    ],
    UNRULY: [
        # Deliveries that are lost, believed or done twice, and moves that somebody else has made,
        # are found.
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
    CALIBRATION: [
        # A core that does not sync, acknowledges too early or commits in halves is found by
        # exploring it.
        ("work.checkpoints:SynchronousOff", "checkpoints:acknowledged-lost", "test_checkpoints_survive"),
        ("work.checkpoints:AckBeforeCommit", "checkpoints:acknowledged-lost", "test_checkpoints_survive"),
        ("work.checkpoints:TwoTransactions", "checkpoints:unreadable", "test_checkpoints_survive"),
    ],
    CACHE: [
        # Outputs that are generated twice, never refreshed, stuck with the dead, of another
        # request, or not counted.
        ("once.cache:ChecksThenInserts", "exactly-once:repeated", "test_a_stampede_generates_once"),
        ("once.cache:NeverRefreshes", "exactly-once:repeated", "test_all_outputs_expire_under_load"),
        ("once.cache:KeepsTheDead", "agent:raised:InProgress", "test_callers_are_killed_while_they_generate"),
        ("once.cache:ForgetsParameters", "cache:wrong-output", "test_a_thousand_misses_then_a_thousand_hits"),
        ("once.cache:LosesCounts", "expectation:hit_rate", "test_a_thousand_misses_then_a_thousand_hits"),
        (
            "once.cache:ForgetsTheModel",
            "model:key-covers-otherwise",
            "test_what_is_promised_at_its_very_moment[of_outputs]",
        ),
    ],
    TOOLS: [
        # Effects that happen twice, and answers that are not what the tool gave, are found.
        ("once.ledger:IntentAfterEffect", "exactly-once:repeated", "test_agents_die_around_the_effect[raise]"),
        ("once.ledger:IgnoresProbe", "exactly-once:repeated", "test_agents_die_around_the_effect[probe]"),
        ("once.ledger:ForgetsDoubt", "exactly-once:repeated", "test_agents_die_around_the_effect[raise]"),
        ("once.ledger:LeavesToolsRunning", "tool:left-running", "test_an_interrupted_tool_has_ended"),
        ("once.ledger:LargeChangesType", "tool:type-changed", "test_tools_run_once_and_are_replayed"),
        ("once.ledger:CachesFailures", "tool:failure-replayed", "test_a_failure_is_run_again"),
        ("once.ledger:CutsOutput", "tool:output-differs", "test_tools_run_once_and_are_replayed"),
    ],
    CLOCKS: [
        # A sweeper, and a holder, that trust a clock which anybody may set.
        (
            "work.leases:SweepsByTheWall",
            "lease:kept-by-a-clock",
            "test_a_dead_holders_lease_comes_back[sweeper-a-day-back]",
        ),
        (
            "work.leases:HoldsByTheWall",
            "expectation:refusals of the holder",
            "test_a_clock_jumps_between_a_read_and_its_commit[on]",
        ),
    ],
    PARTITIONS: [
        # A leader that stays available while it is cut off, and a node without fencing.
        ("partitions:AcknowledgesAlone", "partition:split-brain", "test_a_stale_leader_is_fenced[no-route]"),
        ("partitions:TakesStale", "partition:stale-write", "test_a_stale_leader_is_fenced[no-route]"),
    ],
    WHOLE: [
        # What is right but for a death at one step, which no scenario names, is found by the model.
        ("work.leases:EndsForSure", "model:work_items-expires-at", "test_a_part_killed_at_every_step[leases]"),
        ("jobs.stages:AdvancesFirst", "model:jobs-missing", "test_a_part_killed_at_every_step[jobs]"),
    ],
    PAUSED: [
        # A zombie that writes, and one that runs its tool, whatever has come to pass meanwhile.
        ("work.leases:Unfenced", "exactly-once:repeated", "test_a_leased_item[before-its-record]"),
        ("once.ledger:RunsLate", "exactly-once:repeated", "test_a_tool_call"),
        ("work.workers:WritesLate", "expectation:who wrote the files", "test_a_leased_item[before-its-effect]"),
    ],
    PROVED: [
        # Each anomaly is refuted by its name: no order explains what the clients saw.
        ("proved:ReadsASnapshot", "isolation:G2-item", "test_two_transactions_meet[write-skew]"),
        ("proved:WritesItBack", "isolation:lost-update", "test_two_transactions_meet[lost-update]"),
        ("proved:ReadsACopy", "isolation:G-single-realtime", "test_two_transactions_meet[stale-read]"),
        ("proved:GrantsTwice", "linearizability:no-order", "test_locks"),
        ("proved:RenewsTheLost", "linearizability:no-order", "test_leases"),
        ("proved:ListsACopy", "isolation:G-single-process", "test_checkpoints"),
        ("jobs.stages:AdvancesBlindly", "linearizability:no-order", "test_stages"),
        ("proved:GivesTwice", "linearizability:no-order", "test_jobs"),
        ("proved:ForgetsResults", "linearizability:no-order", "test_keys"),
        ("proved:RemembersState", "linearizability:no-order", "test_state"),
    ],
    OUTGROWN: [
        # A batch that came twice is counted twice; one that was lost with its worker is forgotten.
        ("seams:CountsTwice", "cluster:counted-twice", "test_a_worker_that_is_late"),
        ("seams:DropsLost", "cluster:not-judged", "test_a_worker_killed_in_mid_work"),
    ],
}
"""Of each scenario: the planted class below `tests.planted`, the finding, and the test that
catches it.
"""


@dataclass(frozen=True)
class Outcome:
    """What an inner session amounted to: its exit code, and its runs by run id.

    A test that sweeps points has several runs.
    """

    code: int
    runs: dict[str, RunRecord]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a function that runs tests of a scenario, or all of them, with a manager,
    once in all workers.
    """

    def run(scenario: str, manager: str, tests: list[str]) -> Outcome:
        node_ids = [f"{scenario}::{test}" for test in tests] or [scenario]
        name = re.sub(r"[^a-zA-Z0-9]+", "-", f"inner {node_ids[0]} {len(tests)} {manager}")
        folder = made_once(tmp_path_factory, name, lambda folder: _run(node_ids, manager, folder))
        runs = records.read(folder).runs
        return Outcome(int((folder / "exit-code").read_text()), {run.run_id: run for run in runs})

    return run


def _run(node_ids: list[str], manager: str, results: Path) -> None:
    command = [sys.executable, "-m", "pytest", *node_ids, "-m", "chaos", "-q", "-p", "no:randomly"]
    command += ["-p", "no:cacheprovider", f"--chaos-plant={manager}", f"--chaos-seed={SEED}"]
    command += [f"--chaos-results={results}", "--chaos-confirm=0", "--chaos-report=json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SESSION_S, check=False)
    (results / "exit-code").write_text(str(done.returncode))


def check_caught(session: Session, scenario: str, manager: str, test: str, signature: str) -> None:
    """Expect a violation of this name with the planted core,
    and that every run of the sound one holds, this one against the same faults.
    """
    planted, sound = session(scenario, manager, [test]), session(scenario, SOUND, planted_tests(scenario))
    assert planted.code == 1
    assert {run.node_id for run in planted.runs.values()} == {f"{scenario}::{test}"}
    found = [run for run in planted.runs.values() if run.verdict is not Verdict.HELD]
    assert {run.verdict for run in found} == {Verdict.VIOLATED}
    assert {each.node_id: str(each.verdict) for each in sound.runs.values() if each.verdict is not Verdict.HELD} == {}
    for run in found:  # of a sweep, at one place or several
        assert signature in {finding.signature for finding in run.findings}
        assert (sound.code, sound.runs[run.run_id].plan) == (0, run.plan)
        assert run.plan is None or run.plan.seed == SEED
    run = found[0]
    defect = manager.removeprefix("tests.planted.")
    caught = Planted(
        scenario=run.scenario.id, defect=defect, signature=signature, test=run.node_id, started=run.started
    )
    keep(ROOT / os.environ.get("CHAOS_RESULTS", "chaos-results"), caught)


def planted_tests(scenario: str) -> list[str]:
    """Return the tests of a scenario that catch a planted defect, each once."""
    return list(dict.fromkeys(test for _variant, _signature, test in CAUGHT[scenario]))


def _rows() -> Iterator[ParameterSet]:
    """Yield the table's rows: of each scenario the first two are for every run of the gates."""
    for scenario, rows in CAUGHT.items():
        for number, row in enumerate(rows):
            variant, _signature, test = row
            name = f"{Path(scenario).stem.removeprefix('test_')}-{variant.partition(':')[2]}-{test}"
            marks = [pytest.mark.nightly] if number >= FEWER.get(scenario, EACH_TIME) else []
            yield pytest.param(scenario, *row, id=name, marks=marks)


@pytest.mark.parametrize(("scenario", "variant", "signature", "test"), list(_rows()))
def test_a_planted_defect_is_caught(session: Session, scenario: str, variant: str, signature: str, test: str) -> None:
    """A core with one known bug is VIOLATED, by the finding with that bug's name,
    in the run that provokes it; the sound core holds in all such runs.
    """
    check_caught(session, scenario, f"tests.planted.{variant}", test, signature)


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", [scenario for scenario in CAUGHT if scenario != CALIBRATION])
def test_the_sound_core_holds_under_the_same_seed(session: Session, scenario: str) -> None:
    """With the seed that the defects were found with, every run of the sound core holds."""
    sound = session(scenario, SOUND, [])
    assert sound.code == 0
    assert {run.verdict for run in sound.runs.values()} == {Verdict.HELD}


def test_every_kill_has_its_receipt(session: Session) -> None:
    """On the sound core every planned kill was seen as an exit by signal 9."""
    runs = session(KILL_9, SOUND, planted_tests(KILL_9)).runs.values()
    kills = [receipt for run in runs for receipt in run.receipts if receipt.kind == "kill"]
    assert len(kills) > 5
    assert {receipt.evidence for receipt in kills} == {"process ended by signal 9"}
