"""What is promised at a bound itself, by default, and of one call: a question, and its one answer.

A bound counts at its very value, and what is one beyond it is refused. A default is what the README
says. A call that is one decision is one transaction, so a crash leaves all of it or nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenarios.judging import NeverHeldError, Script, ScriptClock, Steps, judge, perform, play
from scenarios.model.states import Model, Moment, Outcome, Tables
from scenarios.questions import (
    access,
    claims,
    files,
    groups,
    jobs,
    leases,
    opening,
    owners,
    points,
    reaper,
    state,
    store,
    webhooks,
)
from scenarios.questions.world import Questions, World

if TYPE_CHECKING:
    from pytest_chaos import Marks, Run

LIMITS: Final[Questions] = {
    **opening.QUESTIONS,
    **store.QUESTIONS,
    **access.QUESTIONS,
    **groups.QUESTIONS,
    **claims.QUESTIONS,
    **leases.QUESTIONS,
    **files.QUESTIONS,
    **state.QUESTIONS,
    **jobs.QUESTIONS,
    **webhooks.QUESTIONS,
    **owners.QUESTIONS,
    **points.QUESTIONS,
    **reaper.QUESTIONS,
}
"""By room and name: the question, and the answer."""


class Limits(Model):
    """The promise: the answers of the table."""

    def limit(self, _: Moment, name: str) -> Outcome:
        """Ask a question; a finding has its name."""
        return {subject(name): LIMITS[name][1]}

    def tables(self) -> Tables:
        """Return nothing: each question has a folder of its own."""
        return {}


class LimitSteps(Steps):
    """The steps: each question in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder."""
        self.folder, self.is_wrong = folder, False

    def limit(self, name: str) -> dict[str, Any]:
        """Ask a question. After a wrong answer no other one is asked: the first is what is told."""
        if self.is_wrong:
            raise NeverHeldError
        question, expected = LIMITS[name]
        world = World(self.folder / subject(name))
        with world.open:
            try:
                answer = plain(question(world))
            except Exception as error:  # noqa: BLE001 - whatever the core raises is told by the question's name
                answer = f"raised {type(error).__name__}: {error}"
        self.is_wrong = answer != plain(expected)
        return {subject(name): answer}


def subject(name: str) -> str:
    """Return the name of a question as one word, for folders and findings.

    >>> subject("jobs: a reaper's start")
    'jobs-a-reapers-start'
    """
    return "-".join(re.findall("[a-z0-9]+", name.lower().replace("'", "")))


def plain(answer: Any) -> Any:
    """Return an answer as a mark holds it."""
    return json.loads(json.dumps(answer, default=str))


def play_limits(marks: Marks, folder: str, steps: list[Any], known: list[dict[str, Any]]) -> None:
    """Ask the questions of a script."""
    assert isinstance(known, list)
    perform(marks, ScriptClock(), steps, LimitSteps(Path(folder)).do)


def of_limits(room: str) -> Script:
    """Return all questions of a room."""
    script = Script()
    for name in LIMITS:
        if name.startswith(f"{room}:"):
            script.then("limit", name=name)
    return script


def ask_limits(chaos: Run, room: str) -> None:
    """Have an agent ask all questions of a room, and expect the answers of the table."""
    play(chaos, "scenarios.limits:play_limits", of_limits(room), folder=str(chaos.directory))
    judge(chaos, Limits(), chaos.directory / "none.db")
    asking = chaos.agent("player-0")  # no fault is planned: a signal is the core's own
    chaos.expect("the agent that asks ends by itself", observed=asking.state, holds=asking.state == "exit code 0")
