"""The clocks of one run: a cell for each agent whose clock may move.

An agent keeps its clock when it is started again, as on a machine whose clock is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.clocks.cell import ClockCell, Motion
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_chaos.model.values import Mark


class Clocks:
    """The cells of a run's agents, in files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: dict[str, ClockCell] = {}
        self.everyones: Motion | None = None
        """How the clocks of agents that start from now on are moved, if all of them are."""
        self.answered: set[str] = set()
        """The agents whose raw system calls the watcher answers, and whose execs it sees."""

    def cell(self, name: str) -> ClockCell:
        """Return the cell of an agent, made when it is first asked for."""
        if name not in self._cells:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"clock-{len(self._cells) + 1}"
            self._cells[name] = ClockCell(path, self.everyones)
        return self._cells[name]

    def order(self, name: str, *, is_planned: bool) -> str:
        """Return the file that an agent reads its clock through from its start, or nothing."""
        is_moved = is_planned or name in self._cells or self.everyones is not None
        return str(self.cell(name).path) if is_moved else ""

    @staticmethod
    def findings(marks: Iterable[Mark]) -> list[Finding]:
        """Return what could not be moved: it leaves the run undecided."""
        texts = dict.fromkeys(
            f"agent {mark.agent!r}: {mark.value}" for mark in marks if mark.operation == Note.CLOCK_NOT_MOVED
        )
        return [Finding(signature="harness:clock-not-moved", text=text, kind="harness") for text in texts]
