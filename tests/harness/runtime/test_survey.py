"""The trail of a watched run: its steps and marks in one order, and what an ack relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from pytest_chaos.model.story import RunSteps
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.survey import MARK, STEP, TAKEN_BACK, PlaceToStop, steps_of, trail

if TYPE_CHECKING:
    from pathlib import Path


class _Written:
    """A mark file that grows, and the survey of those who wrote it."""

    def __init__(self) -> None:
        self.content = b" \n"
        self.places: list[PlaceToStop] = []

    def step(self, agent: str, name: str, path: str, line: str = "") -> None:
        """Add a durable step of an agent."""
        self.places.append(PlaceToStop(STEP, name, path, line, agent))

    def said(self, agent: str, *marks: tuple[str, int], ends: bytes = b"\n", by: str = "") -> None:
        """Add marks that an agent writes with one call, or with ``by`` another process."""
        lines = [
            msgspec.json.encode({"kind": kind, "operation": "put", "key": key, "agent": agent}) for kind, key in marks
        ]
        written = ends + b"\n".join(lines) + b"\n"
        if not by:
            place = PlaceToStop(
                MARK, MARK, line=f"{agent}.py:1", agent=agent, at=len(self.content), length=len(written)
            )
            self.places.append(place)
        self.content += written

    def kept(self, folder: Path) -> Path:
        """Write the survey into a file."""
        path = folder / "survey.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(place) + b"\n" for place in self.places))
        return path


def test_marks_have_their_place_among_the_steps() -> None:
    """One call may write several marks, with or without an empty line before them;
    marks that another process writes in an agent's name are left out.
    """
    seen = _Written()
    seen.said("a", ("intent", 1))
    seen.step("a", "write", "one")
    seen.said("a", ("ack", 1), ("intent", 2), ends=b"")
    seen.said("a", ("note", 9), by="watcher")
    seen.step("b", "write", "other")
    seen.said("b", ("ack", 7))
    seen.said("a", ("ack", 2))

    items, lines = trail(seen.places, seen.content)
    told = [step.path if step is not None else mark and f"{mark.kind} {mark.key}" for step, mark in items]
    assert told == ["intent 1", "one", "ack 1", "intent 2", "other", "ack 7", "ack 2"]
    assert lines[5] == "a.py:1"


def test_an_ack_is_joined_to_its_own_step_or_to_that_of_its_server(tmp_path: Path) -> None:
    """A sync, the last write where there is none, and a server's write for its client."""
    seen = _Written()
    seen.said("a", ("intent", 1))
    seen.step("a", "write", "log", "a.py:7 in put")
    seen.step("a", "sync", "log", "a.py:8 in put")
    seen.step("b", "write", "other")
    seen.said("a", ("ack", 1))
    seen.said("a", ("intent", 2))
    seen.step("a", "write", "log", "a.py:7 in put")
    seen.said("a", ("ack", 2))
    seen.said("client", ("intent", 3))
    seen.step("a", "write", "rows", "a.py:9 in serve")
    seen.said("client", ("ack", 3))
    seen.said("client", ("intent", 4), ("ack", 4))
    found = Finding(signature="check:put # is lost", text="put 1, put 2, put 3 and put 4 are lost")

    steps = steps_of(seen.kept(tmp_path), seen.content, [found])
    assert [(item.mark.key, item.step, item.text, item.line, item.is_synced) for item in steps.lost] == [
        (1, 2, "sync log", "a.py:8 in put", True),
        (2, 4, "write log", "a.py:7 in put", False),
        (3, 5, "write rows", "a.py:9 in serve", False),
        (4, 0, "", "", False),
    ]
    assert "nothing synced it" in steps.lost[1].why
    assert steps.lost[3].why.endswith("nothing was written; client.py:1 acknowledged it")
    assert steps.total == 5
    assert msgspec.json.decode(msgspec.json.encode(steps), type=RunSteps) == steps


def test_a_step_before_which_a_fault_came_was_not_made() -> None:
    """The calls of other agents stay, and so does what the agent made before."""
    seen = _Written()
    seen.step("a", "write", "one")
    seen.step("a", "write", "two")
    seen.step("b", "write", "other")
    seen.places.append(PlaceToStop(TAKEN_BACK, TAKEN_BACK, agent="a", length=1))
    assert [step.path for step, _ in trail(seen.places, seen.content).items if step is not None] == ["one", "other"]


def test_a_finding_that_names_nothing_joins_nothing(tmp_path: Path) -> None:
    """No item is made up; a survey that is cut short, or empty, is borne."""
    seen = _Written()
    seen.said("a", ("intent", 1), ("ack", 1))
    survey = seen.kept(tmp_path)
    assert steps_of(survey, seen.content, [Finding(signature="s", text="it is slow")]).lost == ()
    survey.write_bytes(survey.read_bytes()[:-9])
    assert steps_of(survey, seen.content, [Finding(signature="s", text="put 1 is lost")]).total == 0
