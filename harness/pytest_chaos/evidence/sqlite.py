"""The questions to any SQLite file: header, integrity, number of rows and the newest rows.

They are asked of a scratch copy, which a connection may change (it rolls back a hot journal, it
reads a log in). The content is not trusted: no query can write, attach a file or run unsafe SQL
functions from the schema (SQLite, "Defense Against The Dark Arts"). All questions together have a
time limit.
"""

from __future__ import annotations

import sqlite3
import struct
import time
import urllib.parse
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pytest_chaos.evidence.limits import Limits
    from pytest_chaos.model.values import Json

_HEADER: Final = struct.Struct(">16sHBBBBBBIIIIIIIIIiIi20xII")
_WAL_HEADER: Final = struct.Struct(">IIIIIIII")
_ENCODINGS: Final = {1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}
_JOURNAL_MODES: Final = {1: "rollback journal", 2: "wal"}
_BLOB_PREVIEW_BYTES: Final = 64
_INTEGRITY_LINES_MAX: Final = 100
_VM_STEPS_PER_CHECK: Final = 10_000
_ROWID_NAMES: Final = ("rowid", "_rowid_", "oid")

Scalar = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Header:
    """The first 100 bytes of a database file (SQLite, "Database File Format", 1.3)."""

    page_size_bytes: int
    journal_mode: str
    change_counter: int
    page_count: int
    freelist_pages: int
    schema_cookie: int
    text_encoding: str
    user_version: int
    application_id: int
    written_by: str


@dataclass(frozen=True, slots=True)
class WalHeader:
    """The head of a write-ahead log. ``frames`` follows from its size: valid or not."""

    page_size_bytes: int
    checkpoint_sequence: int
    salt: str
    frames: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its number of rows and its newest rows as JSON objects, or an error."""

    name: str
    row_count: int | None = None
    order: str = ""
    rows: tuple[dict[str, Json], ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a query of the user's, or an error."""

    query: str
    sql: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Json, ...], ...] = ()
    error: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a database. ``integrity`` is ``("ok",)`` when it is whole."""

    integrity: tuple[str, ...] = ()
    foreign_keys: tuple[str, ...] = ()
    pragmas: dict[str, Json] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    tables_left_out: int = 0
    answers: tuple[Answer, ...] = ()
    error: str = ""


def read_header(content: bytes) -> Header:
    """Read a database file's first 100 bytes. Raises ValueError with what is wrong."""
    if not content:
        msg = "the file is empty: nothing was ever written to it, or all of it is still in the write-ahead log"
        raise ValueError(msg)
    if len(content) < _HEADER.size:
        msg = f"the file has {len(content)} bytes, a SQLite header has {_HEADER.size}"
        raise ValueError(msg)
    values = _HEADER.unpack_from(content)
    if values[0] != b"SQLite format 3\0":
        msg = f"the file does not begin like a SQLite file but with {values[0]!r}"
        raise ValueError(msg)
    version = values[21]
    return Header(
        page_size_bytes=65536 if values[1] == 1 else values[1],
        journal_mode=_JOURNAL_MODES.get(values[2], f"unknown ({values[2]})"),
        change_counter=values[8],
        page_count=values[9],
        freelist_pages=values[11],
        schema_cookie=values[12],
        text_encoding=_ENCODINGS.get(values[16], f"unknown ({values[16]})"),
        user_version=values[17],
        application_id=values[19],
        written_by=f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}",
    )


def read_wal_header(content: bytes, size_bytes: int) -> WalHeader | None:
    """Read the head of a write-ahead log of this size, or None if it is empty or no log."""
    if len(content) < _WAL_HEADER.size:
        return None
    magic, _, page_size, sequence, salt_1, salt_2, _, _ = _WAL_HEADER.unpack_from(content)
    if magic not in (0x377F0682, 0x377F0683) or not page_size:
        return None
    frames = (size_bytes - _WAL_HEADER.size) // (page_size + 24)
    return WalHeader(page_size, sequence, f"{salt_1:08x}{salt_2:08x}", frames)


def ask(scratch: Path, queries: Mapping[str, str], limits: Limits) -> Contents:
    """Ask a scratch copy everything. A broken file raises nothing: the answer has the error."""
    try:
        with _open(scratch, limits.database_s_max) as connection:
            names = _table_names(connection)
            return Contents(
                integrity=_lines(connection, f"PRAGMA integrity_check({_INTEGRITY_LINES_MAX})"),
                foreign_keys=_foreign_keys(connection),
                pragmas=_pragmas(connection),
                tables=tuple(_table(connection, name, limits) for name in names[: limits.tables_max]),
                tables_left_out=max(0, len(names) - limits.tables_max),
                answers=tuple(_answer(connection, name, sql, limits) for name, sql in queries.items()),
            )
    except sqlite3.Error as error:
        answers = tuple(Answer(name, sql, error="the database cannot be read") for name, sql in queries.items())
        return Contents(answers=answers, error=_why(error))


def plain(value: Scalar, length_max: int) -> Json:
    """Return a SQLite value as JSON: the first bytes of a blob, the beginning of a long text."""
    if isinstance(value, bytes):
        return {"blob": value[:_BLOB_PREVIEW_BYTES].hex(), "bytes": len(value)}
    if isinstance(value, str) and len(value) > length_max:
        return f"{value[:length_max]}… [cut: {len(value)} characters]"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


@contextmanager
def _open(path: Path, time_s_max: float) -> Iterator[sqlite3.Connection]:
    uri = f"file:{urllib.parse.quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)) as connection:
        connection.text_factory = lambda content: content.decode(errors="backslashreplace")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.set_authorizer(_nothing_outside)
        connection.set_progress_handler(_deadline(time_s_max), _VM_STEPS_PER_CHECK)
        yield connection


def _nothing_outside(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_DENY if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH) else sqlite3.SQLITE_OK


def _deadline(time_s_max: float) -> Callable[[], int]:
    end = time.monotonic() + time_s_max
    return lambda: int(time.monotonic() > end)


def _table_names(connection: sqlite3.Connection) -> tuple[str, ...]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return tuple(name for (name,) in names if not name.startswith("sqlite_") or name == "sqlite_sequence")


def _lines(connection: sqlite3.Connection, sql: str) -> tuple[str, ...]:
    try:
        return tuple(" ".join(str(value) for value in row) for row in connection.execute(sql))
    except sqlite3.Error as error:
        return (_why(error),)


def _foreign_keys(connection: sqlite3.Connection) -> tuple[str, ...]:
    try:
        rows = connection.execute("PRAGMA foreign_key_check").fetchmany(_INTEGRITY_LINES_MAX)
    except sqlite3.Error as error:
        return (_why(error),)
    return tuple(f"row {rowid} of {table} refers to nothing in {parent}" for table, rowid, parent, _ in rows)


def _pragmas(connection: sqlite3.Connection) -> dict[str, Json]:
    names = ("journal_mode", "auto_vacuum", "encoding", "page_count", "freelist_count", "page_size", "user_version")
    values = {name: _lines(connection, f"PRAGMA {name}") for name in names}
    return {name: lines[0] if lines else "" for name, lines in values.items()}


def _table(connection: sqlite3.Connection, name: str, limits: Limits) -> Table:
    quoted = '"' + name.replace('"', '""') + '"'
    count: int | None = None
    order = ""
    try:
        count = int(connection.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0])  # noqa: S608 - quoted
        order = _order(connection, quoted, name)
        suffix = f" ORDER BY {order}" if order else ""
        cursor = connection.execute(f"SELECT * FROM {quoted}{suffix} LIMIT {limits.rows_max}")  # noqa: S608 - quoted
        columns = [column[0] for column in cursor.description]
        rows = [_row(columns, row, limits) for row in cursor]
        return Table(name, count, order, tuple(reversed(rows)) if order else tuple(rows))
    except sqlite3.Error as error:
        return Table(name, count, order, error=_why(error))


def _order(connection: sqlite3.Connection, quoted: str, name: str) -> str:
    """Return the order with the newest rows first: by row id, or else by primary key."""
    columns = {str(row[1]).lower() for row in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (name,))}
    for rowid in _ROWID_NAMES:
        if rowid not in columns:
            try:
                connection.execute(f"SELECT {rowid} FROM {quoted} LIMIT 0")  # noqa: S608 - quoted
            except sqlite3.OperationalError:
                break
            return f"{rowid} DESC"
    keys = connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (name,)).fetchall()
    return ", ".join('"{}" DESC'.format(key.replace('"', '""')) for (key,) in keys)


def _row(columns: list[str], row: tuple[Scalar, ...], limits: Limits) -> dict[str, Json]:
    """Return a row as an object; with very many columns its values are cut shorter."""
    length_max = min(limits.value_length_max, max(16, 16 * limits.value_length_max // max(1, len(columns))))
    return {column: plain(value, length_max) for column, value in zip(columns, row, strict=True)}


def _answer(connection: sqlite3.Connection, name: str, sql: str, limits: Limits) -> Answer:
    try:
        cursor = connection.execute(sql)
        columns = tuple(str(column[0]) for column in cursor.description or ())
        rows = cursor.fetchmany(limits.answer_rows_max + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return Answer(name, sql, error=_why(error))
    kept = tuple(
        tuple(plain(value, limits.value_length_max) for value in row) for row in rows[: limits.answer_rows_max]
    )
    return Answer(name, sql, columns, kept, cut=len(rows) > len(kept))


def _why(error: Exception) -> str:
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_INTERRUPT":
        return "interrupted: it took longer than the time there is for one database"
    return f"{error} ({code})" if code else str(error)
