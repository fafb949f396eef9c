"""Kill a program within the closing checkpoint of a DuckDB database; run it as a script.

The closing checkpoint rewrites a block of 256 KiB in place. The kernel looks for a SIGKILL between
the pages of a write, so a kill within it leaves a part. Rows were committed before, and have to be
there after each kill.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import duckdb

_VALUE: Final = b"x" * 5000
_ROWS: Final = 3
_BLOCK: Final = slice(12_288, 12_296)
"""The checksum of the block that is rewritten, which is first in it."""
_CLOSE_S: Final = 20.0


def opened(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the database."""
    return duckdb.connect(str(path), config={"threads": 1})


def copied(source: Path, path: Path) -> None:
    """Copy the database page by page: a write goes on in the pieces that the cache has."""
    content = source.read_bytes()
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(content), mmap.PAGESIZE):
            file.write(content[at : at + mmap.PAGESIZE])


def inserts_and_closes(path: Path, told: int) -> None:
    """Commit three rows, say so, and close the database."""
    connection = opened(path)
    for key in range(1, _ROWS + 1):
        connection.execute("INSERT INTO rows VALUES (?, ?)", [key, _VALUE])
    os.write(told, b"c")
    connection.close()
    os._exit(0)


def killed(path: Path) -> int:
    """Run the program, and kill it once its block begins to change; return its exit code.

    The page cache is one for all: a mapping shows a write while it goes on.
    """
    reader, writer = os.pipe()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as seen:
        before = seen[_BLOCK]
        if not (pid := os.fork()):
            inserts_and_closes(path, writer)
        os.close(writer)
        os.read(reader, 1)
        ends_s = time.monotonic() + _CLOSE_S
        while seen[_BLOCK] == before and time.monotonic() < ends_s:
            pass
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    return os.waitstatus_to_exitcode(status)


def damage_of(path: Path) -> str:
    """Return what DuckDB says of the file, or nothing if all rows are there."""
    try:
        with opened(path) as connection:
            count = len(connection.execute("SELECT key, value FROM rows").fetchall())
    except duckdb.Error as error:
        return f"{type(error).__name__}: {str(error).partition(' in ')[0][:160]}"
    return "" if count == _ROWS else f"{count} of {_ROWS} rows"


def main() -> int:
    """Kill for so many seconds, print what was found, and return 0 if it was nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", default="/dev/shm", help="Where the databases are; its file system is tried.")
    given = parser.parse_args()
    kills = damaged = 0
    said: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        first, path = Path(folder, "first.duckdb"), Path(folder, "rows.duckdb")
        with opened(first) as connection:
            connection.execute("CREATE TABLE rows (key INTEGER, value BLOB)")
        ends_s = time.monotonic() + given.seconds
        while time.monotonic() < ends_s:
            for leftover in Path(folder).glob("rows.duckdb*"):
                leftover.unlink()
            copied(first, path)
            kills += killed(path) == -signal.SIGKILL
            if found := damage_of(path):
                damaged += 1
                said[found] = said.get(found, 0) + 1
    print(f"{kills:,} kills within a closing checkpoint: {damaged:,} databases damaged")
    for text, count in said.items():
        print(f"  {count:,}: {text}")
    return 0 if not damaged else 1


if __name__ == "__main__":
    sys.exit(main())
