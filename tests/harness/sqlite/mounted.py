"""Watch a program that uses a database in a folder, given as the last argument, and print findings.

``tests.harness.sqlite.fuse`` calls it with a folder that it has mounted.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import tempfile
from pathlib import Path

from tests.harness.sqlite.watching import watched


def writes() -> None:
    """Write a row, if the file system lets it."""
    with contextlib.suppress(sqlite3.OperationalError):
        connection = sqlite3.connect("state.db", timeout=0)
        connection.execute("CREATE TABLE kept (value)")
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.commit()
        connection.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as aside:
        judged = watched(writes, Path(aside), Path(sys.argv[1]))
    found = [[finding.signature, finding.text] for finding in judged.findings]
    print(json.dumps({"databases": judged.databases, "found": found}))
