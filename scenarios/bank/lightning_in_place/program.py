"""A training loop that saves a checkpoint after each epoch, always to the same file."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

EPOCHS = 3
WEIGHTS = 2000


class Reported:
    """Saves in place."""

    name = "training, saved in place"

    def run(self, directory: Path, marks: Marks) -> None:
        """Train, and save after each epoch."""
        for epoch in range(1, EPOCHS + 1):
            state = {"epoch": epoch, "weights": [epoch / 7] * WEIGHTS}
            marks.intent("save", epoch)
            self.save(directory / "last.ckpt", pickle.dumps(state))
            marks.ack("save", epoch)

    def save(self, path: Path, content: bytes) -> None:
        """Save over the last checkpoint."""
        path.write_bytes(content)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Load the checkpoint, as the next training would."""
        saved = max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0)
        path = directory / "last.ckpt"
        try:
            epoch = int(pickle.loads(path.read_bytes())["epoch"]) if path.exists() else 0  # noqa: S301 - our own file
        except (EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            yield Finding(signature="checkpoint-damaged", text=f"last.ckpt cannot be loaded: {error}")
            return
        if epoch < saved:
            yield Finding(signature="checkpoint-lost", text=f"epoch {saved} was saved, and epoch {epoch} is loaded")


class Mended(Reported):
    """Saves beside, and renames."""

    name = "training, saved beside and renamed"

    def save(self, path: Path, content: bytes) -> None:
        """Write and sync another file, rename it, and sync the folder."""
        fresh = path.with_name("last.ckpt.part")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
