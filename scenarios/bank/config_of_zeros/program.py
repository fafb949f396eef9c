"""A program that saves its configuration whenever a setting changes, and reads it at its start."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

CHANGES = 2
FILE = "config.toml"


def settings(number: int) -> bytes:
    """Return the configuration after so many changes; it is longer than a page."""
    return f'model = "m-{number}"\nchange = {number}\n'.encode() + b'note = """' + b"settings " * 600 + b'"""\n'


class Reported:
    """Writes the file where it is."""

    name = "configuration, written in place"

    def setup(self, directory: Path) -> None:
        """Have a configuration from before."""
        (directory / FILE).write_bytes(settings(0))

    def run(self, directory: Path, marks: Marks) -> None:
        """Change a setting, twice."""
        for number in range(1, CHANGES + 1):
            marks.intent("change", number)
            self.save(directory / FILE, settings(number))
            marks.ack("change", number)

    def save(self, path: Path, content: bytes) -> None:
        """Write it where it is."""
        path.write_bytes(content)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Start: read the configuration."""
        content = (directory / FILE).read_bytes() if (directory / FILE).exists() else b""
        try:
            tomllib.loads(content.decode())["change"]
        except (ValueError, KeyError) as error:
            zeros = content.count(0)
            text = f"{FILE} of {len(content)} bytes, {zeros} of them zero, cannot be read: {error}"
            yield Finding(signature="config-damaged", text=text)


class Mended(Reported):
    """Writes beside, syncs, renames."""

    name = "configuration, renamed"

    def save(self, path: Path, content: bytes) -> None:
        """Write and sync the new file, keep the old one, rename, and sync the folder."""
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".backup").unlink(missing_ok=True)
        path.with_suffix(".backup").hardlink_to(path)
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
