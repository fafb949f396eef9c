"""The recovery core's checkpoints, as any program uses them:
opened, saved to, closed; and read back after a crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_agents import CheckpointManager, TaskManager
from durable_agents.errors import CorruptCheckpoint, StoreError, UnknownTask
from pytest_chaos import Finding

from scenarios.work.agents import made, snapshot_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

TASK = "explored"
SOUND = "durable_agents:CheckpointManager"


class Checkpoints:
    """Saves checkpoints of one task. ``manager`` is the sound one,
    or a planted defect in its place.

    With ``first`` the very first opening of the database is part of what is explored; else it is
    there before.
    """

    def __init__(self, manager: str = SOUND, *, count: int = 3, first: bool = False) -> None:
        self.name = manager.rpartition(":")[2]
        self._manager = manager
        self._count = count
        self._first = first

    def setup(self, directory: Path) -> None:
        """Make the database, unless that is explored too."""
        if not self._first:
            self._open(directory).close()

    def run(self, directory: Path, marks: Marks) -> None:
        """Create the task, and save."""
        with self._open(directory) as checkpoints:
            marks.intent("create", TASK)
            TaskManager(checkpoints.store).create(TASK)
            marks.ack("create", TASK)
            for number in range(1, self._count + 1):
                marks.intent("save", number)
                checkpoints.save(TASK, snapshot_of(number))
                marks.ack("save", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Open it again, which is the recovery, and compare what is there with what was said."""
        try:
            with self._open(directory) as checkpoints:
                found = [(saved.sequence_number, saved.snapshot) for saved in checkpoints.list(TASK)]
        except UnknownTask:
            found = []
            if any(mark.kind == "ack" and mark.operation == "create" for mark in marks):
                yield Finding(signature="checkpoints:task-lost", text="the task was acknowledged and is gone")
        except (StoreError, CorruptCheckpoint) as error:
            yield Finding(signature="checkpoints:unreadable", text=f"{type(error).__name__}: {error}")
            return
        yield from self._compare(found, marks)

    def _compare(self, found: list[tuple[int, Any]], marks: Sequence[Mark]) -> Iterator[Finding]:
        numbers = [number for number, _ in found]
        acknowledged = {mark.key for mark in marks if mark.kind == "ack" and mark.operation == "save"}
        intended = {mark.key for mark in marks if mark.kind == "intent" and mark.operation == "save"}
        if numbers != list(range(1, len(numbers) + 1)):
            yield Finding(signature="checkpoints:hole", text=f"the numbers are {numbers}")
        if gone := sorted(acknowledged - set(numbers), key=str):
            yield Finding(signature="checkpoints:acknowledged-lost", text=f"acknowledged and gone: {gone}")
        if phantoms := sorted(set(numbers) - intended, key=str):
            yield Finding(signature="checkpoints:phantom", text=f"there, and saved by nobody: {phantoms}")
        if wrong := [number for number, snapshot in found if snapshot != snapshot_of(number)]:
            yield Finding(signature="checkpoints:changed", text=f"not as they were saved: {wrong}")

    def _open(self, directory: Path) -> CheckpointManager:
        manager: CheckpointManager = made(self._manager, db_path=str(directory / "recovery.db"))
        return manager
