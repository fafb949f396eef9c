"""A log of events of a session, replayed when the session is resumed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

EVENTS = 3
FILE = "events.jsonl"


class Reported:
    """Replays every line, or stops with an error."""

    name = "events, replayed or refused"
    syncs = False

    def setup(self, directory: Path) -> None:
        """Begin a session."""
        (directory / FILE).write_text('{"event": 0}\n')

    def run(self, directory: Path, marks: Marks) -> None:
        """Append the events, each with the output of a tool."""
        with (directory / FILE).open("ab", buffering=0) as file:
            for event in range(1, EVENTS + 1):
                marks.intent("event", event)
                file.write(json.dumps({"event": event, "output": "line\n" * 200}).encode() + b"\n")
                if self.syncs:
                    os.fsync(file.fileno())
                    marks.ack("event", event)

    def resume(self, path: Path) -> list[int]:
        """Return the events. Raises ValueError for a line that is no JSON."""
        return [int(json.loads(line)["event"]) for line in path.read_text(errors="replace").splitlines()]

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Resume the session."""
        acknowledged = {int(mark.key or 0) for mark in marks if mark.kind == "ack"}
        try:
            found = self.resume(directory / FILE)
        except ValueError as error:
            yield Finding(signature="session-refused", text=f"the session cannot be resumed: {error}")
            return
        if lost := sorted(acknowledged - set(found)):
            yield Finding(signature="event-lost", text=f"acknowledged and not replayed: {lost}")


class Mended(Reported):
    """Cuts off what is damaged at the end, and keeps it beside."""

    name = "events, with a damaged end cut off"
    syncs = True

    def resume(self, path: Path) -> list[int]:
        """Return the events to the last whole line; what comes after goes into another file."""
        content = path.read_bytes()
        found: list[int] = []
        end = 0
        for line in content.splitlines(keepends=True):
            try:
                found.append(int(json.loads(line)["event"]))
            except ValueError:
                break
            end += len(line)
        if end < len(content):
            path.with_suffix(".damaged").write_bytes(content[end:])
            os.truncate(path, end)
        return found
