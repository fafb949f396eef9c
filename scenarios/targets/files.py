"""A JSON file that holds a number, saved in the four ways that programs save files."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pytest_chaos import Finding

from scenarios.targets.databases import LOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

UNREADABLE = "unreadable"


class InPlace:
    """Writes the file anew where it is."""

    name = "JSON rewritten in place"
    numbers = 5

    def run(self, directory: Path, marks: Marks) -> None:
        """Save the numbers from 1 on."""
        for number in range(1, self.numbers + 1):
            marks.intent("save", number)
            self.save(directory / "state.json", json.dumps({"number": number, "text": "x" * 1500}).encode())
            marks.ack("save", number)

    def save(self, path: Path, content: bytes) -> None:
        """Save in place, as careless programs do."""
        path.write_bytes(content)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find a file that cannot be read, or that holds less than was acknowledged."""
        path = directory / "state.json"
        acknowledged = max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0)
        try:
            number = int(json.loads(path.read_bytes())["number"]) if path.exists() else 0
        except ValueError as error:
            yield Finding(signature=UNREADABLE, text=f"{path.name} of {path.stat().st_size} bytes: {error}")
            return
        if number < acknowledged:
            yield Finding(signature=LOST, text=f"{acknowledged} was acknowledged, and {number} is there")


class Renamed(InPlace):
    """Writes another file and renames it, without any fsync."""

    name = "JSON renamed, nothing synced"
    syncs_file = False
    syncs_folder = False

    def save(self, path: Path, content: bytes) -> None:
        """Save by rename."""
        fresh = path.with_name("state.new")
        with fresh.open("wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            if self.syncs_file:
                os.fsync(file.fileno())
        fresh.replace(path)
        if self.syncs_folder:
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class RenamedSyncedFile(Renamed):
    """Syncs the file before the rename, and not the folder after it."""

    name = "JSON renamed, the file synced"
    syncs_file = True


class RenamedSyncedBoth(RenamedSyncedFile):
    """Syncs the file before the rename, and the folder after it."""

    name = "JSON renamed, file and folder synced"
    syncs_folder = True
