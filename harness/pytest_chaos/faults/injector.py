"""The injector: carries out a plan while the test waits, and hands out a receipt for every fault.

It has no thread: each wait of the run pumps it. A planned fault is pending until its time comes,
then fired until it was seen to have happened, then done. A fault that is not done when the run ends
gets a receipt that says it did not fire, and why.

A Python agent stops at a planned point or mark by itself. It writes a note, and then sends itself
either the signal that is the fault, or SIGSTOP: then it stands at the point until the injector has
fired the fault and seen it happen.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import AgentError, ChaosError
from pytest_chaos.faults.kind import Firing
from pytest_chaos.faults.proxy import DELIVERY_NOTE
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import describe_when, time_agent
from pytest_chaos.model.values import (
    AfterMark,
    AtDelivery,
    AtMoment,
    AtPoint,
    AtStep,
    Fault,
    Mark,
    MarkKind,
    Now,
    Receipt,
)
from pytest_chaos.model.verdict import FAULT_RAISED, NOT_SEEN
from pytest_chaos.resources.standing import stopped
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.faults.kind import FaultContext, FaultKind
    from pytest_chaos.model.values import When
    from pytest_chaos.runtime.agent import Agent
    from pytest_chaos.runtime.child import Trigger

_POINTS_SHOWN_MAX: Final = 12
_NO_POINT: Final = "none with that prefix"
_CLOSE_LENGTH_MIN: Final = 4
_ENDING: Final = frozenset({"gone", "Z", "X"})
"""States of a process whose exit status is about to come."""
_ANY_FAULT_NOTE: Final = AfterMark(kind=MarkKind.NOTE, operation=Note.FAULT)


class _Pending:
    """One fault on its way: not yet fired, fired, seen."""

    def __init__(self, place: int, fault: Fault) -> None:
        self.place = place
        self.fault = fault
        self.firing: Firing | None = None
        self.done = False

    @property
    def kind(self) -> FaultKind:
        return REGISTRY[self.fault.kind]

    @property
    def at_delivery(self) -> bool:
        return isinstance(self.fault.when, AtDelivery)

    @property
    def of(self) -> str:
        """The name of the agent whose time it is: the fault's own, or another one."""
        return time_agent(self.fault)

    def stops(self, agent: Agent) -> bool:
        """Whether the agent is stopped at the planned time: at a step, or, in Python, by itself."""
        when = self.fault.when
        is_within = agent.fires_from_within and isinstance(when, AtPoint | AfterMark | AtDelivery)
        return isinstance(when, AtStep) or is_within

    @property
    def by_signal(self) -> signal.Signals | None:
        """The signal that is the fault, where the agent whose time it is gets it there at once."""
        return self.kind.signal_of(self.fault) if self.of == self.fault.agent else None


class Injector:
    """Watches the agents of one run and fires their planned faults.

    ``agents`` maps names to the current incarnation; ``on_receipt`` gets each receipt as soon as it
    is known; ``context`` is the run, for faults that start processes; ``order`` counts the marks so
    far.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        on_receipt: Callable[[Receipt], None],
        context: FaultContext,
        order: Callable[[], int],
    ) -> None:
        self._agents = agents
        self._on_receipt = on_receipt
        self._context = context
        self._order = order
        self._pending: list[_Pending] = []
        self._follow_ups: list[tuple[float, Fault, Agent]] = []
        self._busy = False

    def load(self, faults: tuple[Fault, ...]) -> None:
        """Take over the faults of the run's plan."""
        self._pending = [_Pending(place, fault) for place, fault in enumerate(faults)]

    def triggers(self, name: str, *, by_itself: bool) -> list[Trigger]:
        """Return when an agent of this name has to stop, and by which signal.

        At points and marks a Python agent stops ``by_itself``, and no other one.
        """
        return [
            _trigger(pending, pending.fault.when)
            for pending in self._pending
            if pending.of == name and pending.firing is None and not pending.done
            if isinstance(pending.fault.when, AtStep if not by_itself else AtPoint | AfterMark | AtStep)
        ]

    def moves_clock(self, name: str) -> bool:
        """Whether a planned fault moves the clock of an agent of this name."""
        faults = [pending.fault for pending in self._pending if pending.kind.moves_clock]
        return any(fault.agent == name or fault.parameters.get("everyone") for fault in faults)

    def cuts_network(self, name: str) -> bool:
        """Whether a planned fault may answer network calls of an agent of this name."""
        return any(pending.kind.cuts_network(pending.fault, name) for pending in self._pending)

    def clocks(self, name: str, cell: str) -> dict[str, str | int]:
        """Return what the order for an agent says of its clocks."""
        of_it = [pending for pending in self._pending if pending.fault.agent == name]
        return {"clock": cell, "uptime_s": sum(pending.kind.uptime_s(pending.fault) for pending in of_it)}

    def fire(self, fault: Fault, agent: Agent, *, wait: Callable[[Callable[[], bool], str], None]) -> Receipt:
        """Fire a fault at once, wait until it was seen, and return its receipt."""
        pending = _Pending(-1, fault)
        firing = self._start(pending, Firing(fault, agent, self._context))
        what = f"evidence that {fault.kind} of {agent.name!r} happened"
        wait(lambda: bool(firing.problem) or pending.kind.evidence(firing) is not None, what)
        if firing.problem:
            msg = f"{fault.kind} of agent {agent.name!r} did not happen: {firing.problem}"
            raise AgentError(msg)
        return self._finish(pending, firing, pending.kind.evidence(firing) or "")

    @property
    def waiting(self) -> bool:
        """Whether a planned fault, or the end of one, is still to come."""
        return bool(self._follow_ups) or any(not pending.done for pending in self._pending)

    def pump(self) -> None:
        """Fire due faults and look for the evidence of fired ones."""
        if self._busy:  # starting an agent again pumps, too
            return
        self._busy = True
        try:
            self._pump(time.monotonic())
        finally:
            self._busy = False

    def close(self) -> None:
        """Hand out a receipt for each fault that never fired, with the reason if it is known."""
        self.pump()
        for pending in self._pending:
            if not pending.done:
                self._finish(pending, None, self._why_not(pending), fired=False)

    def _pump(self, now_s: float) -> None:
        for pending in self._pending:
            if pending.done:
                continue
            try:
                evidence = self._evidence(pending, now_s)
            except ChaosError:
                raise
            except Exception as error:  # noqa: BLE001 - a fault of another distribution: if it raises, it did not fire
                self._finish(pending, pending.firing, _raised(error), fired=False)
                continue
            firing = pending.firing
            if firing is None:
                continue
            if evidence:
                self._finish(pending, firing, evidence)
            elif problem := firing.problem or _helper_problem(firing):
                self._finish(pending, firing, problem, fired=False)
        for entry in [entry for entry in self._follow_ups if entry[0] <= now_s]:
            self._follow_ups.remove(entry)
            _, fault, agent = entry
            after = _Pending(-1, fault)
            self._pending.append(after)
            self._start(after, Firing(fault, agent, self._context))

    def _evidence(self, pending: _Pending, now_s: float) -> str | None:
        """Fire the fault if it is due, and return the evidence that it happened."""
        firing = pending.firing
        agent, watched = self._agents.get(pending.fault.agent), self._agents.get(pending.of)
        if firing is None and agent is not None and watched is not None:
            firing = self._start_if_due(pending, agent, watched, now_s)
        try:
            return None if firing is None else pending.kind.evidence(firing)
        except OSError:
            if firing is not None and firing.agent.state in _ENDING:
                return None  # it looked at a process that has just ended; asked again, it is told the exit status
            raise

    def _start_if_due(self, pending: _Pending, agent: Agent, watched: Agent, now_s: float) -> Firing | None:
        """Fire a fault at an agent if its time has come in the life of the one that is watched."""
        if agent.pid == 0 or watched.pid == 0:  # it is being started
            return None
        if not pending.stops(watched):
            is_due = _is_due(pending, agent, watched, now_s) and not self._holds(agent)
            firing = Firing(pending.fault, agent, self._context, pending.place)
            return self._start(pending, firing) if is_due else None
        note = _fault_note(watched, pending.place)
        if note is None:
            return None
        if pending.at_delivery or pending.by_signal is not None or pending.kind.holds_call:
            if pending.by_signal is not None:
                agent.signals_sent.add(pending.by_signal)
            pending.firing = Firing(pending.fault, agent, self._context, pending.place, stopped=watched, note=note)
            return pending.firing
        # SIGCONT must not come before the SIGSTOP that the process gets after the note.
        process = processes.read(note.pid)
        if process is None or not stopped(watched, note.pid, process.state):
            return None
        firing = Firing(pending.fault, agent, self._context, pending.place, note.pid, watched, note)
        if watched is agent or pending.kind.can_hit(agent):
            return self._start(pending, firing)
        if agent.ended is not None:  # nothing can come any more, and the other one stands there
            why = f"agent {agent.name!r} ended ({agent.ended}) before it could be hit; agent {watched.name!r} waited"
            self._finish(pending, firing, why, fired=False)
        return None

    def _holds(self, agent: Agent) -> bool:
        """Whether the agent stands at a point for a fault: other faults wait until it goes on."""
        firings = (pending.firing for pending in self._pending if not pending.done)
        return any(firing is not None and firing.held_pid != 0 and firing.stopped is agent for firing in firings)

    @staticmethod
    def _start(pending: _Pending, firing: Firing) -> Firing:
        pending.firing = firing
        pending.kind.fire(firing)
        return firing

    def _finish(self, pending: _Pending, firing: Firing | None, evidence: str, *, fired: bool = True) -> Receipt:
        pending.done = True
        fault = pending.fault
        if firing is not None and firing.note is not None and isinstance(fault.when, AtStep | AtPoint):
            at = firing.note.value.get("at", "") if isinstance(firing.note.value, dict) else ""
            if at and at != getattr(fault.when, "point", ""):
                evidence += f" (pid {firing.note.pid} at {at})"
        receipt = Receipt(
            kind=fault.kind,
            agent=fault.agent,
            when=describe_when(fault.when),
            fired=fired,
            evidence=evidence,
            fault=pending.place if pending.place >= 0 else None,
            order=self._order() if fired else None,
        )
        self._on_receipt(receipt)
        if firing is not None and fired:
            for each in firing.victims:
                whose = f"{fault.agent} > {each.name} (pid {each.pid})"
                gone = "SIGKILL was sent to it, and the process is gone"
                self._on_receipt(msgspec.structs.replace(receipt, agent=whose, evidence=gone))
        if firing is not None:
            firing.let_go_on()
            if fired and (follow_up := pending.kind.follow_up(firing)) is not None:
                delay_s, kind = follow_up
                end = Fault(kind=kind, agent=fault.agent, when=fault.when)
                self._follow_ups.append((time.monotonic() + delay_s, end, firing.agent))
        return receipt

    def _why_not(self, pending: _Pending) -> str:
        for name in (pending.of, pending.fault.agent):
            if name not in self._agents:
                names = ", ".join(sorted(self._agents)) or "none at all"
                return f"no agent called {name!r} was started (there were: {names})"
        if pending.firing is not None and pending.firing.waits_for:
            return pending.firing.waits_for
        if pending.firing is not None:
            return f"{NOT_SEEN}; the agent {_condition(self._agents[pending.fault.agent])}"
        agent = self._agents[pending.of]
        if _fault_note(agent, pending.place) is not None and pending.of != pending.fault.agent:
            other = self._agents[pending.fault.agent]
            came = f"agent {agent.name!r} came to that, and agent {other.name!r} could not be hit"
            return f"{came}: it {_condition(other)}"
        if pending.at_delivery:
            return f"of {_deliveries(agent.marks)} that came, none was struck by it; the proxy {_condition(agent)}"
        if isinstance(pending.fault.when, AtPoint) and not agent.fires_from_within:
            return "a named crash point exists only in a Python agent (module:function)"
        if isinstance(pending.fault.when, AtStep) and (problem := self._unwatched(agent)):
            return problem
        passed = self._passed_instead(pending.fault.when, agent)
        if agent.running:
            return f"the run ended before it came to that; agent {agent.name!r} {_condition(agent)}{passed}"
        return f"agent {agent.name!r} ended ({agent.ended}) before it came to that{passed}"

    def _unwatched(self, agent: Agent) -> str:
        """Return why the durable steps of an agent could not be watched, or nothing."""
        refused = [str(mark.value) for mark in agent.marks if mark.operation == Note.UNWATCHED]
        return self._context.steps.problem or "".join(refused[:1])

    def _passed_instead(self, when: When, agent: Agent) -> str:
        """Return the points or marks that the agent passed, with names close to the planned one."""
        if isinstance(when, AtStep):
            steps = self._context.steps_made(agent.name)
            like = [step for step in steps if step.startswith(f"{when.step} ")] or steps
            shown = ", ".join(like[:_POINTS_SHOWN_MAX]) or "none in the directory of the run"
            return f"; steps it came to: {shown}"
        if isinstance(when, AtPoint):
            return _points_instead(when, agent, self._context.points_passed(agent.name))
        after = when if isinstance(when, AfterMark) else when.after if isinstance(when, AtMoment) else None
        return _marks_instead(after, agent) if after is not None else ""


def _trigger(pending: _Pending, when: AtPoint | AfterMark | AtStep) -> Trigger:
    trigger: Trigger = {
        "fault": pending.place,
        "kind": pending.fault.kind,
        "signal": int(pending.by_signal or signal.SIGSTOP),
        "point": None,
        "step": None,
        "mark": None,
        "path": "",
        "count": 1,
    }
    if isinstance(when, AtPoint):
        return {**trigger, "point": when.point, "path": when.path, "count": when.occurrence}
    if isinstance(when, AtStep):
        number = 0 if pending.kind.holds_call else trigger["signal"]
        return {**trigger, "step": when.step, "path": when.path, "count": when.occurrence, "signal": number}
    return {**trigger, "mark": (str(when.kind), when.operation), "count": when.count}


def _is_due(pending: _Pending, agent: Agent, watched: Agent, now_s: float) -> bool:
    """Return whether the time of a fault that is fired from outside has come, and it can happen."""
    delay_s, since_s = 0.0, None
    match pending.fault.when:
        case Now():
            since_s = agent.started_s
        case AfterMark() as when:
            since_s = watched.mark_seen_s(when)
        case AtMoment(delay_s=delay_s, after=after):
            since_s = watched.started_s if after is None else watched.mark_seen_s(after)
    return since_s is not None and now_s >= since_s + delay_s and pending.kind.can_hit(agent)


def _fault_note(agent: Agent, place: int) -> Mark | None:
    """Return the agent's note that it came to the time of the fault at this place."""
    if agent.mark_seen_s(_ANY_FAULT_NOTE) is None:  # asked at every pump, and marks may be many
        return None
    notes = (mark for mark in agent.marks if mark.operation == Note.FAULT and mark.key == place)
    return next(notes, None)


def _raised(error: Exception) -> str:
    return f"{FAULT_RAISED} {type(error).__name__}: {error}"


def _helper_problem(firing: Firing) -> str:
    helper = firing.helper
    if helper is None or helper.running:
        return ""
    said = helper.output().strip().splitlines()
    last = f": {said[-1]}" if said else ""
    held = f"; agent {firing.agent.name!r} stood still meanwhile" if firing.held_pid else ""
    return f"its process {helper.name!r} ended ({helper.ended}) without doing it{last}{held}"


def _condition(agent: Agent) -> str:
    return f"still runs (state {agent.state})" if agent.running else f"has ended ({agent.ended})"


def _close_to(wanted: str, names: list[str]) -> str:
    import difflib  # only for a fault that did not fire

    close = difflib.get_close_matches(wanted, names, n=1)
    close += [name for name in names if len(name) >= _CLOSE_LENGTH_MIN and (name in wanted or wanted in name)][:1]
    return f"; did you mean {close[0]!r}?" if close else ""


def _points_instead(when: AtPoint, agent: Agent, names: list[str]) -> str:
    counted = _points_seen(agent.marks)
    if when.point in names:
        return f"; it passed {when.point} fewer than {when.occurrence} times" + (f": {counted}" if counted else "")
    related = [name for name in names if name.partition(".")[0] == when.point.partition(".")[0]]
    shown = counted if counted and counted != _NO_POINT else ", ".join((related or names)[:_POINTS_SHOWN_MAX])
    return (f"; points it passed: {shown}" if shown else "; it passed no point") + _close_to(when.point, names)


def _marks_instead(when: AfterMark, agent: Agent) -> str:
    counts = Counter((str(mark.kind), mark.operation) for mark in agent.marks if mark.operation not in set(Note))
    shown = ", ".join(f"{count} {kind} of {operation}" for (kind, operation), count in counts.items()) or "none"
    names = list(dict.fromkeys(operation for _, operation in counts))
    return f"; marks it wrote: {shown}" + ("" if when.operation in names else _close_to(when.operation, names))


def _deliveries(marks: list[Mark]) -> str:
    count = sum(mark.operation == DELIVERY_NOTE for mark in marks)
    return "1 delivery" if count == 1 else f"{count} deliveries"


def _points_seen(marks: list[Mark]) -> str:
    for mark in marks:
        if mark.operation == Note.POINTS_SEEN and isinstance(mark.value, dict):
            names = [f"{name} ({'once' if count == 1 else f'{count} times'})" for name, count in mark.value.items()]
            return ", ".join(names[:_POINTS_SHOWN_MAX]) or _NO_POINT
    return ""
