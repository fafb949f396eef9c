"""The model of the sync queue: which push is next, and when it is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scenarios.model.states import Model, Moment, Outcome, Refused, Tables, us

BACKOFF_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0)
"""The pauses after the first failure, the second, and so on; the last one repeats."""


@dataclass
class Push:
    """An entry of the sync queue."""

    key: str
    attempts: int = 0
    due_at: int = 0


class Queue(Model):
    """The sync queue: the head of the line first, each until it is acknowledged."""

    def __init__(self, entries_max: int = 1000) -> None:
        """Begin with nothing."""
        self.entries_max = entries_max
        self.entries: list[Push] = []

    def enqueue(self, _: Moment, key: str) -> Outcome:
        """Append a push; one that waits under this key is returned as it is."""
        found = next((entry for entry in self.entries if entry.key == key), None)
        if found is None and len(self.entries) >= self.entries_max:
            raise Refused("SyncQueueFull")
        if found is None:
            self.entries.append(found := Push(key))
        return {"attempts": found.attempts}

    def drop(self, _: Moment, key: str) -> Outcome:
        """Remove an entry."""
        before = len(self.entries)
        self.entries = [entry for entry in self.entries if entry.key != key]
        return {"was_there": len(self.entries) < before}

    def run(self, moment: Moment, failing: list[str], how: str = "refused") -> Outcome:
        """Push from the head until a push fails, the head is not due, or nothing is left.

        ``how`` a push fails makes no difference.
        """
        assert how
        tried: list[str] = []
        pushed = 0
        while self.entries and self._is_due(self.entries[0], moment):
            head = self.entries[0]
            tried.append(head.key)
            if head.key in failing:
                head.due_at = moment.now + us(BACKOFF_S[min(head.attempts, len(BACKOFF_S) - 1)])
                head.attempts += 1
                break
            self.entries.pop(0)
            pushed += 1
        due_at = self.entries[0].due_at if self.entries else None
        return {"tried": tried, "pushed": pushed, "waiting": len(self.entries), "due_at": due_at}

    def lose(self, _: Moment, copy: str) -> None:
        """Lose one of the two copies: nothing changes."""

    def waiting(self, _: Moment) -> Outcome:
        """Return what waits."""
        return {"keys": [entry.key for entry in self.entries], "attempts": [entry.attempts for entry in self.entries]}

    def _is_due(self, head: Push, moment: Moment) -> bool:
        """Tell whether its pause is over, or longer than any: then the clock was set back."""
        return not 0 < head.due_at - moment.now <= us(BACKOFF_S[-1])

    def tables(self) -> Tables:
        """Return nothing: the copies are read by the steps."""
        return {}
