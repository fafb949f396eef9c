"""Scenario 03: a lease expires, another holder takes over, and the zombie changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import LEASE_CRASH_POINTS, SWEEP_CRASH_POINTS, LeaseManager, SystemClock, TaskManager, WorkStatus
from pytest_chaos import after_mark, at_every_point, at_point, kill, pause
from pytest_chaos.checkers import ownership

from scenarios.interleaving import check_overlapping, lease_operations
from scenarios.judging import Script, judge, play, read_tables
from scenarios.model.states import Moment
from scenarios.model.work import Work
from scenarios.statements import Statements, of_statements
from scenarios.webhooks.world import WorldClock
from scenarios.work.checks import check_no_exceptions, effects_of
from scenarios.work.work_scripts import of_leases, of_retries, of_tasks
from scenarios.zombies import LONG_S, SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Finding, Run

pytestmark = pytest.mark.chaos(
    id="03-lease-takeover",
    title="One owner at a time: an expired lease is taken over, and its zombie is told",
    why="A worker that is stopped past its lease, by a long collection or a suspended machine, wakes and goes on.",
    steps=[
        "The first holder takes an item and is stopped, or killed.",
        "Its lease runs out; a sweep returns the item; the second holder takes it over.",
        "The first wakes and tries to renew, to write and to complete: before, while, or after the second works.",
        "There is exactly one effect, tokens rise, and every attempt of the zombie is refused.",
    ],
)

TASK = "takeover"
TTL_LOST_S = 0.02
"""The length of the lease that is to run out: nothing has to happen within it,
so no machine is too slow for it.
"""

TTL_S = 60.0
"""The length of one that must not."""

HOLD = "scenarios.work.lease_agents:hold"
SWEEP = "scenarios.work.lease_agents:sweep"
PLAY = "scenarios.work.work_scripts:play_work"
POINTS = (*LEASE_CRASH_POINTS, *SWEEP_CRASH_POINTS)
"""Where the players of a script are killed."""


@pytest.fixture
def database(fresh_db: Path) -> Path:
    """Return a database with one pending item."""
    with LeaseManager(db_path=fresh_db) as leases:
        TaskManager(leases.store).create(TASK)
        leases.enqueue(TASK, "work")
    return fresh_db


class Takeover:
    """The moves of the scenario, by real processes."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.database = database
        self.parts = parts

    def holder(self, name: str, *, ttl_s: float = TTL_S) -> Agent:
        """Start a holder."""
        kwargs = {"database": str(self.database), "name": name, "ttl_s": ttl_s}
        kwargs |= {"leases": self.parts["leases"], "checkpoints": self.parts["checkpoints"]}
        return self.chaos.spawn(HOLD, kwargs=kwargs, name=name)

    def wait_for_expiry(self, holder: Agent) -> None:
        """Wait until the lease that the holder acknowledged has run out."""
        (mark,) = holder.wait_for("lease")
        clock = SystemClock()
        self.chaos.wait_until(lambda: clock.now() > mark.value["expires_at"], what="the expiry of the first lease")

    def sweep(self) -> None:
        """Sweep, and expect that this sweep found and recovered the one lease."""
        kwargs = {"database": str(self.database), "sweeper": self.parts["sweep"], "batch": 50}
        sweeper = self.chaos.spawn(SWEEP, kwargs=kwargs, name="sweeper")
        found = sweeper.wait_for("sweep")[0].value
        self.chaos.expect("expired_found", observed=found["expired_found"], holds=found["expired_found"] == 1)
        self.chaos.expect("recovered", observed=found["recovered"], holds=found["recovered"] == 1)

    def judge(
        self, *, owner: str, zombie: str | None, refused: tuple[str, ...] = ("renew", "effect", "complete")
    ) -> None:
        """Expect one effect, the owner's, risen tokens, and these refusals of the zombie."""
        history = self.chaos.history
        grants = [
            ownership.Grant(resource="work", holder=str(mark.key), token=mark.value["token"], start=mark.order)
            for mark in history.acknowledged("lease")
        ]
        writes = [
            ownership.Write(resource="work", token=int(mark.key or 0), at=mark.order, accepted=True)
            for operation in ("renew", "effect", "complete")
            for mark in history.acknowledged(operation)
        ]
        effects = effects_of(self.database, TASK)
        self.chaos.check(self.model(), expect="an order in which the model allows all of it")
        self.chaos.check(ownership.tokens_rise(grants), expect="fencing tokens rise with every grant")
        self.chaos.check(ownership.no_stale_write(grants, writes), expect="no write by a stale token")
        self.chaos.expect("effects", observed=effects, holds=[name for name, _ in effects] == [owner])
        with LeaseManager(db_path=self.database) as leases:
            status = leases.get(1).status
        self.chaos.expect("the item", observed=status, holds=status is WorkStatus.COMPLETED)
        completions = [mark.agent for mark in history.acknowledged("complete")]
        self.chaos.expect("completed by", observed=completions, holds=completions == [owner])
        if zombie is not None:
            told = tuple(str(mark.key) for mark in history.select("note", "refused", zombie))
            self.chaos.expect("the zombie is refused", observed=", ".join(told), holds=told == refused)
        self.chaos.check(check_no_exceptions(history), expect="no exception in any agent")

    def model(self) -> Iterator[Finding]:
        """Find that the model does not allow what was done, in any order."""
        model = Work()
        model.create(Moment(0, 0), TASK)
        model.enqueue(Moment(0, 0), TASK)
        seen = read_tables(self.database, ["work_items", "expiries"])
        rows = [
            {name: row[name] for name in ("status", "retries", "token", "holder")}
            for row in seen["work_items"].values()
        ]
        seen["work_items"] = dict(zip(seen["work_items"], rows, strict=True))
        return check_overlapping(lease_operations(self.chaos.history), model, seen)

    def others(self) -> Iterator[Agent]:
        """Start a sweeper, then a second holder."""
        kwargs = {"database": str(self.database), "sweeper": self.parts["sweep"], "batch": 50}
        yield self.chaos.spawn(SWEEP, kwargs=kwargs, name="sweeper")
        yield self.holder("second")

    def status(self) -> str:
        """Return the status of the item."""
        with LeaseManager(db_path=self.database) as leases:
            return leases.get(1).status

    def judge_any(self) -> None:
        """Expect one completion, by the owner of the last effect, and tokens that rise.

        An effect that was there before the takeover may be done again: the item was not complete.
        """
        history = self.chaos.history
        self.chaos.check(self.model(), expect="an order in which the model allows all of it")
        effects = effects_of(self.database, TASK)
        tokens = [token for _, token in effects]
        self.chaos.expect(
            "tokens of the effects", observed=tokens, holds=tokens == sorted(set(tokens)) and bool(tokens)
        )
        granted = [mark.value["token"] for mark in history.acknowledged("lease")]
        self.chaos.expect("tokens granted", observed=granted, holds=len(set(granted)) == len(granted))
        self.chaos.expect("the item", observed=self.status(), holds=self.status() == WorkStatus.COMPLETED)
        owners = {effects[-1][0]} if effects else set()
        completions = [mark.agent for mark in history.acknowledged("complete")]
        self.chaos.expect(
            "completed by", observed=completions, holds=len(completions) <= 1 and set(completions) <= owners
        )
        self.chaos.check(self.model(), expect="an order in which the model allows all of it")
        self.chaos.check(check_no_exceptions(history), expect="no exception in any agent")


@pytest.fixture
def takeover(chaos: Run, database: Path, parts: dict[str, str]) -> Takeover:
    """Return the moves, on one database."""
    return Takeover(chaos, database, parts)


def test_a_killed_holder_is_followed_by_another(takeover: Takeover) -> None:
    """The first holder dies; after expiry and sweep, the second takes over and completes."""
    takeover.chaos.plan(kill("first", after_mark("lease")))
    first = takeover.holder("first", ttl_s=TTL_LOST_S)
    first.wait_exit()
    takeover.wait_for_expiry(first)
    takeover.sweep()
    takeover.holder("second").wait_exit()
    takeover.judge(owner="second", zombie=None)


def test_a_zombie_wakes_after_the_second_has_completed(takeover: Takeover) -> None:
    """A holder that was stopped past its expiry wakes when all is done, and is refused."""
    takeover.chaos.plan(pause("first", after_mark("lease")))
    first = takeover.holder("first", ttl_s=TTL_LOST_S)
    first.wait_state("T")
    takeover.wait_for_expiry(first)
    takeover.sweep()
    takeover.holder("second").wait_exit()
    first.resume()
    first.wait_exit()
    takeover.judge(owner="second", zombie="first")


def test_a_zombie_wakes_while_the_second_works(takeover: Takeover) -> None:
    """A zombie wakes while the second holder works: the store accepts one of them."""
    takeover.chaos.plan(pause("first", after_mark("lease")), pause("second", after_mark("lease")))
    first = takeover.holder("first", ttl_s=TTL_LOST_S)
    first.wait_state("T")
    takeover.wait_for_expiry(first)
    takeover.sweep()
    second = takeover.holder("second")
    second.wait_state("T")
    first.resume()
    first.wait_exit()
    second.resume()
    second.wait_exit()
    takeover.judge(owner="second", zombie="first")


def test_a_zombie_wakes_before_anybody_took_over(takeover: Takeover) -> None:
    """A zombie wakes before any other holder took over: an expired lease is refused."""
    takeover.chaos.plan(pause("first", after_mark("lease")))
    first = takeover.holder("first", ttl_s=TTL_LOST_S)
    first.wait_state("T")
    takeover.wait_for_expiry(first)
    first.resume()
    first.wait_exit()
    takeover.sweep()
    takeover.holder("second").wait_exit()
    takeover.judge(owner="second", zombie="first")


@pytest.mark.parametrize("script", [of_leases, of_retries, of_tasks], ids=lambda script: script.__name__)
def test_what_is_promised_at_its_very_moment(
    chaos: Run, fresh_db: Path, parts: dict[str, str], script: Callable[[], Script]
) -> None:
    """Grants, renewals, ends and sweeps give what the model says, by a clock that stands still."""
    play(chaos, PLAY, script(), database=str(fresh_db), parts=parts)
    judge(chaos, Work(), fresh_db)


def test_killed_in_the_script(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A player is killed at a point drawn from the seed: what it had begun has happened or not."""
    drawn = chaos.random("kills")
    point = POINTS[int(drawn.random() * len(POINTS))]
    chaos.plan(kill("player-0", at_point(point, occurrence=1 + int(drawn.random() * 2))))
    chaos.note("crash_points", [point])
    play(chaos, PLAY, of_leases(), database=str(fresh_db), parts=parts)
    judge(chaos, Work(), fresh_db)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_holder_stops_at_every_point(takeover: Takeover, fault: Callable[..., Fault]) -> None:
    """Wherever a holder stands still or dies, its lease runs out, and another takes over."""
    chaos, clock = takeover.chaos, WorldClock(takeover.database.parent)
    chaos.plan(at_every_point("first", fault, points="recovery.*", sample=SAMPLE))
    first = takeover.holder("first")
    first.wait_stopped()
    clock.advance(LONG_S)
    outlive(chaos, first, takeover.others, database=takeover.database)
    if takeover.status() != WorkStatus.COMPLETED:  # it was granted in the last moment, for no time
        clock.advance(LONG_S)
        for agent in takeover.others():
            agent.wait_exit()
    takeover.judge_any()


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_sweeper_stops_at_every_point(takeover: Takeover, fault: Callable[..., Fault]) -> None:
    """Wherever a sweeper stands still or dies, others sweep and work before it wakes."""
    chaos, clock = takeover.chaos, WorldClock(takeover.database.parent)
    chaos.plan(kill("dead", after_mark("lease")), at_every_point("zombie", fault, points="recovery.*", sample=SAMPLE))
    takeover.holder("dead").wait_exit()
    clock.advance(LONG_S)
    kwargs = {"database": str(takeover.database), "sweeper": takeover.parts["sweep"], "batch": 50}
    zombie = chaos.spawn(SWEEP, kwargs=kwargs, name="zombie")
    outlive(chaos, zombie, takeover.others, database=takeover.database)
    recovered = sum(mark.value["recovered"] for mark in chaos.history.acknowledged("sweep"))
    chaos.expect("recovered, all sweepers together", observed=recovered, holds=recovered <= 1)
    takeover.judge_any()


def test_a_write_that_names_another_claim_changes_nothing(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Each statement of the store is asked with one part of its claim wrong, and then right."""
    play(chaos, "scenarios.statements:play_statements", of_statements(), database=str(fresh_db), parts=parts)
    judge(chaos, Statements(), fresh_db)
