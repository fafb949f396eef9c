"""Sweeps: one fault at each of the points, or durable steps, that an agent comes to.

A test whose plan has :func:`at_every_point` is executed once without the fault. That run is a
survey: it finds the places that the agent comes to. Then the test is executed once for each of
them, with the fault there: a run of its own, with its own record, evidence pack and replay. The
room ``plugin`` does so (``plugin/sweeps.py``); here is what a sweep is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.hold import Hold, Release, release
from pytest_chaos.faults.pause import Pause, Resume, resume
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import describe_when, fault_problems
from pytest_chaos.model.values import AtPoint, AtStep, Fault, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Json, When

NOTE: Final = "sweep"
"""The note of a run's record that says which place of the sweep it is."""
NOTHING_FOUND: Final = "harness:nothing-to-sweep"
_ENDS: Final = {Pause.kind: resume, Hold.kind: release}
_ENDINGS: Final = frozenset({Resume.kind, Release.kind})
_SHOWN_MAX: Final = 12


def at_every_point(
    agent: str,
    fault: Callable[..., Fault],
    *,
    points: str = "",
    steps: str = "",
    until: When | None = None,
    sample: int | None = None,
    **parameters: Json,
) -> EveryPoint:
    """Plan a fault at every place that the agent comes to: the test is executed once for each.

    ``fault`` is ``pause``, ``kill``, ``hold_lock``, or one of yours; it gets ``parameters``.
    ``points`` is a pattern of named points (audit events of the program's own); each of these names
    that the agent passes is a place, at its first passing. ``steps`` is a pattern of paths: each
    durable step there is a place. The first execution is without the fault, and finds them; its
    plan is empty. ``until`` is when a pause ends, mostly a time of another agent. ``sample`` draws
    so many of the places from the seed; ``--chaos-all-points`` takes all.

    >>> from pytest_chaos import after_mark, pause
    >>> until = after_mark("done", agent="second")
    >>> sweep = at_every_point("first", pause, points="shop.*", until=until)
    >>> [fault.kind for fault in sweep.faults(AtPoint(point="shop.saved"))]
    ['pause', 'resume']

    Raises UsageError.
    """
    if not points and not steps:
        msg = (
            'a sweep must have points or steps; got neither. Give points="myapp.*", or steps="*" for all durable steps'
        )
        raise UsageError(msg)
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
        msg = f"sample must be a whole number from 1 on, or None for all; got {sample!r:.100}. Give such a number"
        raise UsageError(msg)
    sweep = EveryPoint(agent, fault, points, steps, until, sample, parameters)
    kinds: list[AtPoint | AtStep] = [
        *([AtPoint(point="any")] if points else []),
        *([AtStep(step="write")] if steps else []),
    ]
    for planned in itertools.chain.from_iterable(map(sweep.faults, kinds)):  # what is wrong is told here
        if until is not None and planned.kind not in {*_ENDS, *_ENDINGS}:
            msg = f"until must come with pause or hold, which end; got {planned.kind}. Leave until out"
            raise UsageError(msg)
        if planned.kind in REGISTRY:
            for problem in fault_problems(planned, REGISTRY[planned.kind]):
                raise UsageError(problem)
    return sweep


@dataclass(frozen=True)
class EveryPoint:
    """A sweep in a plan. See :func:`at_every_point`."""

    agent: str
    fault: Callable[..., Fault]
    points: str
    steps: str
    until: When | None
    sample: int | None
    parameters: Mapping[str, Json]

    def faults(self, when: AtPoint | AtStep) -> tuple[Fault, ...]:
        """Return the faults of one execution: the fault at this place, and what ends it."""
        try:
            fault: object = self.fault(self.agent, when, **self.parameters)
        except TypeError as error:  # it is no function, or takes other parameters
            fault = error
        if not isinstance(fault, Fault):
            got = f"{self.fault!r:.100}" + (f" ({fault})" if isinstance(fault, TypeError) else "")
            msg = f"the fault of a sweep must be a function such as pause or kill, with its parameters; got {got}"
            msg += ". Give the function, and do not call it"
            raise UsageError(msg)
        ends = [_ENDS[fault.kind](self.agent, self.until)] if self.until is not None and fault.kind in _ENDS else []
        return (fault, *ends)

    def places(self, seen: Collection[tuple[str, str, str]]) -> tuple[AtPoint | AtStep, ...]:
        """Return the places among what the agent came to: kind, name and path of each, in order."""
        found: dict[AtPoint | AtStep, None] = {}
        counts: dict[tuple[str, str], int] = {}
        for kind, name, path in seen:
            if kind == "point" and self.points and fnmatchcase(name, self.points):
                found.setdefault(AtPoint(point=name))
            elif kind == "step" and self.steps and _is_among(path, self.steps):
                count = counts[name, path] = counts.get((name, path), 0) + 1
                found.setdefault(AtStep(step=name, path=_escaped(path), occurrence=count))
        return tuple(found)

    def chosen(self, places: Sequence[AtPoint | AtStep], randomness: Stream, sample: int | None) -> list[SweepPlace]:
        """Return the places to try, numbered among all: a sample of them, in their order."""
        numbered = [SweepPlace(when, number, len(places)) for number, when in enumerate(places, start=1)]
        if sample is None or sample >= len(numbered):
            return numbered
        return sorted(randomness.sample(numbered, sample), key=lambda place: place.number)

    def nothing_found(self, seen: Collection[tuple[str, str, str]]) -> Finding:
        """Return the finding that the agent came to no such place."""
        wanted = " and ".join(
            f"{what} {pattern!r}" for what, pattern in (("point", self.points), ("step of", self.steps)) if pattern
        )
        names = list(dict.fromkeys(name if kind == "point" else f"{name} {path}" for kind, name, path in seen))
        shown = ", ".join(names[:_SHOWN_MAX]) or "nothing"
        text = f"agent {self.agent!r} came to no {wanted}, so nothing was swept; it came to {shown}"
        return Finding(signature=NOTHING_FOUND, text=text, kind="harness")


class SweepPlace(NamedTuple):
    """A place of a sweep: the time, and its number of how many there are."""

    when: AtPoint | AtStep
    number: int
    of: int

    def note(self) -> dict[str, Json]:
        """Return what the record of its run says of it."""
        return {"place": describe_when(self.when), "number": self.number, "of": self.of}


def _is_among(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _escaped(path: str) -> str:
    """Return a path as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
