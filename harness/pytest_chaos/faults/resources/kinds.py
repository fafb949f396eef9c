"""The faults ``limit-files``, ``-processes``, ``-file-size`` and their like, ``starve``, ``crowd``.

A bound is in force once the kernel has it. The fault has fired once the agent felt it: a call of it
failed by the bound, or it was killed for its memory. So an agent that stands still at the time goes
on as soon as the bound is in force.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import TIME_S_MAX, close_matches, fault_problems
from pytest_chaos.model.values import Fault, Now
from pytest_chaos.model.verdict import NOT_SEEN
from pytest_chaos.resources import crowder, limits, standing, starver, witness
from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import Json, When
    from pytest_chaos.runtime.agent import Agent

PREFIX: Final = "limit-"
BYTES_MAX: Final = 1 << 50
_WITNESS: Final = "pytest_chaos.resources.witness:watch"
_STARVER: Final = "pytest_chaos.resources.starver:starve"
_CROWDER: Final = "pytest_chaos.resources.crowder:crowd"
_DURATION: Final = Parameter(float, high=TIME_S_MAX, default=None, may_be_none=True)
_MEGABYTE: Final = 1_000_000


def limit(agent: str, what: str, when: When | None = None, *, most: int, duration_s: float | None = None) -> Fault:
    """Plan that a running agent may have at most so much of something from this time on.

    ``files``: descriptors; the next one is refused with EMFILE. ``processes``: of its user, EAGAIN.
    ``file-size``: bytes of a file that it writes, EFBIG, and SIGXFSZ for a program that does not
    ignore it. ``address-space``: bytes, ENOMEM. ``memory``: resident bytes; above them it is
    killed, as by the kernel when memory is out. It has fired once the agent felt it.

    Bounds hold for what the agent starts later, too, but for ``memory``. With ``duration_s`` they
    are lifted so long after they were felt.

    >>> limit("worker", "files", most=16).kind
    'limit-files'

    Raises UsageError for another word, or a bound that cannot be.
    """
    known = {each.kind.removeprefix(PREFIX): each for each in (*BOUNDED, LimitMemory)}
    if what not in known:
        close = next(iter(close_matches(str(what), known, n=1)), "")
        fix = f"Did you mean {close!r}?" if close else "See docs/how-to/resources.md"
        msg = f"what is limited must be one of {', '.join(sorted(known))}; got {what!r:.200}. {fix}"
        raise UsageError(msg)
    parameters: dict[str, Json] = {"most": most}
    if duration_s is not None:
        parameters["duration_s"] = duration_s
    fault = Fault(kind=known[what].kind, agent=agent, when=when or Now(), parameters=parameters)
    for problem in fault_problems(fault, known[what]()):
        raise UsageError(problem)
    return fault


def unlimit(agent: str, when: When | None = None) -> Fault:
    """Plan that an agent has the bounds again that it had before the plan lowered them.

    >>> from pytest_chaos import after_mark
    >>> unlimit("worker", after_mark("refused", kind="note")).kind
    'limit-heal'
    """
    return Fault(kind=LimitHeal.kind, agent=agent, when=when or Now())


def starve(agent: str, when: When | None = None, *, duration_s: float, share: float = 0.1) -> Fault:
    """Plan that an agent runs only for a share of the time, as on a machine that is too busy.

    >>> starve("worker", duration_s=2.0).parameters
    {'duration_s': 2.0, 'share': 0.1}
    """
    parameters: dict[str, Json] = {"duration_s": duration_s, "share": share}
    return Fault(kind=Starve.kind, agent=agent, when=when or Now(), parameters=parameters)


def crowd(agent: str, when: When | None = None, *, duration_s: float, spinners: int = 4) -> Fault:
    """Plan that an agent shares one processor with processes that never wait.

    After ``duration_s`` seconds it may use the processors again that it could use before.

    >>> crowd("worker", duration_s=2.0, spinners=8).parameters
    {'duration_s': 2.0, 'spinners': 8}
    """
    parameters: dict[str, Json] = {"duration_s": duration_s, "spinners": spinners}
    return Fault(kind=Crowd.kind, agent=agent, when=when or Now(), parameters=parameters)


class _Bounded(FaultKind):
    """A bound of the kernel on a live process. A witness sees the call that fails by it."""

    parameters = {"most": Parameter(int, 0, BYTES_MAX), "duration_s": _DURATION}

    @property
    def what(self) -> str:
        """The word of plans."""
        return self.kind.removeprefix(PREFIX)

    def fire(self, firing: Firing) -> None:
        """Start the witness: the bound is set once it looks."""
        if problem := limits.why_unbounded(firing.agent.pid, self.what):
            firing.problem = problem
            return
        kwargs: dict[str, Json] = {"pid": firing.agent.pid, "what": self.what}
        firing.helper = firing.context.start_helper("witness", _WITNESS, kwargs)
        standing.witnesses[firing.agent] = firing.helper

    def evidence(self, firing: Firing) -> str | None:
        """Set the bound once the witness looks; then return which call failed by it."""
        if firing.helper is None:
            return None
        marks = {mark.operation: mark for mark in firing.helper.marks}
        if not firing.seen and witness.READY in marks and not firing.problem:
            try:
                firing.seen = limits.lower(firing.agent, self.what, firing.fault.parameters["most"])
            except ProcessLookupError:
                return None
            except PermissionError:
                firing.problem = "the bounds of a process of another user need CAP_SYS_RESOURCE: run it as your own"
            except (ValueError, OSError) as error:
                firing.problem = str(error)
            firing.let_go_on()
        if firing.seen and witness.FELT in marks:
            limits.felt.add(firing.agent)
            return f"{firing.seen}; {marks[witness.FELT].value}"
        if firing.seen and firing.agent.ended is not None:  # its marks were read before
            ended = f"no call of it failed by that before it ended ({firing.agent.ended})"
            firing.problem = f"{NOT_SEEN}: {firing.seen}, and {ended}"
        return None

    def follow_up(self, firing: Firing) -> tuple[float, str] | None:
        """Lift the bound after its duration."""
        duration_s = firing.fault.parameters.get("duration_s")
        return None if duration_s is None else (duration_s, LimitHeal.kind)


class LimitFiles(_Bounded):
    """No further descriptors."""

    kind = "limit-files"


class LimitProcesses(_Bounded):
    """No further processes and threads."""

    kind = "limit-processes"


class LimitFileSize(_Bounded):
    """Files that do not grow further."""

    kind = "limit-file-size"


class LimitAddressSpace(_Bounded):
    """No further memory is given."""

    kind = "limit-address-space"


class LimitMemory(FaultKind):
    """A process that is killed for its memory, as by the kernel when memory is out."""

    kind = "limit-memory"
    parameters = {"most": Parameter(int, 1, BYTES_MAX)}

    def fire(self, firing: Firing) -> None:
        """Begin to watch the resident memory of the agent."""
        firing.kept = limits.memory(firing.agent.pid, "VmHWM")
        firing.let_go_on()

    def evidence(self, firing: Firing) -> str | None:
        """Kill the agent once its memory is above the bound; see it ended by that."""
        agent, most = firing.agent, firing.fault.parameters["most"]
        if firing.seen:
            killed = agent.ended is not None and agent.ended.signal == signal.SIGKILL
            return f"{firing.seen}; process ended by signal 9" if killed else None
        if not agent.running:
            return None
        peak = limits.memory(agent.pid, "VmHWM")
        used = max(limits.memory(agent.pid, "VmRSS"), peak if peak > firing.kept else 0)
        if used > most:
            how = "RSS was watched and SIGKILL sent: no cgroup of its own bounds it"
            firing.seen = f"it had {used / _MEGABYTE:,.1f} MB, more than {most / _MEGABYTE:,.1f} MB ({how})"
            agent.send_signal(signal.SIGKILL)
        return None


class LimitHeal(FaultKind):
    """The bounds of an agent are again what they were."""

    kind = "limit-heal"

    def can_hit(self, agent: Agent) -> bool:
        """Whether a bound was felt: lifted before, it would not have happened."""
        return agent.running and agent in limits.felt

    def fire(self, firing: Firing) -> None:
        """Lift the bounds."""
        firing.seen = "; ".join(limits.lift(firing.agent))
        if not firing.seen:
            firing.problem = "there was no bound to lift: none of a plan was in force"

    def evidence(self, firing: Firing) -> str | None:
        """Return the bounds that the kernel has now."""
        return firing.seen or None


class _Taken(FaultKind):
    """The processor is taken from an agent, by a process that says once it was felt."""

    helper: str
    target: str
    felt: str

    def fire(self, firing: Firing) -> None:
        """Start the process that takes it; the agent goes on, as it has to run for that."""
        process = processes.read(firing.agent.pid)
        if process is None:
            firing.problem = f"agent {firing.agent.name!r} had ended"
            return
        defaults = {name: each.default for name, each in self.parameters.items()}
        kwargs = {"pid": process.pid, "start_ticks": process.start_ticks, **defaults, **firing.fault.parameters}
        firing.let_go_on()
        firing.helper = firing.context.start_helper(self.helper, self.target, kwargs)

    def evidence(self, firing: Firing) -> str | None:
        """Return what that process has seen."""
        marks = firing.helper.marks if firing.helper is not None else []
        return next((str(mark.value) for mark in marks if mark.operation == self.felt), None)


class Starve(_Taken):
    """A process that runs only for a share of the time."""

    kind = "starve"
    parameters = {
        "duration_s": Parameter(float, 0.05, TIME_S_MAX),
        "share": Parameter(float, 0.01, 0.9, default=0.1),
    }
    helper, target, felt = "starver", _STARVER, starver.STARVED


class Crowd(_Taken):
    """A process that has one processor, together with others that spin on it."""

    kind = "crowd"
    parameters = {
        "duration_s": Parameter(float, 0.05, TIME_S_MAX),
        "spinners": Parameter(int, 1, crowder.SPINNERS_MAX, default=4),
    }
    helper, target, felt = "crowder", _CROWDER, crowder.CROWDED


BOUNDED: Final = (LimitFiles, LimitProcesses, LimitFileSize, LimitAddressSpace)
