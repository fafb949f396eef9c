"""The end of a run: what it has left, as parts of records.

A part is a table of a database, or a file. A record is a row, an object of JSON, or a line: its
fields with their values as texts. So the comparison has one rule for all.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

EndRecord: TypeAlias = "tuple[tuple[str, str], ...]"
"""Field and value, in the order of the fields. Of a line and of bytes the field has no name."""

SQLITE_HEAD: Final = b"SQLite format 3\0"
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_TEXT_BYTES_MAX: Final = 4 << 20
"""Of a larger file the digest alone is compared."""
_ROWS_MAX: Final = 100_000
_DEPTH_MAX: Final = 32
ROWS, KEYS, LINES, BYTES, LINK, UNREADABLE = "rows", "keys", "lines", "bytes", "link", "unreadable"


class EndPart(NamedTuple):
    """A table or a file. ``kind`` is rows, keys (of JSON), lines, bytes, link or unreadable."""

    kind: str
    records: tuple[EndRecord, ...]


class End(NamedTuple):
    """What a run has left: parts by path (and table), its exit code, and what it has printed."""

    parts: Mapping[str, EndPart]
    exit_code: int | None = 0
    output: str = ""


def end_of(directory: Path, is_compared: Callable[[str], bool], *, exit_code: int | None = 0, output: str = "") -> End:
    """Return what is in a folder; databases are opened, which may change the folder."""
    parts: dict[str, EndPart] = {}
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    databases = {path for path in paths if not path.is_symlink() and _head(path) == SQLITE_HEAD}
    for path in paths:
        name = readable(str(path.relative_to(directory)))
        if not is_compared(name) or _is_companion(path, databases):
            continue
        if path in databases:
            parts.update(_tables(path, name))
        else:
            parts[name] = _file(path)
    return End(parts, exit_code, output)


def lines_of(output: str) -> EndPart:
    """Return what was printed as a part."""
    return EndPart(LINES, tuple((("", line.rstrip()),) for line in output.splitlines() if line.strip()))


def _head(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(SQLITE_HEAD))
    return b""


def _is_companion(path: Path, databases: set[Path]) -> bool:
    return any(
        path.name.endswith(ending) and path.with_name(path.name.removesuffix(ending)) in databases
        for ending in _COMPANIONS
    )


def _tables(path: Path, name: str) -> Iterator[tuple[str, EndPart]]:
    """Yield the tables of a database; one that cannot be read is a part that says why."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.text_factory = lambda text: text.decode(errors="backslashreplace")
            (sound,) = connection.execute("pragma quick_check(1)").fetchone()
            if sound != "ok":
                yield name, EndPart(UNREADABLE, ((("", str(sound)),),))
                return
            found = connection.execute(
                "select name from sqlite_master where type = 'table' and name not like 'sqlite_%' order by name"
            )
            for (table,) in found.fetchall():
                yield f"{name} table {table}", _rows(connection, table)
    except sqlite3.Error as error:
        yield name, EndPart(UNREADABLE, ((("", f"{type(error).__name__}: {error}"),),))


def _rows(connection: sqlite3.Connection, table: str) -> EndPart:
    quoted = table.replace('"', '""')
    cursor = connection.execute(f'select * from "{quoted}" limit {_ROWS_MAX}')  # noqa: S608 - a name of the database
    columns = [column[0] for column in cursor.description]
    rows = (tuple(zip(columns, map(_shown, row), strict=True)) for row in cursor)
    return EndPart(ROWS, tuple(sorted(rows)))


def _shown(value: object) -> str:
    return f"blob {_digest(value)}" if isinstance(value, bytes) else repr(value)


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()


def _file(path: Path) -> EndPart:
    if path.is_symlink():
        return EndPart(LINK, ((("", readable(str(path.readlink()))),),))
    size = path.stat().st_size
    if size > _TEXT_BYTES_MAX:
        digest = blake2b(digest_size=8)
        with path.open("rb") as file:
            while block := file.read(_TEXT_BYTES_MAX):
                digest.update(block)
        return _bytes(digest.hexdigest(), size)
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return _bytes(_digest(content), size)
    return EndPart(KEYS, records) if (records := _of_json(text)) is not None else lines_of(text)


def _bytes(digest: str, size: int) -> EndPart:
    return EndPart(BYTES, ((("", f"{size:,} bytes with digest {digest}"),),))


def _of_json(text: str) -> tuple[EndRecord, ...] | None:
    """Return an object of JSON as one record, a file of such lines as one for each; else None."""
    whole = _decoded(text)
    if isinstance(whole, dict):
        return (tuple(_fields(whole)),)
    if isinstance(whole, list):
        return tuple(tuple(_fields(each)) for each in whole)
    lines = [line for line in text.splitlines() if line.strip()]
    values = [_decoded(line) for line in lines]
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    return tuple(tuple(_fields(value)) for value in values)


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _fields(value: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    items: Sequence[tuple[str, object]] = ()
    if isinstance(value, dict):
        items = [(f"{prefix}.{key}" if prefix else str(key), each) for key, each in value.items()]
    elif isinstance(value, list):
        items = [(f"{prefix}[{place}]", each) for place, each in enumerate(value)]
    if not items or depth > _DEPTH_MAX:
        yield prefix, json.dumps(value, ensure_ascii=False)
        return
    for name, each in items:
        yield from _fields(each, name, depth + 1)
