"""Scenario 03: a lease expires, another holder takes over, and the zombie changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import LeaseManager, SystemClock, TaskManager, WorkStatus
from pytest_chaos import after_mark, kill, pause
from pytest_chaos.checkers import ownership

from scenarios.work.checks import check_no_exceptions, effects_of

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos import Agent, Run

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
