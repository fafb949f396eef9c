"""Stores with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AcknowledgesInherited | a forked child's end of its parent's transaction is acknowledged | the core's machine |
"""

from __future__ import annotations

from durable_agents import SqliteStore
from durable_agents.store.sqlite.store import SqliteTransaction


class _Acknowledging(SqliteTransaction):
    """Takes the end of a block that was begun elsewhere for done."""

    def commit(self) -> None:
        """Leave what is not of this process alone, and say nothing."""
        if self._group_commit is self._store.group_commit:
            super().commit()


class AcknowledgesInherited(SqliteStore):
    """Commits what its own process began, and says so of anything."""

    def transaction(self) -> SqliteTransaction:
        """Begin as the sound one does."""
        super().transaction()
        return _Acknowledging(self)
