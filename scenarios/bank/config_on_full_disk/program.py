"""A service whose configuration is edited in a page, and saved."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

FILE = "config.json"


def configuration(days: int) -> str:
    """Return a configuration that keeps recordings so many days."""
    return json.dumps({"days": days, "cameras": ["door", "garden"] * 40})


class Reported:
    """Opens the file for writing, and writes."""

    name = "service, configuration written in place"

    def setup(self, directory: Path) -> None:
        """Have a configuration."""
        (directory / FILE).write_text(configuration(30))

    def run(self, directory: Path, marks: Marks) -> None:
        """Save a change; an error is shown in the page, and the service goes on."""
        marks.intent("save", 7)
        with contextlib.suppress(OSError):
            self.save(directory / FILE, configuration(7))
            marks.ack("save", 7)

    def save(self, path: Path, text: str) -> None:
        """Write the file where it is."""
        with path.open("w") as file:
            file.write(text)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Read the configuration: one of before, or the saved one if that was acknowledged."""
        content = (directory / FILE).read_text()
        try:
            days = int(json.loads(content)["days"])
        except ValueError:
            yield Finding(signature="config-lost", text=f"{FILE} has {len(content)} characters and is no JSON")
            return
        if days != 7 and any(mark.kind == "ack" for mark in marks):
            yield Finding(signature="change-lost", text=f"7 days were saved, and the file has {days}")


class Mended(Reported):
    """Writes beside, and renames what is whole."""

    name = "service, configuration renamed"

    def save(self, path: Path, text: str) -> None:
        """Write another file; rename it once nothing has failed."""
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                file.write(text)
            fresh.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
