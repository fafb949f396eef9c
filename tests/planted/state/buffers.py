"""Buffers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| DiscardsTheLiving | nobody is asked whether the owner lives (D24) | a second instance at work |
| MarksByName | a commit is marked by the cycle's name (D25) | a name that comes again |
| CommitsOrphans | what a dead cycle left is put into the history | any crash before a commit |
| TwoTransactions | the marker is committed before the entries | a kill between the two |
| LeavesSidecars | of an orphan only the file itself is removed | whoever lists the folder |
| DiscardsTheUnreadable | nobody looks whether an orphan can be read | a damaged buffer |
| RecoversBeside | a recovery does not wait for its turn | another one, while it stands still at a point |
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from typing import TYPE_CHECKING
from unittest import mock

from durable_agents import Buffer, Buffers, Disposition, Roots, StateCrashPoint
from durable_agents.state.buffers import SUFFIX, BufferOwner, FoundBuffer
from durable_agents.store.rows import Cycle, CycleEntry

if TYPE_CHECKING:
    from durable_agents.state.buffers import Orphans
    from durable_agents.store import Transaction


class DiscardsTheLiving(Buffers):
    """Takes every buffer that is there at the start for an orphan."""

    def _is_live(self, owner: BufferOwner) -> bool:
        assert owner
        return False


class RecoversBeside(Buffers):
    """Recovers whatever it has seen, also if another one has put it away since."""

    def recover_orphans(self) -> Orphans:
        """Take no turn."""
        with mock.patch.object(Roots, "locked", return_value=contextlib.nullcontext()):
            return super().recover_orphans()


class MarksByName(Buffers):
    """Knows a committed cycle by its name."""

    class buffer(Buffer):  # noqa: N801 - the name of the attribute
        """Looks for a marker of its name."""

        def _copy_into(self, transaction: Transaction) -> None:
            if transaction.state("committed", self.name) is None:
                transaction.execute(  # type: ignore[attr-defined]
                    "INSERT INTO state_entries VALUES ('committed', ?, '1')", (self.name,)
                )
                super()._copy_into(transaction)


class CommitsOrphans(Buffers):
    """Saves what can be saved."""

    def _discard(self, stem: str, detail: str) -> FoundBuffer:
        owner, path = BufferOwner.of(stem), self.folder / (stem + SUFFIX)
        store = self._state.store
        if owner is not None and store is not None and path.exists():
            with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.Error):
                rows = connection.execute("SELECT place, kind, CAST(value AS BLOB) FROM entries").fetchall()
                with store.transaction() as transaction:
                    if rows and transaction.insert_cycle(Cycle(owner.cycle_id, owner.name, 0)):
                        transaction.insert_cycle_entries([CycleEntry(owner.cycle_id, *row) for row in rows])
        return super()._discard(stem, detail)


class TwoTransactions(Buffers):
    """Commits a cycle step by step."""

    class buffer(Buffer):  # noqa: N801 - the name of the attribute
        """Commits the marker, then the entries."""

        def commit(self) -> bool:
            """Commit in two transactions, past the same crash points."""
            store = self._state.store
            assert store is not None
            sys.audit(StateCrashPoint.CYCLE_BEFORE_COMMIT, self.cycle_id)
            with store.transaction() as transaction:
                transaction.insert_cycle(Cycle(self.cycle_id, self.name, self._clock.now()))
            sys.audit(StateCrashPoint.CYCLE_IN_COMMIT, self.cycle_id)
            with store.transaction() as transaction:
                for page in self._pages():
                    transaction.insert_cycle_entries(page)
            sys.audit(StateCrashPoint.CYCLE_AFTER_COMMIT, self.cycle_id)
            self._remove()
            sys.audit(StateCrashPoint.CYCLE_AFTER_REMOVE, self.cycle_id)
            return True


class LeavesSidecars(Buffers):
    """Removes what it was told to remove."""

    def _discard(self, stem: str, detail: str) -> FoundBuffer:
        sys.audit(StateCrashPoint.ORPHANS_BEFORE_DISCARD, stem)
        (self.folder / (stem + SUFFIX)).unlink(missing_ok=True)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD_FILE, stem)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD, stem)
        return FoundBuffer(stem, Disposition.DISCARDED, detail)


class DiscardsTheUnreadable(Buffers):
    """Quarantines nothing."""

    def _quarantine(self, stem: str, detail: str) -> FoundBuffer:
        return self._discard(stem, detail)
