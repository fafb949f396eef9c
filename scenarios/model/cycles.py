"""The model of cycles: what of each is in the history, and what a recovery makes of its buffer."""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.model.states import Model, Moment, Outcome, Refused, Tables


@dataclass
class Cycle:
    """A cycle: what it is to have, and what became of it."""

    name: str
    entries: int
    is_committed: bool = False
    lives: bool = True
    is_readable: bool = True


class Cycles(Model):
    """Cycles by id; others, earlier or under way, may have the same name."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.cycles: dict[str, Cycle] = {}

    def begin(self, _: Moment, cycle_id: str, name: str, entries: int) -> None:
        """Begin a cycle, in a buffer of its own."""
        self.cycles[cycle_id] = Cycle(name, entries)

    def commit(self, _: Moment, cycle_id: str) -> None:
        """Copy a cycle into the history: all of it, once."""
        if self.cycles[cycle_id].is_committed or not self.cycles[cycle_id].lives:
            raise Refused("CycleEnded")
        self.cycles[cycle_id].is_committed = True

    def die(self, _: Moment, cycle_id: str, *, is_readable: bool = True) -> None:
        """Let the owner of a cycle die; something may have damaged its buffer since."""
        self.cycles[cycle_id].lives, self.cycles[cycle_id].is_readable = False, is_readable

    def recover(self, _: Moment, cycle_id: str) -> Outcome:
        """Judge a buffer: that of a living owner is left alone, an orphan is never committed."""
        cycle = self.cycles[cycle_id]
        dead = "discarded" if cycle.is_readable else "quarantined"
        return {"disposition": "left" if cycle.lives else dead}

    def tables(self) -> Tables:
        """Return the history."""
        return {
            "history": {
                cycle_id: {"name": cycle.name, "entries": cycle.entries}
                for cycle_id, cycle in self.cycles.items()
                if cycle.is_committed
            }
        }
