"""Scenario 12: deliveries come twice, late, out of order, forged and replayed.

They meet the reconciler. Each event has one effect.
"""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents.webhooks.inbox import InboxPoint
from pytest_chaos import at_delivery, at_every_point, at_point, deliver, hold_lock, kill, pause
from pytest_chaos.faults.toxics import draw_deliveries

from scenarios import judging
from scenarios.jobs.job_checks import rows
from scenarios.model.inbox import Inbox
from scenarios.webhooks.inbox_scripts import of_deliveries
from scenarios.webhooks.test_11_lost_webhooks import expect_times, lead_several, run_pipeline, run_to_development
from scenarios.webhooks.tracker import deliver as tell, forms, send
from scenarios.webhooks.webhook_agents import GATE_IS_GREEN, PROJECT, REPO, sha_of
from scenarios.webhooks.webhook_checks import check_answers, check_inbox, check_stays, check_times, stage_of, written
from scenarios.webhooks.website import GRACE_S, INTERVAL_S, KEY, WAIT_S, Site
from scenarios.zombies import SAMPLE, has_write_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Fault, Run

pytestmark = pytest.mark.chaos(
    id="12-unruly-deliveries",
    title="However often and in whatever order deliveries come, each stage is left once",
    why="Senders promise at least once and no order, anybody can send, and a receiver can die at any moment.",
    steps=[
        "Deliveries of a pipeline are doubled, delayed, reordered and replayed; others are forged, cut or too large.",
        "The receiver is killed before and after it has answered; webhook and reconciler come at the same moment.",
        "What was acknowledged is in the inbox; there is one task, one advance and one job for each stage.",
    ],
)

START, VERDICT, PUSH, PENDING, STATUS = range(1, 6)
ISSUE: Final = {"key": KEY, "state": "In Progress", "repo": REPO}


def judge(site: Site, *toxics: Fault, **stages: str) -> None:
    """Expect what any pipeline leaves, and an inbox that has what was acknowledged, once.

    What the proxy has lost it has acknowledged itself, in nobody's name.
    """
    site.judge(**stages)
    lost = sum(toxic.kind == "lose-delivery" for toxic in toxics)
    found = check_inbox(site.database, site.world.sent(), proxy_lost=lost)
    site.chaos.check(found, expect="what was acknowledged is there, once")


def under_toxics(chaos: Run, database: Path, parts: dict[str, str], *toxics: Fault, forge: str = "github") -> Site:
    """Plan toxics for deliveries, and start all parts."""
    chaos.plan(*toxics)
    site = Site(chaos, database, parts, forge=forge)
    site.start()
    return site


@pytest.mark.parametrize("at_once", [False, True], ids=["one-after-the-other", "at-once"])
def test_every_delivery_comes_three_times(chaos: Run, fresh_db: Path, parts: dict[str, str], at_once: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Each delivery comes three times under one id, and counts once."""
    toxic = deliver("proxy", "duplicate", at_delivery(1, count=None), copies=3, at_once=at_once)
    site = under_toxics(chaos, fresh_db, parts, toxic)
    seen = run_pipeline(site)
    expect_times(site, seen, (0.0, 0.0, 0.0))
    judge(site, CORE_1="done")


def test_every_delivery_is_late(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Each delivery is late: the pipeline waits as long as its sender."""
    site = under_toxics(chaos, fresh_db, parts, deliver("proxy", "delay", at_delivery(1, count=None), delay_s=0.03))
    seen = run_pipeline(site)
    expect_times(site, seen, (0.0, 0.0, 0.0))
    judge(site, CORE_1="done")


def test_the_verdict_overtakes_the_start(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A verdict before the start starts nothing; after the start, the tracker is polled."""
    toxic = deliver("proxy", "reorder", at_delivery(START), status=202, behind=1)
    site = under_toxics(chaos, fresh_db, parts, toxic)
    site.move(KEY, "In Progress")
    site.move(KEY, "Approved")
    chaos.wait_for_faults()
    site.wait_for_stage("analysis")
    passed_s = site.wait_for_stage("development")
    expect_times(site, (passed_s,), (INTERVAL_S,))
    judge(site, CORE_1="development")


def test_the_status_overtakes_the_push(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A status without a branch arrives before the push of its commit."""
    toxic = deliver("proxy", "reorder", at_delivery(PUSH), status=202, behind=2, hold_s=WAIT_S)
    site = under_toxics(chaos, fresh_db, parts, toxic, forge="gitea")
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    chaos.wait_for_faults()
    passed_s = site.wait_for_stage("done")
    expect_times(site, (passed_s,), (0.0,))
    judge(site, CORE_1="done")


def test_an_old_green_comes_late(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """An old green status arrives after a newer, red commit: the gate is red, the task stays."""
    toxic = deliver("proxy", "reorder", at_delivery(STATUS), status=202, behind=2, hold_s=WAIT_S)
    site = under_toxics(chaos, fresh_db, parts, toxic)
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    site.act(lambda: site.client.push(REPO, f"feature/{KEY}", "b" * 40))
    site.act(lambda: site.client.set_status(REPO, "b" * 40, "failure"))
    chaos.wait_for_faults()
    site.settle()
    site.pass_time(GRACE_S + INTERVAL_S)
    stays = check_stays(fresh_db, KEY, "development", "gate:left-while-red")
    chaos.check(stays, expect="an old green moves nothing")
    site.act(lambda: site.client.set_status(REPO, "b" * 40, "success"))
    expect_times(site, (site.wait_for_stage("done"),), (0.0,))
    judge(site, CORE_1="done")


def test_old_deliveries_are_replayed_when_all_is_done(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Replayed deliveries of a finished pipeline have no effect.

    They are sent byte for byte, at once and after their time, the forge's under new ids, too.
    """
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    site.wait_for_stage("done")
    before = written(fresh_db)
    chaos.check(check_answers(dict(replay(site, "200"))), expect="what is known is answered so")
    site.world.clock.advance(3600)
    chaos.check(check_answers(dict(replay(site, "401"))), expect="what is known and old is refused where it has a time")
    site.settle()
    chaos.expect("replays change nothing", observed=None, holds=written(fresh_db) == before)
    judge(site, CORE_1="done")


def replay(site: Site, timed: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Send again all that was sent, as it was, and the forge's under another id, too;
    yield answers, and what they are.

    ``timed`` is the answer to what is signed with its time; the rest is known for ever.
    """
    for number, (url, headers, body) in enumerate(site.world.requests(), 1):
        yield f"{number}", (answer(site, url, headers, body), timed if "webhook-timestamp" in headers else "200")
        if "X-GitHub-Delivery" in headers:
            again = answer(site, url, headers | {"X-GitHub-Delivery": "another"}, body)
            yield f"{number} under another id", (again, "200")


def answer(site: Site, url: str, headers: dict[str, str], body: str) -> str:
    """Send a request and return the answer."""
    found: list[str] = []
    site.act(lambda: found.append(send(url, headers, body)))
    return found[0]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, id=point.rpartition(".")[2], marks=() if "accept" in point else pytest.mark.chaos_deep)
        for point in InboxPoint
    ],
)
@pytest.mark.parametrize(
    "number", [pytest.param(START, id="start"), pytest.param(STATUS, id="status", marks=pytest.mark.chaos_deep)]
)
def test_the_receiver_is_killed(chaos: Run, fresh_db: Path, parts: dict[str, str], number: int, point: str) -> None:
    """The receiver is killed before or after its answer.

    Acknowledged deliveries are handled once, others are made up for.
    """
    chaos.plan(kill("receiver", at_point(point, occurrence=1 if number == START else STATUS)))
    chaos.note("crash_points", [point])
    site = Site(chaos, fresh_db, parts)
    site.start()
    if number == START:
        site.move(KEY, "In Progress")
    else:
        run_to_development(site)
        site.judge_commit(KEY, "pending")
        site.judge_commit(KEY, "success")
    chaos.agent("receiver").wait_exit()
    site.receive()
    chaos.check(check_inbox(fresh_db, site.world.sent()), expect="what was acknowledged is there, once")
    kept = rows(fresh_db, "SELECT 1 FROM webhook_inbox WHERE delivery_id = ?", site.world.sent()[-1][2])
    stage = "analysis" if number == START else "done"
    passed_s = site.wait_for_stage(stage)
    bound_s = 0.0 if kept else INTERVAL_S if number == START else GRACE_S
    chaos.check(check_times((passed_s,), [(0.0, bound_s)]), expect="what is in the inbox is done without more time")
    chaos.note("answer to the same again", answer(site, *site.world.requests()[-1]))
    site.settle()
    judge(site, CORE_1=stage)


def test_the_receiver_dies_when_it_has_answered(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The receiver dies after three acknowledgements; the next one handles the deliveries."""
    site = Site(chaos, fresh_db, parts)
    receiver = site.receive(handles=False)
    for number in range(1, 4):
        site.move(f"CORE-{number}", "In Progress")
    receiver.kill()
    site.receive()
    chaos.spawn("scenarios.webhooks.webhook_agents:work", kwargs=site.common, name="worker")
    site.settle()
    judge(site, CORE_1="analysis", CORE_2="analysis", CORE_3="analysis")


def forgeries(moment_s: int) -> Iterator[tuple[str, str, str, dict[str, str], str]]:
    """Yield forgeries: name, expected answer, source, headers and body."""
    for source, event, content in (
        ("tracker", "", {"type": "issue.state_changed", "data": ISSUE}),
        ("github", "push", {"ref": f"refs/heads/feature/{KEY}", "after": "b" * 40, "repository": {"full_name": REPO}}),
        ("gitea", "status", {"sha": sha_of(f"feature/{KEY}"), "state": "success", "repository": {"full_name": REPO}}),
    ):
        body = json.dumps(content)
        _, headers = forms(source, event, body, at(moment_s))
        yield f"{source}: another body", "401", source, headers, body.replace("core", "evil")
        for name in headers.keys() - {"Content-Type", "X-GitHub-Event", "X-Gitea-Event"}:
            rest = {key: value for key, value in headers.items() if key != name}
            yield f"{source}: no {name}", "401", source, rest, body
        yield f"{source}: no JSON", "400", source, forms(source, event, body[:-1], at(moment_s))[1], body[:-1]
        yield f"{source}: other JSON", "400", source, forms(source, "push", "[]", at(moment_s))[1], "[]"
        yield f"{source}: nowhere", "404", f"{source}s", headers, body
    body = json.dumps({"type": "issue.state_changed", "data": ISSUE})
    for name, distance_s in (("late", -400), ("early", 400)):
        yield f"too {name}", "401", "tracker", forms("tracker", "", body, at(moment_s + distance_s))[1], body
    _, headers = forms("tracker", "", body, at(moment_s))
    yield "another time", "401", "tracker", headers | {"webhook-timestamp": str(moment_s + 1)}, body
    yield "another id", "401", "tracker", headers | {"webhook-id": "msg_another"}, body
    yield "another scheme", "401", "github", headers, body


def at(moment_s: int) -> datetime:
    """Return the moment."""
    return datetime.fromtimestamp(moment_s, tz=UTC)


def test_forged_deliveries(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Each forgery gets its answer, is not kept and moves nothing; sound deliveries get in."""
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    before, kept = written(fresh_db), len(rows(fresh_db, "SELECT 1 FROM webhook_inbox"))
    assert site.proxy is not None
    moment_s = site.world.clock.now() // 1_000_000
    seen = {
        name: (answer(site, f"{site.proxy.url}/hooks/{source}", headers, body), wanted)
        for name, wanted, source, headers, body in forgeries(moment_s)
    }
    chaos.note("forgeries", len(seen))
    chaos.check(check_answers(seen), expect="each forgery has the documented answer")
    impatient = site.receive_impatiently()
    told = {length: unfinished(site, impatient, length) for length in (100, 10_000_000)}
    holds = [" 408 " in told[100], " 413 " in told[10_000_000]] == [True, True]
    chaos.expect("senders that stall, and those that threaten with 10 MB, are told so", observed=told, holds=holds)
    site.settle()
    chaos.expect("forgeries change nothing", observed=None, holds=written(fresh_db) == before)
    found = len(rows(fresh_db, "SELECT 1 FROM webhook_inbox"))
    chaos.expect("forgeries are not kept", observed=found - kept, holds=found == kept)
    site.judge_commit(KEY, "success")
    expect_times(site, (site.wait_for_stage("done"),), (0.0,))
    judge(site, CORE_1="done")


def unfinished(site: Site, port: int, length: int) -> str:
    """Announce a body to a receiver and send one byte; return the first line of the answer."""
    found: list[bytes] = []

    def stall() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
            connection.sendall(b"POST /hooks/tracker HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{" % length)
            found.append(connection.recv(1000))

    site.act(stall)
    return found[0].partition(b"\r\n")[0].decode()


# Webhook and reconciler at the same moment.


def test_the_reconciler_starts_what_a_webhook_starts(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A webhook makes the task while the reconciler, which saw none, is stopped."""
    site = under_toxics(chaos, fresh_db, parts, pause("reconciler", at_point("recovery.handlers.before_change")))
    site.world.set_issue(PROJECT, **ISSUE)
    site.world.clock.advance(INTERVAL_S)
    reconciler = chaos.agent("reconciler")
    reconciler.wait_state("T")
    site.act(lambda: tell(site.world, "tracker", "", {"type": "issue.state_changed", "data": ISSUE}))
    site.settle()
    reconciler.resume()
    site.pass_time()
    judge(site, CORE_1="analysis")


def test_the_reconciler_moves_what_a_webhook_moves(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A late status moves the task while the reconciler, which saw a green gate, is stopped."""
    site = under_toxics(
        chaos,
        fresh_db,
        parts,
        deliver("proxy", "reorder", at_delivery(STATUS), status=202, behind=1, hold_s=WAIT_S),
        pause("reconciler", at_point("recovery.stage.before_advance")),
    )
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.judge_commit(KEY, "success")
    site.world.clock.advance(GRACE_S)
    reconciler = chaos.agent("reconciler")
    reconciler.wait_state("T")
    site.move("CORE-2", "In Progress")
    chaos.wait_for_faults()
    site.settle()
    reconciler.resume()
    site.pass_time()
    judge(site, CORE_1="done", CORE_2="analysis")


def test_a_webhook_moves_what_the_reconciler_moves(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Who handles the status has heard from the gate that it is green, and stands still;
    the reconciler moves the task.

    That is a process which only handles: one that also receives could be stopped with the store's
    write lock in hand.
    """
    site = under_toxics(chaos, fresh_db, parts, pause("handler", at_point(GATE_IS_GREEN)))
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.settle()
    chaos.agent("receiver").kill()
    site.receive(handles=False)
    site.judge_commit(KEY, "success")
    handler = chaos.spawn("scenarios.webhooks.webhook_agents:handle", kwargs=site.common, name="handler")
    handler.wait_state("T")
    site.pass_time(GRACE_S, settles=False)
    chaos.wait_until(
        lambda: stage_of(site.looks, KEY) == "done", what="the rest", owed="reconciler and worker do the rest"
    )
    handler.resume()
    handler.wait_exit()
    site.pass_time()
    judge(site, CORE_1="done")


def at_the_same_moment(chaos: Run, database: Path, parts: dict[str, str], issues: int) -> None:
    """Let two receivers and two reconcilers make the same tasks, from the same moment on."""
    site = Site(chaos, database, parts)
    keys = [f"CORE-{number}" for number in range(1, issues + 1)]
    for key in keys:
        site.world.set_issue(PROJECT, key, "In Progress", REPO)
    gate = site.folder / "go"
    reconcilers = [site.reconcile(name, gate=str(gate)) for name in ("reconciler", "reconciler-2")]
    for reconciler in reconcilers:
        reconciler.wait_for("ready", kind="note")
    site.receive()
    site.port = 0
    site.receive("receiver-2")
    ports = [int(chaos.agent(name).marks[0].value) for name in ("receiver", "receiver-2")]
    gate.touch()
    site.act(lambda: deliver_to_both(site, ports, keys))
    for reconciler in reconcilers:
        reconciler.wait_for("tick", kind="note", timeout_s=WAIT_S + issues)
    chaos.spawn("scenarios.webhooks.webhook_agents:work", kwargs=site.common, name="worker")
    site.settle(issues=issues)
    judge(site, **{key.replace("-", "_"): "analysis" for key in keys})


def deliver_to_both(site: Site, ports: list[int], keys: list[str]) -> None:
    """Deliver the start of each issue to both receivers, under one id, from a thread for each."""

    def deliver_all(port: int) -> None:
        for headers, body in requests:
            send(f"http://127.0.0.1:{port}/hooks/tracker", headers, body)

    moment = at(site.world.clock.now() // 1_000_000)
    bodies = [json.dumps({"type": "issue.state_changed", "data": ISSUE | {"key": key}}) for key in keys]
    requests = [(forms("tracker", "", body, moment)[1], body) for body in bodies]
    threads = [threading.Thread(target=deliver_all, args=(port,)) for port in ports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_receivers_and_two_reconcilers_at_once(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Two receivers and two reconcilers learn of ten issues: each has one task and one job."""
    at_the_same_moment(chaos, fresh_db, parts, 10)


@pytest.mark.chaos_deep
def test_two_receivers_and_two_reconcilers_at_once_over_many_issues(
    chaos: Run, fresh_db: Path, parts: dict[str, str]
) -> None:
    """The same with a hundred issues, where the four processes meet often."""
    at_the_same_moment(chaos, fresh_db, parts, 100)


@pytest.mark.chaos_deep
def test_anything_befalls_deliveries(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Four issues; half of their deliveries are lost, doubled, late or cut."""
    toxics = ("lose", "duplicate", "delay", "refuse", "cut", "truncate")
    drawn = draw_deliveries("proxy", chaos.random("toxics"), deliveries=20, share=0.5, toxics=toxics)
    site = under_toxics(chaos, fresh_db, parts, *drawn)
    lead_several(site, [f"CORE-{number}" for number in range(1, 5)])
    judge(site, *drawn, CORE_1="done", CORE_2="done", CORE_3="done", CORE_4="done")


def test_what_is_promised_at_its_very_moment(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Deliveries are accepted, handled and forgotten as the model says."""
    target = "scenarios.webhooks.inbox_scripts:play_deliveries"
    judging.play(chaos, target, of_deliveries(), database=str(fresh_db), parts=parts)
    judging.judge(chaos, Inbox(), fresh_db)


@pytest.mark.chaos_deep
def test_the_lock_is_held_at_every_point(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Wherever somebody else takes the write lock, a handler waits for it, and loses nothing."""
    points = "recovery.inbox.before_*"
    chaos.plan(
        at_every_point("handler", hold_lock, points=points, sample=SAMPLE, database=fresh_db.name, duration_s=0.1)
    )
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.settle()
    chaos.agent("receiver").kill()
    site.receive(handles=False)
    site.judge_commit(KEY, "success")
    chaos.spawn("scenarios.webhooks.webhook_agents:handle", kwargs=site.common, name="handler").wait_exit()
    site.pass_time(GRACE_S)
    judge(site, CORE_1="done")


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_handler_stops_at_every_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], fault: Callable[..., Fault]
) -> None:
    """Wherever the process that handles a green status stops, the reconciler moves the task."""
    chaos.plan(at_every_point("handler", fault, points="recovery.*", sample=SAMPLE))
    site = Site(chaos, fresh_db, parts)
    site.start()
    run_to_development(site)
    site.judge_commit(KEY, "pending")
    site.settle()
    chaos.agent("receiver").kill()
    site.receive(handles=False)
    site.judge_commit(KEY, "success")
    handler = chaos.spawn("scenarios.webhooks.webhook_agents:handle", kwargs=site.common, name="handler")
    if handler.wait_stopped() and not has_write_lock(fresh_db):
        site.pass_time(GRACE_S, settles=False)
        site.pass_time(INTERVAL_S, settles=False)
    if handler.running:
        handler.resume()
    handler.wait_exit()
    chaos.spawn("scenarios.webhooks.webhook_agents:handle", kwargs=site.common, name="next").wait_exit()
    site.pass_time(GRACE_S)
    judge(site, CORE_1="done")
