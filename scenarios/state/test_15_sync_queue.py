"""Scenario 15: pushes fail, the pusher dies, a copy of the queue is lost.

All pushes arrive, in order, each with one effect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import Roots, StateCrashPoint
from pytest_chaos import after_mark, at_delivery, at_every_point, at_point, deliver, kill
from pytest_chaos.faults.toxics import draw_deliveries

from scenarios.judging import judge, play
from scenarios.state.queue_scripts import model, of_pushes
from scenarios.state.state_checks import check_sync
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE

if TYPE_CHECKING:
    from pytest_chaos import Agent, Run

pytestmark = pytest.mark.chaos(
    id="15-sync-queue",
    title="What was queued is pushed at least once, in order, and counts once",
    why="The other side is down when it matters, answers come from somebody else, and the pusher dies after it sent.",
    steps=[
        "Pushes are queued and go to a server over HTTP, through a proxy that loses, refuses, cuts and doubles them.",
        "The pusher is killed between sending and dequeueing, and at every other point.",
        "The JSON copy of the queue is lost, or the store is.",
        "Every acknowledged push has its effect, once, in the order in which it was queued.",
    ],
)

PUSH = "scenarios.state.sync_agents:queue_and_push"
SERVE = "scenarios.state.sync_agents:take_pushes"
NAMES = [f"push-{number:02d}" for number in range(8)]


class Road:
    """A queue, a fault proxy, and a server at its end."""

    def __init__(self, chaos: Run, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.parts = parts
        self.root = chaos.directory / "root"
        self.log = chaos.directory / "arrivals.jsonl"
        (serving,) = chaos.spawn(SERVE, kwargs={"log": str(self.log)}, name="server").wait_for("serving", kind="note")
        self.proxy = chaos.proxy(f"http://127.0.0.1:{serving.value}")

    @property
    def arrivals(self) -> list[dict[str, Any]]:
        """The arrivals, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def push(self, agent: str) -> Agent:
        """Start a pusher for the unacknowledged names, and wait for its end.

        It pushes what the queue still has, too.
        """
        done = {str(mark.key) for mark in self.chaos.history.acknowledged("enqueue")}
        names = [name for name in NAMES if name not in done]
        kwargs = {"root": str(self.root), "url": f"{self.proxy.url}/sync", "names": names, "parts": self.parts}
        pusher = self.chaos.spawn(PUSH, kwargs=kwargs, name=agent)
        pusher.wait_exit(timeout_s=120)
        return pusher

    def lose(self, *paths: Path) -> None:
        """Remove files, which must exist."""
        there = [path.name for path in paths if path.exists()]
        self.chaos.expect("what is taken away was there", observed=there, holds=len(there) == len(paths) > 0)
        for path in paths:
            path.unlink(missing_ok=True)

    def judge(self) -> None:
        """Expect all pushes at the server, in order, with one effect each, and an empty queue."""
        effects = [entry["name"] for entry in self.arrivals if entry["is_new"]]
        arrivals = [entry["name"] for entry in self.arrivals]
        self.chaos.check(
            check_sync(self.chaos.history, effects, arrivals), expect="at least once, in order, each effect once"
        )
        self.chaos.expect("effects", observed=len(set(effects)), holds=set(effects) == set(NAMES))
        drained = len(self.chaos.history.acknowledged("drained"))
        self.chaos.expect("the queue ran empty", observed=drained, holds=drained >= 1)
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")


def test_pushes_fail(chaos: Run, parts: dict[str, str]) -> None:
    """Pushes that are lost, refused, cut or doubled arrive in the end."""
    chaos.plan(
        deliver("proxy", "lose", at_delivery(1)),
        deliver("proxy", "lose", at_delivery(3), status=None),
        deliver("proxy", "refuse", at_delivery(5), status=503),
        deliver("proxy", "refuse", at_delivery(6), carried=True),
        deliver("proxy", "cut", at_delivery(8), carried=True),
        deliver("proxy", "duplicate", at_delivery(10)),
        deliver("proxy", "truncate", at_delivery(12)),
    )
    road = Road(chaos, parts)
    road.push("pusher")
    road.judge()
    chaos.wait_for_faults()


def test_killed_between_send_and_dequeue(chaos: Run, parts: dict[str, str]) -> None:
    """A pusher dies between the send and the dequeue: the push arrives again, and counts once."""
    chaos.plan(kill("pusher", at_point("recovery.sync.after_push", occurrence=3)))
    road = Road(chaos, parts)
    road.push("pusher")
    road.push("next")
    names = [entry["name"] for entry in road.arrivals]
    chaos.expect("arrivals of the third", observed=names.count(NAMES[2]), holds=names.count(NAMES[2]) == 2)
    road.judge()


def test_the_json_copy_is_lost(chaos: Run, parts: dict[str, str]) -> None:
    """The JSON file is lost after the pusher died: the store has the queue."""
    chaos.plan(kill("pusher", after_mark("queued", kind="note")))
    road = Road(chaos, parts)
    road.push("pusher")
    road.lose(Roots(str(road.root)).state / "sync_queue.json")
    road.push("next")
    road.judge()


def test_the_store_is_lost(chaos: Run, parts: dict[str, str]) -> None:
    """The database is lost after the pusher died: the file has the queue."""
    chaos.plan(kill("pusher", at_point("recovery.sync.before_push", occurrence=4)))
    road = Road(chaos, parts)
    road.push("pusher")
    road.lose(*Roots(str(road.root)).state.glob("db.sqlite*"))
    road.push("next")
    road.judge()


def killed(chaos: Run, parts: dict[str, str], points: list[tuple[str, int]]) -> None:
    """Let a pusher die at each point, and the last one finish."""
    victims = {f"pusher-{number}": point for number, point in enumerate(points)}
    faults = [kill(name, at_point(point, occurrence=passing)) for name, (point, passing) in victims.items()]
    chaos.plan(*faults, deliver("proxy", "refuse", at_delivery(2), carried=True))
    chaos.note("crash_points", [point for point, _ in points])
    road = Road(chaos, parts)
    for name in victims:
        road.push(name)
    road.push("last")
    road.judge()


def test_killed_at_points_drawn_from_the_seed(chaos: Run, parts: dict[str, str]) -> None:
    """The quick form: two kills while it queues, or pushes."""
    drawn = chaos.random("kills")
    points = sorted(StateCrashPoint.of("sync"), key=lambda _: drawn.random())[:2]
    killed(chaos, parts, [(point, 2) for point in points])


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", StateCrashPoint.of("sync"), ids=lambda point: point.rpartition(".")[2])
def test_killed_at_a_named_point(chaos: Run, parts: dict[str, str], point: str) -> None:
    """One pusher dies there while it queues or pushes its first,
    the next while it does a later one.
    """
    killed(chaos, parts, [(point, 1), (point, 2)])


@pytest.mark.chaos_deep
def test_toxics_drawn_from_the_seed(chaos: Run, parts: dict[str, str]) -> None:
    """Each of the first eight deliveries may be lost, doubled, refused or cut;
    two pushers die among them.
    """
    drawn = chaos.random("toxics")
    toxics = draw_deliveries(
        "proxy", drawn, deliveries=len(NAMES), share=0.5, toxics=("lose", "duplicate", "refuse", "cut", "truncate")
    )
    kills = [kill(f"pusher-{number}", at_point("recovery.sync.after_push")) for number in range(2)]
    chaos.plan(*toxics, *kills)
    road = Road(chaos, parts)
    for name in ("pusher-0", "pusher-1", "last"):
        road.push(name)
    road.judge()
    chaos.wait_for_faults()


def test_what_is_promised_at_its_very_moment(chaos: Run, parts: dict[str, str]) -> None:
    """Pushes are tried when the model says, by a clock that stands still."""
    root = chaos.directory / "root"
    play(chaos, "scenarios.state.queue_scripts:play_pushes", of_pushes(), root=str(root), parts=parts)
    judge(chaos, model(), Path(Roots(str(root)).database))


@pytest.mark.parametrize(
    ("points", "steps"), [("recovery.sync.*", ""), ("", "root/.core/db.sqlite*")], ids=["points", "steps"]
)
def test_a_pusher_is_killed_at_every_point(chaos: Run, parts: dict[str, str], points: str, steps: str) -> None:
    """Wherever a pusher dies, the next one pushes the rest, in order, each with one effect."""
    chaos.plan(at_every_point("pusher", kill, points=points, steps=steps, sample=SAMPLE))
    road = Road(chaos, parts)
    road.push("pusher")
    road.push("last")
    road.judge()
