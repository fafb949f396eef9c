"""Scenario 11: each delivery of a pipeline is lost in turn, and then all of them.

The reconciler makes up for each loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import JobCrashPoint
from durable_agents.pipeline.handlers import HandlerPoint
from durable_agents.pipeline.tracker import PAGE_LIMIT
from pytest_chaos import at_delivery, at_every_point, at_point, deliver, kill, pause
from pytest_chaos.faults.toxics import draw_deliveries

from scenarios.jobs.job_checks import rows
from scenarios.jobs.test_16_red_gate import check_silence
from scenarios.limits import ask_limits
from scenarios.webhooks.webhook_agents import CAREFUL, PROJECT
from scenarios.webhooks.webhook_checks import check_stays, check_times, check_unbegun, stage_of, write, written
from scenarios.webhooks.website import GRACE_S, INTERVAL_S, KEY, Site
from scenarios.zombies import SAMPLE, has_write_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos import Fault, Run

pytestmark = pytest.mark.chaos(
    id="11-lost-webhooks",
    title="A lost webhook costs time, and nothing else",
    why="Trackers and forges do not send again; a rebuild that answers 502 for a minute leaves tasks stuck for ever.",
    steps=[
        "A pipeline runs from an issue to done, moved by webhooks and by agents; all parts are processes.",
        "One of its deliveries is lost, each in turn, by one of the ways in which they get lost; then all of them.",
        "Done is reached within the grace plus one interval, with one job for each stage; the human gate stays shut.",
    ],
)

START, VERDICT, PUSH, PENDING, STATUS = range(1, 6)
"""The deliveries of one pipeline, by their numbers at the proxy."""

WAYS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("lose", {}),
    ("lose", {"status": None}),
    ("refuse", {"status": 502}),
    ("cut", {}),
    ("truncate", {}),
)
"""How a delivery is lost: its sender is told that all is well, nothing, 502, or is cut off;
or a part of it arrives.
"""

MOODS_SEEN: Final = (
    ("broken", "500"),
    ("too-many-requests", "90"),
    ("html", ""),
    ("wrong-types", ""),
    ("cut", ""),
    ("unavailable", "30"),
    ("refused", "403"),
)

EXPECTED_S: Final = {START: (INTERVAL_S, 0.0, 0.0), VERDICT: (0.0, INTERVAL_S, 0.0), STATUS: (0.0, 0.0, GRACE_S)}
"""How long it takes, where one is lost, until analysis, architecture and its end,
and done are reached.
"""


def run_pipeline(site: Site, key: str = KEY) -> tuple[float, float, float]:
    """Lead an issue from its start to its end; return the time of each of its three parts."""
    site.move(key, "In Progress")
    started_s = site.wait_for_stage("analysis", key=key)
    site.pass_time(GRACE_S + INTERVAL_S)
    site.pass_time()
    shut = check_stays(site.database, key, "analysis", "gate:opened-by-no-human")
    site.chaos.check(shut, expect="the human gate stays shut")
    site.move(key, "Approved")
    approved_s = site.wait_for_stage("development", key=key)
    site.judge_commit(key, "pending")
    site.judge_commit(key, "success")
    return started_s, approved_s, site.wait_for_stage("done", key=key)


def lose(chaos: Run, *numbers: int, count: int | None = 1) -> None:
    """Plan the loss of deliveries from each of these numbers on.

    The seed draws the way of each loss.
    """
    way, parameters = WAYS[int(chaos.random("way").random() * len(WAYS))]
    chaos.plan(*(deliver("proxy", way, at_delivery(number, count=count), **parameters) for number in numbers))


def expect_times(site: Site, seen: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    """Expect these durations: not shorter than the grace, and not longer than promised."""
    site.chaos.note("seconds that passed", list(seen))
    found = check_times(seen, [(each, each) for each in wanted])
    site.chaos.check(found, expect="each part takes the time that it may take")


def lost_in_turn(chaos: Run, database: Path, parts: dict[str, str], number: int, *, forge: str = "github") -> None:
    """Lose one delivery of a pipeline."""
    lose(chaos, number)
    site = Site(chaos, database, parts, forge=forge)
    site.start()
    seen = run_pipeline(site)
    site.judge(CORE_1="done")
    expect_times(site, seen, EXPECTED_S.get(number, (0.0, 0.0, 0.0)))
    told = {VERDICT: [f"{KEY} analysis"], STATUS: [f"{KEY} development"]}.get(number, [])
    chaos.expect("people are told of what was unblocked", observed=site.told(), holds=site.told() == told)


def test_no_delivery_is_lost(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Without a fault no time has to pass, and the reconciler finds nothing to do."""
    site = Site(chaos, fresh_db, parts)
    site.start()
    with chaos.clean_run():
        expect_times(site, run_pipeline(site), (0.0, 0.0, 0.0))
        site.judge(CORE_1="done")
        chaos.expect("people are told of nothing", observed=site.told(), holds=not site.told())


def test_start_and_verdict_are_lost_before_anybody_looks(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Start and verdict of an issue are lost before the first look at the tracker.

    The tracker says Approved. The task is started, and approved when its first stage is done.
    """
    chaos.plan(deliver("proxy", "lose", at_delivery(START, count=2)))
    site = Site(chaos, fresh_db, parts)
    site.start(reconcile_start_approved=True)
    site.move(KEY, "In Progress")
    site.move(KEY, "Approved")
    took_s = site.wait_for_stage("development")
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    expect_times(site, (took_s, site.wait_for_stage("done")), (2 * INTERVAL_S, 0.0))
    site.judge(CORE_1="done")
    told = site.told()
    chaos.expect("people are told of what was unblocked", observed=told, holds=told == [f"{KEY} analysis"])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(START, id="start"),
        pytest.param(VERDICT, id="verdict"),
        pytest.param(PUSH, id="push", marks=pytest.mark.chaos_deep),
        pytest.param(PENDING, id="pending", marks=pytest.mark.chaos_deep),
        pytest.param(STATUS, id="status"),
    ],
)
def test_one_delivery_is_lost(chaos: Run, fresh_db: Path, parts: dict[str, str], number: int) -> None:
    """Any one delivery is lost: the pipeline ends within the time that the reconciler promises."""
    lost_in_turn(chaos, fresh_db, parts, number)


def test_a_push_is_lost_and_the_status_names_no_branch(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A push is lost, and the status names no branch.

    The commit is taken for that of the one task that waits for CI, at once.
    """
    lost_in_turn(chaos, fresh_db, parts, PUSH, forge="gitea")


def test_a_rejection_is_lost(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A rejection is lost: the tracker's state cancels the task; a later approval does nothing."""
    lose(chaos, VERDICT)
    site = Site(chaos, fresh_db, parts)
    site.start()
    site.move(KEY, "In Progress")
    site.wait_for_stage("analysis")
    site.move(KEY, "Rejected")
    site.pass_time()
    site.move(KEY, "Approved")
    site.pass_time(GRACE_S + INTERVAL_S)
    status = rows(fresh_db, "SELECT status FROM tasks")
    chaos.expect("the task is cancelled", observed=status, holds=status == [("cancelled",)])
    site.judge(CORE_1="analysis")


def test_a_rejection_is_lost_before_the_work_begins(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A task is cancelled while its first job is queued: no worker begins the job."""
    lose(chaos, VERDICT)
    site = Site(chaos, fresh_db, parts)
    site.start()
    chaos.agent("worker").kill()
    site.move(KEY, "In Progress")
    chaos.wait_until(lambda: stage_of(site.looks, KEY) == "analysis", what="the start to be handled")
    site.move(KEY, "Rejected")
    site.pass_time(settles=False)
    status = rows(fresh_db, "SELECT status FROM tasks")
    chaos.expect("the task is cancelled", observed=status, holds=status == [("cancelled",)])
    chaos.agent("worker").restart()
    site.settle()
    chaos.check(check_unbegun(fresh_db), expect="the job of a cancelled task is not begun")
    site.judge(CORE_1="analysis")


def test_one_approval_opens_one_human_gate(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """One approval opens one of two human gates, though the verdicts are lost.

    The approval that the tracker still shows does not open the second gate.
    """
    lose(chaos, VERDICT, STATUS + 2)
    site = Site(chaos, fresh_db, parts, pipeline=CAREFUL)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    for _ in range(3):
        site.pass_time()
    shut = check_stays(fresh_db, KEY, "deploy", "gate:opened-by-no-human")
    chaos.check(shut, expect="the second human gate stays shut")
    site.move(KEY, "In Progress")
    site.pass_time()
    site.move(KEY, "Approved")
    expect_times(site, (site.wait_for_stage("done"),), (INTERVAL_S,))
    site.judge(CORE_1="done")
    told = [f"{KEY} analysis", f"{KEY} deploy"]
    chaos.expect("people are told of what was unblocked", observed=site.told(), holds=site.told() == told)


def test_all_deliveries_are_lost(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """All webhooks are lost, and the issue is done in the end."""
    lose(chaos, 1, count=None)
    site = Site(chaos, fresh_db, parts)
    site.start()
    expect_times(site, run_pipeline(site), (INTERVAL_S, INTERVAL_S, GRACE_S))
    site.judge(CORE_1="done")
    told = [f"{KEY} analysis", f"{KEY} development"]
    chaos.expect("people are told of what was unblocked", observed=site.told(), holds=site.told() == told)


def test_all_deliveries_are_lost_on_their_way_to_a_server(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """All deliveries to ``durable_agents serve`` are lost, by the machine's own clock.

    The server is killed in the middle, started again, and told to end.
    """
    lose(chaos, 1, count=None)
    site = Site(chaos, fresh_db, parts)
    chaos.spawn("scenarios.webhooks.webhook_agents:work", kwargs=site.common, name="worker")
    served = site.serve(grace_s=0.2, interval_s=0.05)
    site.move(KEY, "In Progress")
    site.wait_in_real_time("analysis")
    site.move(KEY, "Approved")
    site.wait_in_real_time("development")
    served.kill()
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    served = site.serve(grace_s=0.2, interval_s=0.05)
    site.wait_in_real_time("done")
    shown = site.status()["reconciler"]
    holds = shown["unblocked_total"] >= 1 and shown["last_unblocked"] == KEY
    chaos.expect("the status says what was unblocked", observed=shown, holds=holds)
    served.terminate()
    code = served.wait_exit().code
    chaos.expect("it ends when it is told to", observed=code, holds=code == 0)
    site.judge(CORE_1="done")


def run_to_development(site: Site) -> None:
    """Bring an issue to where it waits for continuous integration alone."""
    site.move(KEY, "In Progress")
    site.wait_for_stage("analysis")
    site.move(KEY, "Approved")
    site.wait_for_stage("development")


def test_a_busy_task_is_unblocked_all_the_same(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A task whose row is written every minute is unblocked: its stage has an age (D21)."""
    lose(chaos, STATUS)
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    passed_s = 0.0
    while stage_of(fresh_db, KEY) != "done" and passed_s < GRACE_S + INTERVAL_S:
        write(fresh_db, "UPDATE tasks SET updated_at = ?", site.world.clock.now())
        site.pass_time()
        passed_s += INTERVAL_S
    site.judge(CORE_1="done")
    expect_times(site, (passed_s,), (GRACE_S,))


def test_the_lost_verdict_is_on_the_second_page(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A lost verdict is on the second page of approved issues, behind an unreadable issue."""
    lose(chaos, VERDICT)
    site = Site(chaos, fresh_db, parts)
    for number in range(PAGE_LIMIT):
        site.world.set_issue(PROJECT, f"ELSE-{number}", "Approved", "else/app")
    site.world.set_issue(PROJECT, "K" * 500, "Approved", "else/app")
    site.start()
    expect_times(site, run_pipeline(site), EXPECTED_S[VERDICT])
    site.judge(CORE_1="done")


def test_red_is_silence(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Red continuous integration causes no message for hours; the lost green is made up for."""
    lose(chaos, STATUS + 1)
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "failure")
    before, looks = written(fresh_db), len(site.ticks())
    for _ in range(20):
        site.pass_time(GRACE_S)
    moved = sum(mark.value.get("unblocked", 0) for mark in site.ticks()[looks:])
    chaos.expect("looks at a red gate", observed=len(site.ticks()) - looks, holds=len(site.ticks()) == looks + 20)
    chaos.check(check_silence(before, written(fresh_db), site.told(), moved), expect="silence while the gate is red")
    site.judge(CORE_1="development")
    site.judge_commit(KEY, "success")
    expect_times(site, (site.wait_for_stage("done"),), (INTERVAL_S,))
    site.judge(CORE_1="done")


def test_a_task_at_work_is_left_alone(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A task with a green gate and a queued job does not move before the job is done."""
    lose(chaos, STATUS)
    site = Site(chaos, fresh_db, parts)
    site.start()
    site.move(KEY, "In Progress")
    site.settle()
    chaos.agent("worker").kill()
    site.move(KEY, "Approved")
    chaos.wait_until(lambda: stage_of(site.looks, KEY) == "architecture", what="the verdict to be handled")
    ((task_id,),) = rows(fresh_db, "SELECT task_id FROM tasks")
    (site.folder / f"{task_id}-architecture").touch()
    for _ in range(3):
        site.pass_time(GRACE_S, settles=False)
    alone = check_stays(fresh_db, KEY, "architecture", "gate:left-while-at-work")
    chaos.check(alone, expect="a task with a job is left alone")
    chaos.agent("worker").restart()
    site.wait_for_stage("development")
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    expect_times(site, (site.wait_for_stage("done"),), (GRACE_S,))
    site.judge(CORE_1="done")


def test_the_tracker_is_out_of_order(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The tracker breaks, asks for a pause and answers nonsense.

    Gates are evaluated all the same, and issues later.
    """
    lose(chaos, STATUS, count=2)
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    site.move("CORE-2", "In Progress")
    passed_s = 0.0
    while stage_of(fresh_db, KEY) != "done" and passed_s < GRACE_S + INTERVAL_S:
        kind, value = MOODS_SEEN[int(passed_s // INTERVAL_S) % len(MOODS_SEEN)]
        site.world.cheer_up()
        site.world.set_mood(kind, value=value)
        site.pass_time()
        passed_s += INTERVAL_S
    site.judge(CORE_1="done")
    site.world.cheer_up()
    again_s = site.wait_for_stage("analysis", key="CORE-2")
    found = check_times((passed_s, again_s), [(GRACE_S, GRACE_S), (0.0, 3 * INTERVAL_S)])
    chaos.check(found, expect="gates are looked at in time, and the tracker as soon as it can be heard")
    site.judge(CORE_1="done", CORE_2="analysis")


def killed_and_followed(chaos: Run, database: Path, parts: dict[str, str], number: int, point: str) -> None:
    """Kill the reconciler as it makes up for this delivery, and start another one."""
    way, parameters = WAYS[int(chaos.random("way").random() * len(WAYS))]
    chaos.plan(deliver("proxy", way, at_delivery(number), **parameters), kill("reconciler", at_point(point)))
    chaos.note("crash_points", [point])
    site = Site(chaos, database, parts)
    site.start()
    if number == START:
        site.move(KEY, "In Progress")
    else:
        run_to_development(site)
        site.judge_commit(KEY, "pending")
        site.judge_commit(KEY, "success")
    site.world.clock.advance(GRACE_S + INTERVAL_S)
    chaos.agent("reconciler").wait_exit()
    chaos.agent("reconciler").restart().wait_for("tick", kind="note")
    if number == START:
        seen = run_pipeline(site)
        expect_times(site, seen, (0.0, 0.0, 0.0))
    else:
        expect_times(site, (site.wait_for_stage("done"),), (0.0,))
    site.judge(CORE_1="done")


KILLS = [(START, point) for point in HandlerPoint] + [(STATUS, point) for point in JobCrashPoint.of("stage")]


def test_the_reconciler_is_killed_at_a_point_drawn_from_the_seed(
    chaos: Run, fresh_db: Path, parts: dict[str, str]
) -> None:
    """The quick form: while it makes a task, or moves one."""
    number, point = KILLS[int(chaos.random("kills").random() * len(KILLS))]
    killed_and_followed(chaos, fresh_db, parts, number, point)


@pytest.mark.chaos_deep
@pytest.mark.parametrize(("number", "point"), [pytest.param(*each, id=each[1].partition(".")[2]) for each in KILLS])
def test_the_reconciler_is_killed_at_a_named_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], number: int, point: str
) -> None:
    """At every named point of both: the next reconciler finishes the work, once."""
    killed_and_followed(chaos, fresh_db, parts, number, point)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_reconciler_stops_at_every_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], fault: Callable[..., Fault]
) -> None:
    """Wherever a reconciler stops that makes up for a lost status, another one moves the task."""
    chaos.plan(
        deliver("proxy", "lose", at_delivery(STATUS)),
        at_every_point("reconciler", fault, points="recovery.stage.*", sample=SAMPLE),
    )
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    site.world.clock.advance(GRACE_S + INTERVAL_S)
    zombie = chaos.agent("reconciler")

    def is_done() -> bool:
        return stage_of(site.looks, KEY) == "done"

    chaos.wait_until(
        lambda: is_done() or zombie.state == "T" or not zombie.running, what="it to stop, or to move the task"
    )
    if zombie.state == "T":
        if not has_write_lock(fresh_db):
            site.reconcile("other")
            chaos.wait_until(is_done, what="another reconciler to move the task")
        zombie.resume()
    elif not zombie.running:
        zombie.restart()
    site.wait_for_stage("done")
    site.judge(CORE_1="done")


def lead_several(site: Site, keys: list[str]) -> None:
    """Lead several issues from start to end, side by side,
    and expect that the reconciler is late with none.
    """
    for state, stage in (("In Progress", "analysis"), ("Approved", "development")):
        for key in keys:
            site.move(key, state)
        site.settle()
        passed_s = max(site.wait_for_stage(stage, key=key) for key in keys)
        site.chaos.check(check_times((passed_s,), [(0.0, INTERVAL_S)]), expect=f"all are in {stage} in time")
    for state in ("pending", "success"):
        for key in keys:
            site.judge_commit(key, state)
    passed_s = sum(site.wait_for_stage("done", key=key) for key in keys)
    site.chaos.check(check_times((passed_s,), [(0.0, GRACE_S + INTERVAL_S)]), expect="all are done in time")


@pytest.mark.chaos_deep
def test_deliveries_of_several_issues_are_lost_by_chance(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Four issues in one repository, and half of all that is delivered about them gets lost."""
    chaos.plan(
        *draw_deliveries("proxy", chaos.random("lost"), deliveries=20, share=0.5, toxics=("lose", "refuse", "cut"))
    )
    site = Site(chaos, fresh_db, parts)
    site.start()
    lead_several(site, [f"CORE-{number}" for number in range(1, 5)])
    site.judge(CORE_1="done", CORE_2="done", CORE_3="done", CORE_4="done")


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; defaults are as promised; one decision is one transaction."""
    ask_limits(chaos, "webhooks")
