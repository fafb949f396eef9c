"""The injector: carries out a plan while the test waits, and hands out a receipt for every fault.

It has no thread: each wait of the run pumps it. A planned fault is pending until its time comes,
then fired until it was seen to have happened, then done. One that is not done when the run ends
gets a receipt that says it did not fire, and why.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.faults.firing import Firing
from pytest_chaos.faults.toxics import DELIVERY_NOTE
from pytest_chaos.model.plan import describe_when
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, Fault, Mark, Now, Receipt
from pytest_chaos.runtime.child import FAULT_NOTE, POINTS_SEEN_NOTE, SIGNAL_OF, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.faults import FaultKind
    from pytest_chaos.faults.firing import Stage
    from pytest_chaos.runtime.agent import Agent

_POINTS_SHOWN_MAX: Final = 12


class _Pending:
    """One planned fault on its way: not yet fired, fired, seen."""

    def __init__(self, place: int, fault: Fault) -> None:
        self.place = place
        self.fault = fault
        self.firing: Firing | None = None
        self.fired_at_s: float | None = None
        self.reason = ""
        self.done = False


class Injector:
    """Watches the agents of one run and fires what is planned for them.

    ``agents`` maps names to the current incarnation; ``on_receipt`` gets each receipt as soon as it
    is known; ``restart`` starts an agent again.
    """

    def __init__(
        self,
        registry: Mapping[str, FaultKind],
        agents: Mapping[str, Agent],
        *,
        on_receipt: Callable[[Receipt], None],
        stage: Stage,
        order: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._agents = agents
        self._on_receipt = on_receipt
        self._stage = stage
        self._order = order
        self._pending: list[_Pending] = []
        self._paused: list[tuple[float, _Pending]] = []
        self._busy = False

    def load(self, faults: tuple[Fault, ...]) -> None:
        """Take over the faults of the run's plan."""
        self._pending = [_Pending(place, fault) for place, fault in enumerate(faults)]

    def triggers(self, name: str, *, from_within: bool) -> list[Trigger]:
        """Return the faults that the agent of this name has to fire itself; only a Python agent of ours can."""
        found: list[Trigger] = []
        for pending in self._pending:
            fault = pending.fault
            if pending.done or fault.agent != name or not from_within or fault.kind not in SIGNAL_OF:
                continue
            if not _fired_within(fault):
                continue
            point = fault.when.point if isinstance(fault.when, AtPoint) else None
            mark = (str(fault.when.kind), fault.when.operation) if isinstance(fault.when, AfterMark) else None
            count = fault.when.occurrence if isinstance(fault.when, AtPoint) else getattr(fault.when, "count", 1)
            found.append({"fault": pending.place, "kind": fault.kind, "point": point, "mark": mark, "count": count})
        return found

    def fire(self, fault: Fault, agent: Agent, *, wait: Callable[[Callable[[], bool], str], None]) -> Receipt:
        """Fire a fault at once, wait until it was seen, and return its receipt."""
        pending = _Pending(-1, fault)
        self._start(pending, agent)
        what = f"evidence that {fault.kind} of {agent.name!r} happened"
        wait(lambda: self._see(pending) is not None or pending.done, what)
        return self._finish(pending, self._see(pending) or "")

    @property
    def waiting(self) -> bool:
        """Whether a planned fault, or the end of a pause, is still to come."""
        return bool(self._paused) or any(not pending.done for pending in self._pending)

    def pump(self) -> None:
        """Fire what is due and look for the evidence of what was fired."""
        if self._busy:  # starting an agent again pumps, too
            return
        self._busy = True
        try:
            self._pump(time.monotonic())
        finally:
            self._busy = False

    def close(self) -> None:
        """Hand out receipts for all that never fired: with the reason, as far as it is known."""
        self.pump()
        for pending in self._pending:
            if not pending.done:
                pending.done = True
                self._on_receipt(self._receipt(pending, fired=False, evidence=self._why_not(pending)))

    def _pump(self, now_s: float) -> None:
        for pending in self._pending:
            if pending.done:
                continue
            if pending.fired_at_s is None:
                agent = self._agents.get(pending.fault.agent)
                if agent is None:
                    continue
                if self._is_due(pending, agent, now_s):
                    self._start(pending, agent)
            if pending.fired_at_s is not None and (evidence := self._see(pending)) is not None:
                self._finish(pending, evidence)
        for entry in [entry for entry in self._paused if entry[0] <= now_s]:
            self._paused.remove(entry)
            self._resume(entry[1])

    def _is_due(self, pending: _Pending, agent: Agent, now_s: float) -> bool:
        when = pending.fault.when
        alive = agent.running or not self._registry[pending.fault.kind].needs_life
        if agent.pid == 0:  # it is being started
            return False
        if isinstance(when, Now):
            return True
        if isinstance(when, AtMoment):
            since_s = agent.started_s if when.after is None else agent.mark_seen_s(when.after)
            return since_s is not None and alive and now_s >= since_s + when.delay_s
        if agent.fires_from_within and _fired_within(pending.fault):
            return any(mark.operation == FAULT_NOTE and mark.key == pending.place for mark in agent.marks)
        return isinstance(when, AfterMark) and alive and agent.mark_seen_s(when) is not None

    def _start(self, pending: _Pending, agent: Agent) -> None:
        pending.firing = Firing(pending.fault, agent, self._stage, pending.place)
        pending.fired_at_s = time.monotonic()
        if not (agent.fires_from_within and _fired_within(pending.fault)) or pending.place < 0:
            self._registry[pending.fault.kind].fire(pending.firing)

    def _see(self, pending: _Pending) -> str | None:
        assert pending.firing is not None  # noqa: S101 - it was fired at somebody
        return self._registry[pending.fault.kind].evidence(pending.firing)

    def _finish(self, pending: _Pending, evidence: str) -> Receipt:
        pending.done = True
        receipt = self._receipt(pending, fired=bool(evidence), evidence=evidence or "it was not seen to happen")
        self._on_receipt(receipt)
        duration_s = pending.fault.parameters.get("duration_s")
        if pending.fault.kind == "pause" and duration_s is not None:
            self._paused.append((time.monotonic() + duration_s, pending))
        return receipt

    def _resume(self, paused: _Pending) -> None:
        assert paused.firing is not None  # noqa: S101 - it was paused
        after = _Pending(-1, Fault(kind="resume", agent=paused.fault.agent, when=paused.fault.when))
        self._start(after, paused.firing.agent)
        self._pending.append(after)

    def _receipt(self, pending: _Pending, *, fired: bool, evidence: str) -> Receipt:
        return Receipt(
            kind=pending.fault.kind,
            agent=pending.fault.agent,
            when=describe_when(pending.fault.when),
            fired=fired,
            evidence=evidence,
            fault=pending.place if pending.place >= 0 else None,
            order=self._order() if fired else None,
        )

    def _why_not(self, pending: _Pending) -> str:
        agent = self._agents.get(pending.fault.agent)
        if agent is None:
            names = ", ".join(sorted(self._agents)) or "none at all"
            return f"no agent called {pending.fault.agent!r} was started (there were: {names})"
        if pending.fired_at_s is not None:
            return f"it was fired and not seen to happen; the agent is in state {agent.state}"
        if isinstance(pending.fault.when, AtDelivery):
            return f"of {_deliveries(agent.marks)} that came, none was struck by it; the courier is {agent.state}"
        if isinstance(pending.fault.when, AtPoint) and not agent.fires_from_within:
            return "a named crash point exists only in a Python agent (module:function)"
        seen = _points_seen(agent.marks)
        passed = f"; points it passed: {seen}" if seen else ""
        return f"agent {agent.name!r} ended ({agent.state}) before it came to that{passed}"


def _fired_within(fault: Fault) -> bool:
    if isinstance(fault.when, AtDelivery):  # by the courier, which has them from its arguments
        return True
    return fault.kind in SIGNAL_OF and isinstance(fault.when, AtPoint | AfterMark)


def _deliveries(marks: list[Mark]) -> str:
    count = sum(mark.operation == DELIVERY_NOTE for mark in marks)
    return "1 delivery" if count == 1 else f"{count} deliveries"


def _points_seen(marks: list[Mark]) -> str:
    for mark in marks:
        if mark.operation == POINTS_SEEN_NOTE and isinstance(mark.value, dict):
            names = [f"{name} ({count} times)" for name, count in mark.value.items()]
            return ", ".join(names[:_POINTS_SHOWN_MAX]) or "none of that family"
    return ""
