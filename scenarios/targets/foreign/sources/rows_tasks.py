"""A task of huey that puts a row into a database of its own."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from huey import SqliteHuey

DIRECTORY = Path(os.environ["ROWS_DIRECTORY"])
huey = SqliteHuey(filename=str(DIRECTORY / "huey.db"), fsync=True)


@huey.task()  # type: ignore[untyped-decorator,unused-ignore]
def put(key: int) -> int:
    """Insert a row and commit it."""
    rows = sqlite3.connect(DIRECTORY / "rows.db", isolation_level=None)
    rows.execute("PRAGMA journal_mode=wal")
    rows.execute("PRAGMA synchronous=full")
    rows.execute("CREATE TABLE IF NOT EXISTS rows (key INTEGER)")
    rows.execute("INSERT INTO rows VALUES (?)", (key,))
    rows.close()
    return key
