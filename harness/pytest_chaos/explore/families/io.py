"""The family *io*: at each step the program is really told of an error, and what it then leaves is judged.

A program may give up, with any exit code; it may not promise what it does not have, damage what it
had, or hang.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.report import CONFIRMED_BY_A_RUN, Family, FamilyResult
from pytest_chaos.explore.session import Hearing
from pytest_chaos.explore.simulate.state import State
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.source import InjectError
from pytest_chaos.trace.step import SYNCS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Session
    from pytest_chaos.trace.step import Step

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
_CODE: Final = re.compile(r"io:(\d+):(E[A-Z]+|short)(\*?)(?:/(\d+))?")


class Trouble(NamedTuple):
    """An error at a step. ``lasts`` is whether it stays: the disk is full, the file is bad."""

    step: Step
    error: str
    lasts: bool = False
    short_bytes: int | None = None

    @property
    def code(self) -> str:
        """The name of the state that it leaves: ``io:57:ENOSPC*``."""
        if self.short_bytes is not None:
            return f"io:{self.step.number}:short/{self.short_bytes}"
        return f"io:{self.step.number}:{self.error}{'*' if self.lasts else ''}"

    @property
    def directive(self) -> InjectError:
        """What the source of steps is told."""
        times = None if self.lasts else 1
        return InjectError(number=self.step.number, error=self.error, times=times, short_bytes=self.short_bytes)

    @property
    def text(self) -> str:
        """The trouble in words."""
        if self.short_bytes is not None:
            return f"step {self.step} was a short write of {self.short_bytes} bytes"
        return f"step {self.step} failed with {self.error}{', and so did what came after' if self.lasts else ''}"


def troubles(step: Step) -> Iterator[Trouble]:
    """Return the errors that a step may meet. An fsync that failed succeeds when it is tried again, as on Linux."""
    if step.action in SYNCS:
        yield Trouble(step, "EIO")
    elif step.action is Action.WRITE:
        yield Trouble(step, "EIO")
        yield Trouble(step, "ENOSPC")
        yield Trouble(step, "ENOSPC", lasts=True)
        yield Trouble(step, "EINTR")
        if step.length > 1:
            yield Trouble(step, "", short_bytes=step.length // 2)
    else:
        yield Trouble(step, "EIO")
        if step.action in _NEEDS_ROOM:
            yield Trouble(step, "ENOSPC", lasts=True)


def trouble_of(code: str, steps: list[Step]) -> Trouble:
    """Return the trouble that a code names. Raises UsageError for a code that names none of this recording's."""
    match = _CODE.fullmatch(code)
    number = int(match[1]) if match else 0
    if match is None or not 0 < number <= len(steps):
        msg = f"{code} names no I/O error of a run of {len(steps)} steps: take a code from a report of this target"
        raise UsageError(msg)
    short = int(match[4]) if match[4] else None
    return Trouble(steps[number - 1], "" if match[2] == "short" else match[2], bool(match[3]), short)


def explore_errors(session: Session) -> FamilyResult:
    """Run the program once for each step and each error that the step may meet, and judge what it leaves."""
    return _Errors(session).explore()


class _Errors:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._hearing = Hearing(session, Family.IO)
        self._points = 0
        self._skip = session.saved.consumed

    def explore(self) -> FamilyResult:
        options = self._session.options
        planned = [trouble for step in self._session.recorded.recording.durable() for trouble in troubles(step)]
        chosen = planned
        if len(planned) > options.io_runs:
            randomness = stream(options.seed, "explore", "io")
            order = sorted(range(len(planned)), key=lambda _: randomness.random())
            chosen = [planned[place] for place in sorted(order[: options.io_runs])]
        self._hearing.total, self._hearing.points_total = len(chosen), len(planned)
        is_complete = self._run_all(chosen)
        return self._hearing.finish(
            FamilyResult(
                family=Family.IO,
                points=self._points,
                points_total=len(planned),
                confirmed=self._points,
                is_sampled=len(chosen) < len(planned),
                is_complete=is_complete,
            )
        )

    def _run_all(self, chosen: list[Trouble]) -> bool:
        hearing = self._hearing
        for place, trouble in enumerate(chosen):
            if self._session.is_over:
                hearing.settle()
                return False
            if place < self._skip:
                self._points += 1
                hearing.done = self._points
                continue
            self._run(trouble)
            hearing.advance()
        hearing.settle()
        return True

    def _run(self, trouble: Trouble) -> None:
        session = self._session

        def heard(judgement: Judgement, _: Path) -> None:
            self._judge(trouble, judgement)

        session.pool.run(
            trouble.directive,
            heard,
            timeout_s=session.options.run_timeout_s,
            items=session.recorded.before,
            compare=False,
        )

    def _judge(self, trouble: Trouble, judgement: Judgement) -> None:
        hearing = self._hearing
        state = State(trouble.code, trouble.step.number, judgement.marks, {}, text=trouble.text)
        if judgement.is_timed_out:
            text = f"the program did not end within {self._session.options.run_timeout_s:g} s once {trouble.text}"
            finding = Finding(signature="liveness:hangs-on-error", text=text, kind="liveness", checker="explore")
            hearing.note(finding, state, label=CONFIRMED_BY_A_RUN)
        elif not judgement.fired:
            why = judgement.failure or "the program never made this step"
            reasons = "; ".join(finding.text for finding in judgement.findings[:1])
            hearing.fail("harness:error-not-delivered", f"{trouble.code} was not delivered: {why} {reasons}".strip())
            return
        self._points += 1
        hearing.states += 1
        hearing.done = self._points
        for finding in judgement.findings:
            hearing.note(finding, state, label=CONFIRMED_BY_A_RUN)
