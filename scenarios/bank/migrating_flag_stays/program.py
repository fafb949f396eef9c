"""A monitor whose second version keeps its data in another table: its first start copies it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

DAYS = 3
SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE beats (day INTEGER PRIMARY KEY, number INTEGER);
CREATE TABLE daily (day INTEGER PRIMARY KEY, number INTEGER);
INSERT INTO beats VALUES (1, 10), (2, 20), (3, 30);
"""


def connect(directory: Path) -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(directory / "monitor.db", isolation_level=None))


class Reported:
    """Sets a flag, migrates, takes the flag away."""

    name = "monitor, a flag for the migration"

    def setup(self, directory: Path) -> None:
        """Have the database of the first version."""
        with connect(directory) as database:
            database.executescript(SCHEMA)

    def run(self, directory: Path, marks: Marks) -> None:
        """Start the second version."""
        self.start(directory)
        marks.ack("start")

    def start(self, directory: Path) -> None:
        """Migrate if need be. Raises RuntimeError where a migration seems to be under way."""
        with connect(directory) as database:
            state = database.execute("SELECT value FROM settings WHERE key = 'migration'").fetchone()
            if state == ("done",):
                return
            if state is not None:
                message = "the migration is under way already"
                raise RuntimeError(message)
            database.execute("INSERT INTO settings VALUES ('migration', 'under way')")
            for day in range(1, DAYS + 1):
                database.execute("INSERT INTO daily SELECT day, number FROM beats WHERE day = ?", (day,))
            database.execute("UPDATE settings SET value = 'done' WHERE key = 'migration'")

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Start again, and look for the data."""
        try:
            self.start(directory)
        except RuntimeError as error:
            yield Finding(signature="never-starts-again", text=f"the next start ends: {error}")
            return
        with connect(directory) as database:
            rows = database.execute("SELECT day, number FROM daily ORDER BY day").fetchall()
        if rows != [(1, 10), (2, 20), (3, 30)]:
            yield Finding(signature="migrated-wrong", text=f"the new table has {rows}")


class Mended(Reported):
    """Notes each day with its data."""

    name = "monitor, a migration that goes on"

    def start(self, directory: Path) -> None:
        """Copy the days that were not copied; each is a transaction with its note."""
        with connect(directory) as database:
            for day in range(1, DAYS + 1):
                database.execute("BEGIN IMMEDIATE")
                note = database.execute("INSERT OR IGNORE INTO settings VALUES (?, 'copied')", (f"day {day}",))
                if note.rowcount:
                    database.execute("INSERT INTO daily SELECT day, number FROM beats WHERE day = ?", (day,))
                database.execute("COMMIT")
