"""A server that keeps checkpoints in a dict, with a loop that writes all dicts to files."""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

CHECKPOINTS = 3


class Store(dict[str, int]):
    """A dict with a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def flush(self) -> None:
        """Write the file: beside, and renamed."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self))
        fresh.replace(self._path)


class Reported:
    """Takes an empty store for one that is gone."""

    name = "server, a loop that forgets empty stores"

    def run(self, directory: Path, marks: Marks) -> None:
        """Make checkpoints, with a turn of the loop after each; close in the end."""
        store = Store(directory / "checkpoints.json")
        known = {"checkpoints": weakref.ref(store)}
        self.turn(known)
        for number in range(1, CHECKPOINTS + 1):
            marks.intent("checkpoint", number)
            store[f"thread-{number}"] = number
            self.turn(known)
            marks.ack("checkpoint", number)
        store.flush()

    def turn(self, known: dict[str, weakref.ref[Store]]) -> None:
        """Flush each store that is still there, and forget the others."""
        for name, reference in list(known.items()):
            if store := reference():
                store.flush()
            else:
                del known[name]

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Read the checkpoints that a turn of the loop should have written."""
        path = directory / "checkpoints.json"
        found = set(json.loads(path.read_text()).values()) if path.exists() else set()
        flushed = {int(mark.key or 0) for mark in marks if mark.kind == "ack"}
        if lost := sorted(flushed - found):
            yield Finding(signature="checkpoint-lost", text=f"flushed, as far as anybody knew, and gone: {lost}")


class Mended(Reported):
    """Asks whether the store is gone."""

    name = "server, a loop that keeps empty stores"

    def turn(self, known: dict[str, weakref.ref[Store]]) -> None:
        """Flush each store that is still there, empty or not."""
        for name, reference in list(known.items()):
            if (store := reference()) is not None:
                store.flush()
            else:
                del known[name]
