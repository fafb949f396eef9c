"""The faults ``clock-jump``, ``-drift``, ``-freeze``, ``-heal`` and ``clock-uptime``.

They move the wall clock that an agent sees, with all that it starts: other processes, and the
kernel, keep theirs. The monotonic clocks go on. docs/how-to/clocks.md says what does not move.
"""

from __future__ import annotations

import abc
import datetime
import os
import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.clocks import process
from pytest_chaos.clocks.cell import JUMP_S_MAX, RATE_MAX, Motion
from pytest_chaos.clocks.tracee import BusyThreadError
from pytest_chaos.clocks.uptime import started_by_s
from pytest_chaos.errors import ClockNotMoved
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import TIME_S_MAX
from pytest_chaos.model.values import Fault, Now
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.clocks.cell import ClockCell
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import Json, When
    from pytest_chaos.runtime.agent import Agent

EVERYONE: Final = "everyone"
_EVERYONE: Final = Parameter(bool, default=False)
_SECOND_NS: Final = 1_000_000_000
UPTIME_S_MAX: Final = 1_000_000_000
_PATIENCE_S: Final = 0.2
"""How long one look waits for a thread: other faults are due meanwhile."""
_NOT_MOVED: Final = (
    "monotonic clocks, timers and waits for a moment of the wall clock, and times of files keep the machine's time"
)
_UNWATCHED: Final = "; programs that it starts from now on, and reads by the system call itself, are not moved"


def clock_jump(agent: str, when: When | None = None, *, by_s: float, everyone: bool = False) -> Fault:
    """Plan that the wall clock of an agent, and of all that it starts, jumps by ``by_s`` seconds.

    A negative number sets it back. With ``everyone``, the clocks of all agents of the run jump, and
    agents that are started later have the new time, too; ``agent`` is then the one whose time
    ``when`` is.

    >>> from pytest_chaos import at_point
    >>> clock_jump("worker", at_point("app.read"), by_s=-86400).parameters
    {'by_s': -86400}
    """
    return _planned(ClockJump.kind, agent, when, {"by_s": by_s}, everyone=everyone)


def clock_drift(agent: str, when: When | None = None, *, rate: float, everyone: bool = False) -> Fault:
    """Plan that the wall clock runs ``rate`` times as fast as the machine's: 2.0, or 0.5.

    >>> clock_drift("worker", rate=2.0).kind
    'clock-drift'
    """
    return _planned(ClockDrift.kind, agent, when, {"rate": rate}, everyone=everyone)


def clock_freeze(
    agent: str, when: When | None = None, *, duration_s: float | None = None, everyone: bool = False
) -> Fault:
    """Plan that the wall clock stands still; after ``duration_s`` seconds it is healed.

    >>> clock_freeze("worker", duration_s=1.5).parameters
    {'duration_s': 1.5}
    """
    parameters = {} if duration_s is None else {"duration_s": duration_s}
    return _planned(ClockFreeze.kind, agent, when, parameters, everyone=everyone)


def clock_heal(agent: str, when: When | None = None, *, everyone: bool = False) -> Fault:
    """Plan that the wall clock shows the machine's time again, as after a step of NTP.

    >>> clock_heal("worker").kind
    'clock-heal'
    """
    return _planned(ClockHeal.kind, agent, when, {}, everyone=everyone)


def clock_uptime(agent: str, *, by_s: int) -> Fault:
    """Plan that the monotonic clocks of an agent start ``by_s`` seconds ahead, as after a long run.

    It holds from the agent's start on, also for all that it starts. At 2**32 milliseconds, 49 days,
    counters of 32 bits are full. Needs time namespaces.

    >>> clock_uptime("worker", by_s=50 * 86400).parameters
    {'by_s': 4320000}
    """
    return Fault(kind=ClockUptime.kind, agent=agent, when=Now(), parameters={"by_s": by_s})


def _planned(kind: str, agent: str, when: When | None, parameters: dict[str, Json], *, everyone: bool) -> Fault:
    if everyone:
        parameters = {**parameters, EVERYONE: True}
    return Fault(kind=kind, agent=agent, when=when or Now(), parameters=parameters)


class _ClockFault(FaultKind):
    """A change of the motion of clocks. Its effect is there at once, and so is its receipt."""

    moves_clock = True

    def fire(self, firing: Firing) -> None:
        """Move the clocks; ask each process in its own vDSO what it shows, before and after."""
        try:
            if firing.kept is None:
                firing.kept = self._move(firing)
            firing.seen = _seen(firing)
        except BusyThreadError as error:  # its only thread is held in a call, say: asked again when it goes on
            firing.problem = str(error) if error.is_refused else ""
        except (ClockNotMoved, OSError) as error:
            firing.problem = str(error)

    def evidence(self, firing: Firing) -> str | None:
        """Return what its own clock showed."""
        if not firing.seen and not firing.problem:
            self.fire(firing)
        return firing.seen or None

    @abc.abstractmethod
    def motion(self, fault: Fault, before: Motion, *, now_ns: int) -> Motion:
        """Return how a clock is moved from now on. Raises ClockNotMoved."""

    def _move(self, firing: Firing) -> list[_Moved]:
        """Prepare the agents and move their clocks, all at one moment; return them."""
        clocks, is_everyone = firing.context.clocks, bool(firing.fault.parameters.get(EVERYONE))
        others = [agent for agent in firing.context.all_agents if agent is not firing.agent] if is_everyone else []
        moved = [_Moved(agent, clocks.cell(agent.name)) for agent in (firing.agent, *others) if agent.running]
        moved = [each for each in moved if each.prepare() or each.agent is firing.agent]
        now_ns = time.time_ns()
        motions = [self.motion(firing.fault, each.cell.motion, now_ns=now_ns) for each in moved]
        if all(each.cell.motion == motion for each, motion in zip(moved, motions, strict=True)):
            msg = "it changes nothing: the clock is as it would be afterwards"
            raise ClockNotMoved(msg)
        for each, motion in zip(moved, motions, strict=True):
            each.cell.move(motion)
        if is_everyone:
            clocks.everyones = motions[0]
        firing.context.note("clock", _NOT_MOVED)
        return moved


def _seen(firing: Firing) -> str:
    """Return what the clocks of the agents show now. Raises ClockNotMoved."""
    answered = firing.context.clocks.answered
    seen = {each.agent.name: each.told(is_watched=each.agent.name in answered) for each in firing.kept}
    return "; ".join(text if len(seen) == 1 else f"{name}: {text}" for name, text in seen.items())


class _Moved:
    """One agent whose clock is moved, with all that it has started."""

    def __init__(self, agent: Agent, cell: ClockCell) -> None:
        self.agent = agent
        self.cell = cell
        self._pids = [agent.pid]
        self._unmoved: list[str] = []
        self._before_ns = 0

    def prepare(self) -> bool:
        """Patch what is not patched, and read its clock; return whether it lives.

        Raises ClockNotMoved.
        """
        for each in processes.descendants(self.agent.pid):
            if each.alive:
                try:
                    process.patch(each.pid, str(self.cell.path), patience_s=_PATIENCE_S)
                    self._pids.append(each.pid)
                except BusyThreadError:
                    raise
                except ClockNotMoved as error:
                    self._unmoved.append(f"not moved: {each.name} ({error})")
                except ProcessLookupError:
                    continue
        try:
            process.patch(self.agent.pid, str(self.cell.path), patience_s=_PATIENCE_S)
            self._before_ns = self._read(self.agent.pid).shown_ns
        except ProcessLookupError:
            return False
        return True

    def told(self, *, is_watched: bool) -> str:
        """Return what the clock of the agent shows now, compared with what it must show."""
        motion = self.cell.motion
        try:
            after = self._read(self.agent.pid)
        except ProcessLookupError:
            msg = f"agent {self.agent.name!r} ended before its clock was read"
            raise ClockNotMoved(msg) from None
        if not motion.at(after.before_ns) <= after.shown_ns <= motion.at(after.after_ns):
            msg = f"its clock must show {_time(motion.at(after.after_ns))}; it shows {_time(after.shown_ns)}"
            raise ClockNotMoved(msg)
        ahead_s = (after.shown_ns - after.after_ns) / _SECOND_NS
        rate = motion.rate / (1 << 32)
        speed = "" if rate == 1 else ", and stands still" if rate == 0 else f", and runs {rate:g} times as fast"
        others = len(self._pids) - 1
        children = f"; with it {others} {'process' if others == 1 else 'processes'} of its own" if others else ""
        raw = "" if is_watched else _UNWATCHED
        return (
            f"its clock showed {_time(self._before_ns)} and then {_time(after.shown_ns)}, "
            f"{ahead_s:+,.3f} s from the machine's{speed}{children}{raw}"
            + "".join(f"; {text}" for text in self._unmoved)
        )

    @staticmethod
    def _read(pid: int) -> process.ClockReading:
        return process.read_clock(pid, time.time_ns, patience_s=_PATIENCE_S)


class ClockJump(_ClockFault):
    """The clock shows another time, and goes on from there."""

    kind = "clock-jump"
    parameters = {"by_s": Parameter(float, -JUMP_S_MAX, JUMP_S_MAX), EVERYONE: _EVERYONE}

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, and of a jump that is none."""
        yield from super().problems(fault)
        if fault.parameters.get("by_s") == 0:
            yield "by_s must be another number than 0; got 0. Give the seconds of the jump, negative to set it back"

    def motion(self, fault: Fault, before: Motion, *, now_ns: int) -> Motion:
        """Return the motion after the jump."""
        return before.jumped(fault.parameters["by_s"], now_ns=now_ns)


class ClockDrift(_ClockFault):
    """The clock runs at another speed."""

    kind = "clock-drift"
    parameters = {"rate": Parameter(float, 0.001, RATE_MAX), EVERYONE: _EVERYONE}

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, and of the machine's own speed."""
        yield from super().problems(fault)
        if fault.parameters.get("rate") == 1:
            yield "rate must be another number than 1; got 1. Plan clock_heal(...) to end a drift"

    def motion(self, fault: Fault, before: Motion, *, now_ns: int) -> Motion:
        """Return the motion at this speed."""
        return before.running(fault.parameters["rate"], now_ns=now_ns)


class ClockFreeze(_ClockFault):
    """The clock stands still."""

    kind = "clock-freeze"
    parameters = {
        "duration_s": Parameter(float, high=TIME_S_MAX, default=None, may_be_none=True),
        EVERYONE: _EVERYONE,
    }

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters: a duration is of one agent."""
        yield from super().problems(fault)
        if fault.parameters.get(EVERYONE) and fault.parameters.get("duration_s") is not None:
            yield "duration_s must be left out for everyone; got both. Plan clock_heal(..., everyone=True) as well"

    def motion(self, fault: Fault, before: Motion, *, now_ns: int) -> Motion:  # noqa: ARG002 - as the others
        """Return the motion of a clock that stands."""
        return before if before.rate == 0 else before.running(0.0, now_ns=now_ns)

    def follow_up(self, firing: Firing) -> tuple[float, str] | None:
        """Heal it after its duration."""
        duration_s = firing.fault.parameters.get("duration_s")
        return None if duration_s is None else (duration_s, ClockHeal.kind)


class ClockHeal(_ClockFault):
    """The clock shows the machine's time again."""

    kind = "clock-heal"
    parameters = {EVERYONE: _EVERYONE}

    def motion(self, fault: Fault, before: Motion, *, now_ns: int) -> Motion:  # noqa: ARG002 - as the others
        """Return the motion of the machine's clock."""
        return before.healed() if before.is_moved else before


class ClockUptime(FaultKind):
    """The monotonic clocks start elsewhere."""

    kind = "clock-uptime"
    parameters = {"by_s": Parameter(int, 1, UPTIME_S_MAX)}
    takes = frozenset({Now})
    advice = "Monotonic clocks cannot be set later: leave the time out."

    def uptime_s(self, fault: Fault) -> int:
        """Return by how much."""
        by_s: int = fault.parameters["by_s"]
        return by_s

    def fire(self, firing: Firing) -> None:
        """Look whether the agent was started so: nothing else can be done to it now."""
        refused = [str(mark.value) for mark in firing.agent.marks if mark.operation == Note.UPTIME_REFUSED]
        if refused:
            firing.problem = f"its monotonic clocks could not start elsewhere: {refused[0]}"
        elif firing.place < 0:
            firing.problem = "the monotonic clocks of a process cannot be set: plan it before the agent starts"

    def evidence(self, firing: Firing) -> str | None:
        """Read the offset back from the kernel."""
        by_s = started_by_s(firing.agent.pid)
        if by_s != firing.fault.parameters["by_s"]:
            return None
        namespace = os.readlink(f"/proc/{firing.agent.pid}/ns/time")
        return f"its monotonic clocks are {by_s:,} s ahead of the machine's, in {namespace}"


def _time(shown_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(shown_ns // _SECOND_NS, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{shown_ns % _SECOND_NS // 1_000_000:03}Z"
