"""A session that appends a line of JSON for each message, and a reader that resumes it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

MESSAGES = 3
FILE = "session.jsonl"


class Reported:
    """Reads all or nothing, and says nothing about it."""

    name = "session, a reader of all or nothing"

    def setup(self, directory: Path) -> None:
        """Begin a session with one message that is long on the disk."""
        (directory / FILE).write_text(json.dumps({"number": 0, "text": "hello"}) + "\n")

    def run(self, directory: Path, marks: Marks) -> None:
        """Append the messages."""
        with (directory / FILE).open("ab", buffering=0) as file:
            for number in range(1, MESSAGES + 1):
                marks.intent("say", number)
                file.write(json.dumps({"number": number, "text": "word " * 250}).encode() + b"\n")
                self.settle(file.fileno())
                marks.ack("say", number)

    def settle(self, descriptor: int) -> None:
        """Leave it to the kernel when the line goes to the disk."""

    def resume(self, content: bytes) -> list[int]:
        """Return the messages; none if a line is no JSON."""
        try:
            return [int(json.loads(line)["number"]) for line in content.splitlines()]
        except ValueError:
            return []

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Resume the session: what was there before this run has been on the disk for long."""
        content = (directory / FILE).read_bytes()
        if 0 not in self.resume(content):
            yield Finding(signature="session-blank", text=f"nothing is shown of {len(content)} bytes")


class Mended(Reported):
    """Syncs each line, and reads to the last whole one."""

    name = "session, read to the last whole line"

    def settle(self, descriptor: int) -> None:
        """Have the line on the disk."""
        os.fsync(descriptor)

    def resume(self, content: bytes) -> list[int]:
        """Return the messages to the first line that is not whole."""
        found = []
        for line in content.splitlines():
            try:
                found.append(int(json.loads(line)["number"]))
            except ValueError:
                break
        return found

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Resume the session: what was acknowledged is there, too."""
        yield from super().check(directory, marks)
        found = self.resume((directory / FILE).read_bytes())
        said = {int(mark.key or 0) for mark in marks if mark.kind == "ack"}
        if lost := sorted(said - set(found)):
            yield Finding(signature="message-lost", text=f"acknowledged and not shown: {lost}")
