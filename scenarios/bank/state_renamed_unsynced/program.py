"""A command that keeps cookies of a login in a JSON file, and says that it is crash-safe."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos import Mark, Marks

LOGINS = 2
FILE = "storage.json"


class Reported:
    """Renames, and syncs nothing."""

    name = "login, renamed and not synced"
    syncs = False

    def run(self, directory: Path, marks: Marks) -> None:
        """Log in, twice."""
        for number in range(1, LOGINS + 1):
            marks.intent("login", number)
            self.save(directory / FILE, json.dumps({"login": number, "cookie": "c" * 700}))
            marks.ack("login", number)

    def save(self, path: Path, text: str) -> None:
        """Write a temporary file in the folder, and rename it."""
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            if self.syncs:
                os.fsync(file.fileno())
        Path(name).replace(path)
        if self.syncs:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Read the login, as the next command does."""
        saved = max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0)
        path = directory / FILE
        try:
            found = int(json.loads(path.read_text())["login"]) if path.exists() else 0
        except ValueError:
            yield Finding(signature="login-lost", text=f"{FILE} has {path.stat().st_size} bytes and is no JSON")
            return
        if found < saved:
            yield Finding(signature="login-lost", text=f"login {saved} was saved, and login {found} is there")


class Mended(Reported):
    """Syncs file and folder."""

    name = "login, renamed and synced"
    syncs = True
