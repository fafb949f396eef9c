"""What happens to holders in the core's state machine:
a heartbeat that stalls, and a child forked in a transaction.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from durable_agents import Heartbeat
from durable_agents.errors import InheritedTransaction
from durable_agents.store.rows import Audit
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from scenarios.model.states import Moment, us
from tests.recovery.once.key_machine import KeyMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Lease, ManualClock
    from durable_agents.clock import Microseconds

    from scenarios.model.work import Work

REFUSED = 3
"""The exit code of a child that was told that it cannot end its parent's transaction."""


class Stalling:
    """The machine's clock for one heartbeat: asked for the time, it lets something happen first,
    once.
    """

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.stall: Callable[[], object] | None = None

    def now(self) -> Microseconds:
        """Return the time, after the stall if there is one."""
        stall, self.stall = self.stall, None
        if stall is not None:
            stall()
        return self._clock.now()

    def monotonic(self) -> Microseconds:
        """Return the time of the holder's own clock."""
        return self._clock.monotonic()


class HolderMachine(KeyMachine):
    """What heartbeats do, and children that know no better."""

    heartbeat_kind: ClassVar[type[Heartbeat]] = Heartbeat
    model: Work
    believed: dict[str, list[Lease]]
    has_forked = False

    def lease_of(self, which: int) -> tuple[str, Lease]:
        """Return a worker and one of the leases that it believes to have;
        the whole machine knows which.
        """
        raise NotImplementedError

    @precondition(lambda self: any(self.believed.values()))
    @rule(which=st.integers(0, 9), stall_s=st.sampled_from([0.0, 0.5, 6.0, 9.5]))
    def beat(self, which: int, stall_s: float) -> None:
        """Renew by a heartbeat that waits for other writers, and ask it meanwhile:
        a loss that was told stays one.
        """
        worker, lease = self.lease_of(which)
        is_trusted = self.clock.monotonic() < lease.trusted_until
        clock, told = Stalling(self.clock), list[bool]()
        heartbeat = self.heartbeat_kind(lease, db_path=self.store.path, clock=clock)

        def stall() -> None:
            self.clock.advance(stall_s)
            told.append(heartbeat.is_lost)

        clock.stall = stall
        heartbeat.run_once()
        is_renewed = is_trusted and self._renewed(lease)
        assert heartbeat.is_lost == (told != [False] or not is_renewed)
        if not heartbeat.is_lost:
            self.believed[worker][self.believed[worker].index(lease)] = heartbeat.lease
        heartbeat.stop()

    def _renewed(self, lease: Lease) -> bool:
        """Note in the model that the database has renewed, if it should have; return whether."""
        moment = Moment(self.clock.now(), self.clock.monotonic())
        if self.model.refusal_by_the_store(moment, lease) is not None:
            return False
        self.model.items[lease.work_item_id].expires_at = moment.now + us(lease.ttl_s)
        return True

    @precondition(lambda self: not self.has_forked)  # a fork of the whole test process costs as much as an example
    @rule()
    def fork_in_a_transaction(self) -> None:
        """Fork a child in a transaction, which ends it as if it were its own:
        it is told that it cannot.
        """
        self.has_forked = True
        with self.store.transaction() as transaction:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    transaction.insert_audit(Audit("t", "of the child", None, None, "", 1))
                    transaction.__exit__(None, None, None)
                    code = 0
                except InheritedTransaction:
                    code = REFUSED
                finally:
                    os._exit(code)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        is_there = any(audit.event == "of the child" for audit in self.store.audits("t"))
        assert (ended, is_there) == (REFUSED, False), "the child's commit was acknowledged, and lost"
