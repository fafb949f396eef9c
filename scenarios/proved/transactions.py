"""Lists in a SQLite file, read and appended to in transactions: what list-append is tried on."""

from __future__ import annotations

import json
import sqlite3
import sys
from typing import Any, Final

READ: Final = "scenarios.proved.read"
"""The named point of a transaction that has read, and has not committed."""


class Transactions:
    """One client's connection: each transaction takes the write lock before it reads."""

    def __init__(self, database: str, timeout_s: float = 60.0) -> None:
        self.connection = sqlite3.connect(database, timeout=timeout_s, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")  # no power is lost here
        self.connection.execute("CREATE TABLE IF NOT EXISTS lists (key TEXT PRIMARY KEY, items TEXT NOT NULL)")

    def do(self, operations: list[list[Any]]) -> list[list[Any]]:
        """Do all operations, or none; return them with what the reads saw."""
        self.connection.execute("BEGIN IMMEDIATE")
        with self.connection:
            done = [self.one(*operation) for operation in operations]
            sys.audit(READ)
            return done

    def one(self, function: str, key: str, value: Any) -> list[Any]:
        """Read or append within a transaction."""
        items = self.items(key)
        if function == "r":
            return [function, key, items]
        self.put(key, [*items, value])
        return [function, key, value]

    def items(self, key: str) -> list[Any]:
        """Return a list; an empty one if it is not there."""
        found = self.connection.execute("SELECT items FROM lists WHERE key = ?", (key,)).fetchone()
        return list(json.loads(found[0])) if found else []

    def put(self, key: str, items: list[Any]) -> None:
        """Store a list."""
        self.connection.execute("INSERT OR REPLACE INTO lists VALUES (?, ?)", (key, json.dumps(items)))
