"""The statements on grouped state and on committed cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import Cycle, CycleEntry, StateEntry
from durable_agents.store.sqlite.statements import Queries, Writes

if TYPE_CHECKING:
    from collections.abc import Sequence

# The cast returns the stored bytes as they are: the decoder wants them.
_ENTRY = "SELECT group_name, key, CAST(value AS BLOB) FROM state_entries WHERE group_name = ? AND key "
_ONE: Final = _ENTRY + "= ?"
_PAGE: Final = _ENTRY + "> ? ORDER BY key LIMIT ?"
_COUNT: Final = "SELECT count(*) FROM state_entries WHERE group_name = ?"
_PUT: Final = (
    "INSERT INTO state_entries (group_name, key, value) VALUES (?, ?, ?) "
    "ON CONFLICT (group_name, key) DO UPDATE SET value = excluded.value"
)
_DELETE: Final = "DELETE FROM state_entries WHERE group_name = ? AND key = ?"
_DELETE_BELOW: Final = (
    "DELETE FROM state_entries WHERE group_name = ? AND key IN "
    "(SELECT key FROM state_entries WHERE group_name = ? AND key < ? ORDER BY key LIMIT ?)"
)
_INSERT_CYCLE: Final = "INSERT INTO cycles (cycle_id, name, committed_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_INSERT_CYCLE_ENTRY: Final = "INSERT INTO cycle_entries (cycle_id, place, kind, value) VALUES (?, ?, ?, ?)"
_CYCLES: Final = "SELECT cycle_id, name, committed_at FROM cycles WHERE cycle_id > ? ORDER BY cycle_id LIMIT ?"
_CYCLE_ENTRIES: Final = (
    "SELECT cycle_id, place, kind, CAST(value AS BLOB) FROM cycle_entries "
    "WHERE cycle_id = ? AND place > ? ORDER BY place LIMIT ?"
)


class StateReads(Queries):
    """Queries on grouped state and cycles."""

    __slots__ = ()

    def state(self, group: str, key: str) -> StateEntry | None:
        """Return the entry, or None."""
        row = self._read_one(_ONE, (group, key))
        return None if row is None else StateEntry(*row)

    def state_entries(self, group: str, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StateEntry]:
        """Return entries of a group in the order of their keys, those behind the key ``after``."""
        return [StateEntry(*row) for row in self._read(_PAGE, (group, after, limit))]

    def state_count(self, group: str) -> int:
        """Return how many entries the group has."""
        count: int = self._read(_COUNT, (group,))[0][0]
        return count

    def cycles(self, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Cycle]:
        """Return committed cycles in the order of their ids, those behind the id ``after``."""
        return [Cycle(*row) for row in self._read(_CYCLES, (after, limit))]

    def cycle_entries(self, cycle_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[CycleEntry]:
        """Return the entries of a committed cycle in their order."""
        return [CycleEntry(*row) for row in self._read(_CYCLE_ENTRIES, (cycle_id, after, limit))]


class StateWrites(StateReads, Writes):
    """Changes of grouped state and cycles."""

    __slots__ = ()

    def put_state(self, entry: StateEntry) -> None:
        """Insert the entry, or replace its value."""
        self.execute(_PUT, (entry.group, entry.key, entry.value.decode()))

    def put_states(self, entries: Sequence[StateEntry]) -> None:
        """Insert or replace several entries."""
        self.execute_all(_PUT, [(entry.group, entry.key, entry.value.decode()) for entry in entries])

    def delete_state(self, group: str, key: str) -> bool:
        """Delete the entry; False if there is none."""
        return self._changes_one(_DELETE, (group, key))

    def delete_states(self, group: str, *, below: str, limit: int) -> int:
        """Delete up to ``limit`` entries of a group with keys below ``below``; return how many.

        The smallest keys go first.
        """
        return self.execute(_DELETE_BELOW, (group, group, below, limit)).rowcount

    def insert_cycle(self, cycle: Cycle) -> bool:
        """Insert the marker of a committed cycle; False if its id is there."""
        return self._changes_one(_INSERT_CYCLE, (cycle.cycle_id, cycle.name, cycle.committed_at))

    def insert_cycle_entries(self, entries: Sequence[CycleEntry]) -> None:
        """Insert entries of a cycle whose marker this transaction has inserted."""
        self.execute_all(_INSERT_CYCLE_ENTRY, [(e.cycle_id, e.place, e.kind, e.value.decode()) for e in entries])
