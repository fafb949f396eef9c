"""The io family: at each step the program really gets an error; the state it leaves is judged.

A program may give up, with any exit code. It must not acknowledge an operation that failed, damage
earlier data, or hang.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.families.rerun import rebuilt_by_run
from pytest_chaos.explore.families.sites import planned, settle
from pytest_chaos.explore.judge import Judgement, StateTask, why_unended
from pytest_chaos.explore.report import CONFIRMED_BY_A_RUN, FamilyResult
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.source import InjectError
from pytest_chaos.trace.step import SYNCS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.session import Collector
    from pytest_chaos.trace.step import Step

TITLE: Final = "survives I/O errors"
_NEEDS_ROOM: Final = frozenset(
    {
        Action.CREATE,
        Action.CREATE_UNNAMED,
        Action.MAKE_FOLDER,
        Action.LINK,
        Action.SYMLINK,
        Action.RENAME,
        Action.ALLOCATE,
    }
)
_COPIES: Final = frozenset({"sendfile", "splice", "copy_file_range", "ioctl"})
"""Calls by which the kernel copies: a part of one cannot be done in its place."""
_CODE: Final = re.compile(r"io:(\d+):(E[A-Z]+|short)(\*?)(?:/(\d+))?")


class Trouble(NamedTuple):
    """An I/O error at a step. ``lasts``: all later calls fail, too, as with a full disk."""

    step: Step
    error: str
    lasts: bool = False
    short_bytes: int | None = None

    @property
    def code(self) -> str:
        """The code of the state that the error leaves: ``io:57:ENOSPC*``."""
        if self.short_bytes is not None:
            return f"io:{self.step.number}:short/{self.short_bytes}"
        return f"io:{self.step.number}:{self.error}{'*' if self.lasts else ''}"

    @property
    def directive(self) -> InjectError:
        """The directive to the step source."""
        times = None if self.lasts else 1
        return InjectError(number=self.step.number, error=self.error, times=times, short_bytes=self.short_bytes)

    @property
    def text(self) -> str:
        """The trouble in words."""
        return self.told("")

    def told(self, step: str) -> str:
        """Return the trouble in words, of the step that really met it, if that was another one."""
        where = f"step {step or self.step}"
        if self.short_bytes is not None:
            return f"{where} was a short write of {self.short_bytes} bytes"
        return f"{where} failed with {self.error}{', and so did what came after' if self.lasts else ''}"


def troubles(step: Step) -> Iterator[Trouble]:
    """Yield the errors that a step may meet.

    A failed fsync succeeds when it is tried again, as on Linux. A store through memory is no call
    that could fail.
    """
    if step.look:
        return
    if step.action in SYNCS:
        yield Trouble(step, "EIO")
    elif step.action is Action.WRITE:
        yield Trouble(step, "EIO")
        yield Trouble(step, "ENOSPC")
        yield Trouble(step, "ENOSPC", lasts=True)
        yield Trouble(step, "EINTR")
        if step.length > 1 and step.call not in _COPIES:
            yield Trouble(step, "", short_bytes=step.length // 2)
    else:
        yield Trouble(step, "EIO")
        if step.action in _NEEDS_ROOM:
            yield Trouble(step, "ENOSPC", lasts=True)


def trouble_of(code: str, steps: list[Step]) -> Trouble:
    """Return the trouble of a code. Raises UsageError if the recording has no such step."""
    match = _CODE.fullmatch(code)
    number = int(match[1]) if match else 0
    if match is None or not 0 < number <= len(steps):
        msg = (
            f"state code must name an I/O error of a run of {len(steps)} steps; got {code}. "
            "Take one from a report of this target"
        )
        raise UsageError(msg)
    short = int(match[4]) if match[4] else None
    return Trouble(steps[number - 1], "" if match[2] == "short" else match[2], bool(match[3]), short)


def explore(recorded: Recorded, found: Collector) -> None:
    """Run the program once for each error that each step may meet, and judge each state.

    Of many errors, representatives of each call site come first, and a sample if there are more
    than ``io_runs``.
    """
    every = [trouble for step in recorded.recording.durable() for trouble in troubles(step)]
    plan = planned(
        recorded,
        found,
        every,
        lambda trouble: trouble.step.number,
        lambda trouble: (trouble.error, trouble.lasts, trouble.short_bytes is None),
    )
    found.total, found.points_total = len(plan.faults), len(every)
    found.is_sampled = len(plan.faults) < len(every)
    found.done = found.confirmed = min(found.skipped, len(plan.faults))
    tried = list(range(found.done))
    bounds_s: dict[int, float] = {}

    def task_of(numbered: tuple[int, Trouble]) -> StateTask:
        bounds_s[numbered[0]] = found.bound_s(recorded)
        return StateTask(
            recorded.before,
            directive=numbered[1].directive,
            run_timeout_s=bounds_s[numbered[0]],
            is_compared=False,
            is_expected=recorded.is_repeatable,
            family=found.family,
            code=numbered[1].code,
        )

    for (place, trouble), judgement in found.answers(enumerate(plan.faults), task_of):
        if not found.is_cut_short(judgement, bounds_s[place]):
            _judge(recorded, found, trouble, judgement)
        tried.append(place)
    found.has_nothing = not every
    settle(found, plan, tried)


def _judge(recorded: Recorded, found: Collector, trouble: Trouble, judgement: Judgement) -> None:
    state = State(
        trouble.code, trouble.step.number, judgement.marks, {}, text=trouble.told(str(judgement.struck or ""))
    )
    place = found.place(recorded, judgement)
    if judgement.is_timed_out:
        why = why_unended(judgement.waits, found.session.options.run_timeout_s)
        text = f"the program {why} once {state.text}"
        finding = Finding(signature="liveness:hangs-on-error", text=text, kind="liveness", checker="explore")
        found.note(finding, state, label=CONFIRMED_BY_A_RUN, output=judgement.output, place=place)
    elif not (judgement.fired or judgement.failure or judgement.findings):
        found.is_sampled, recorded.is_repeatable = True, False  # this run ended before it came so far
        return
    elif not judgement.fired:
        why = judgement.failure or "the program ended before it made this step"
        reasons = "; ".join(finding.text for finding in judgement.findings[:1])
        found.fail("harness:error-not-delivered", f"{trouble.code} was not delivered: {why} {reasons}".strip())
        return
    found.done += 1
    found.states += 1
    found.confirmed = found.done
    found.violated += judgement.is_timed_out
    found.count_violated(() if judgement.is_timed_out else judgement.findings)
    for finding in judgement.findings:
        found.note(
            finding, state, label=CONFIRMED_BY_A_RUN, folder=judgement.kept, output=judgement.output, place=place
        )


def rebuild(recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Make the error happen once more, and return the state and the marks that the program left."""
    trouble = trouble_of(code, recorded.recording.durable())
    return rebuilt_by_run(recorded, trouble.directive, trouble.text, folder, timeout_s=timeout_s)


def coverage(result: FamilyResult) -> str:
    """Return the coverage in words."""
    if result.is_complete and not result.points_total:
        return "no step is a call that could fail, so there is nothing to try"
    at = f", at {result.sites:,} of {result.sites_total:,} call sites" if result.sites_total else ""
    return f"{result.points:,} of {result.points_total:,} I/O errors{result.extent}{at}"
