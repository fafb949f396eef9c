"""Compares the folder that was found with one that was promised, or that survives: file by file.

Text becomes a unified diff; a SQLite database its rows, of a copy that nobody else opens; any other
file the bytes that differ, in hex. Secrets are masked. Nothing in a folder is run, and no link is
followed.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.evidence import manifest
from pytest_chaos.evidence.limits import Limits
from pytest_chaos.evidence.redact import clean
from pytest_chaos.evidence.sqlite import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_chaos.evidence.sqlite import Contents

FILES_MAX: Final = 400
FILE_BYTES_MAX: Final = 4 << 20
"""A larger file is compared by its size alone."""
LINES_MAX: Final = 60
"""Lines of one difference."""
LINE_CHARACTERS_MAX: Final = 300
PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
_HEX_BYTES: Final = 16
_HEX_ROWS_MAX: Final = 8
_SHOWN_MAX: Final = 24
"""Files whose difference is shown in full."""
_DATABASE: Final = Limits(rows_max=200, tables_max=40, database_s_max=5.0, value_length_max=200)
_MAGIC: Final = b"SQLite format 3\0"
_SIDES: Final = ("-wal", "-shm", "-journal")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a difference. ``kind``: gone (promised alone), new (found alone), same, place."""

    kind: str
    text: str


class FileDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How one file differs. ``status``: missing, extra, changed. ``kind``: text, rows or bytes."""

    path: str
    status: str
    kind: str
    summary: str
    lines: tuple[Line, ...] = ()
    lines_omitted: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How two folders differ. ``same`` counts the files without a difference."""

    files: tuple[FileDifference, ...]
    same: int = 0
    files_omitted: int = 0
    problem: str = ""


def compare(root: Path, found: str, reference: str) -> Difference:
    """Compare two folders below ``root``. A folder that cannot be read becomes a problem."""
    try:
        ours, theirs = _read(root, found), _read(root, reference)
    except (OSError, ValueError) as error:
        return Difference(files=(), problem=f"the states cannot be compared: {error}")
    return compared(ours, theirs)


def compared(found: Mapping[str, bytes | None], reference: Mapping[str, bytes | None]) -> Difference:
    """Compare two folders by the content of each path; None is content that is too large."""
    paths = sorted({*found, *reference})
    databases = [path for path in paths if _is_database(path, found, reference)]
    sides = {path + side for path in databases for side in _SIDES}
    differences: list[FileDifference] = []
    same = 0
    for path in paths:
        if path in sides:
            continue
        each = (_rows_of if path in databases else _file)(path, found, reference)
        if each is None:
            same += 1
        else:
            differences.append(each)
    return Difference(
        files=tuple(differences[:_SHOWN_MAX]), same=same, files_omitted=max(0, len(differences) - _SHOWN_MAX)
    )


def _read(root: Path, name: str) -> dict[str, bytes | None]:
    """Read a folder below the root. Raises OSError, and ValueError for a path that leads out."""
    if not manifest.inside(name):
        msg = f"{name!r} is not a folder of the pack"
        raise ValueError(msg)
    if not (root / name).is_dir():
        msg = f"there is no folder {name!r}"
        raise ValueError(msg)
    found: dict[str, bytes | None] = {}
    for folder, folders, names in os.walk(root / name):
        folders.sort()
        for each in sorted(names):
            path = Path(folder, each)
            if len(found) >= FILES_MAX:
                return found
            relative = path.relative_to(root / name).as_posix()
            if path.is_symlink():
                found[relative] = f"-> {os.readlink(path)}".encode(errors="backslashreplace")
            elif path.is_file():
                found[relative] = _content(root, path.relative_to(root).as_posix())
    return found


def _content(root: Path, name: str) -> bytes | None:
    with manifest.opened(root, name) as stream:
        content = stream.read(FILE_BYTES_MAX + 1)
    return None if len(content) > FILE_BYTES_MAX else content


def _is_database(path: str, found: Mapping[str, bytes | None], reference: Mapping[str, bytes | None]) -> bool:
    contents = [files.get(path) or b"" for files in (found, reference)]
    return any(content.startswith(_MAGIC) for content in contents) and all(
        content.startswith(_MAGIC) or not content for content in contents
    )


def _file(path: str, found: Mapping[str, bytes | None], reference: Mapping[str, bytes | None]) -> FileDifference | None:
    ours, theirs = found.get(path), reference.get(path)
    if path in found and path in reference and ours == theirs:
        return None
    status = "changed" if path in found and path in reference else "extra" if path in found else "missing"
    if (path in found and ours is None) or (path in reference and theirs is None):
        return FileDifference(path=shown(path), status=status, kind="bytes", summary="too large to be compared")
    old, new = _text(theirs or b""), _text(ours or b"")
    if old is None or new is None:
        return _bytes(path, status, ours or b"", theirs or b"")
    return _lines(path, status, old, new)


def _text(content: bytes) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _lines(path: str, status: str, old: str, new: str) -> FileDifference:
    before, after = old.splitlines(), new.splitlines()
    lines: list[Line] = []
    for line in difflib.unified_diff(before[:20_000], after[:20_000], lineterm="", n=2):
        if line.startswith(("---", "+++")) and not lines:
            continue
        kind = {"+": "new", "-": "gone", "@": "place"}.get(line[:1], "same")
        lines.append(Line(kind=kind, text=shown(line if kind == "place" else line[1:])))
    gone, fresh = sum(each.kind == "gone" for each in lines), sum(each.kind == "new" for each in lines)
    summary = f"{_count(gone, 'line')} promised and not there, {_count(fresh, 'line')} there and not promised"
    if not lines:
        summary = "the file is empty" if not new and not old else "only the end of a line differs"
    return _difference(path, status, "text", summary, lines)


def _difference(path: str, status: str, kind: str, summary: str, lines: Sequence[Line]) -> FileDifference:
    return FileDifference(
        path=shown(path),
        status=status,
        kind=kind,
        summary=summary,
        lines=tuple(lines[:LINES_MAX]),
        lines_omitted=max(0, len(lines) - LINES_MAX),
    )


def _bytes(path: str, status: str, found: bytes, reference: bytes) -> FileDifference:
    """Show the bytes that differ, and which pages and sectors they are in."""
    length = max(len(found), len(reference))
    rows = [at for at in range(0, length, _HEX_BYTES) if found[at : at + _HEX_BYTES] != reference[at : at + _HEX_BYTES]]
    pages = sorted({at // PAGE_BYTES for at in rows})
    torn = [page for page in pages if _is_torn(found, reference, page)]
    differ = f"{_count(len(pages), 'page')} of {PAGE_BYTES:,} bytes differ"
    summary = f"{len(found):,} bytes, promised {len(reference):,}; {differ}"
    if torn:
        summary += f", {len(torn)} of them in part: torn (page {', '.join(map(str, torn[:5]))})"
    lines: list[Line] = []
    for at in rows[:_HEX_ROWS_MAX]:
        lines.append(Line(kind="place", text=f"byte {at:,}, page {at // PAGE_BYTES}"))
        if at < len(reference):
            lines.append(Line(kind="gone", text=hex_row(reference, at)))
        if at < len(found):
            lines.append(Line(kind="new", text=hex_row(found, at)))
    more = len(rows) - _HEX_ROWS_MAX
    difference = _difference(path, status, "bytes", summary, lines)
    return msgspec.structs.replace(difference, lines_omitted=max(0, more) * 2)


def _is_torn(found: bytes, reference: bytes, page: int) -> bool:
    """Whether a page has sectors of both: some of it was written, and some was not."""
    start, end = page * PAGE_BYTES, min(len(found), len(reference), (page + 1) * PAGE_BYTES)
    sectors = [
        found[at : at + SECTOR_BYTES] == reference[at : at + SECTOR_BYTES] for at in range(start, end, SECTOR_BYTES)
    ]
    return any(sectors) and not all(sectors)


def hex_row(content: bytes, at: int) -> str:
    r"""Return 16 bytes as a line of a hex dump.

    >>> hex_row(b"ab\x00", 0)
    '00000000  61 62 00                                         ab.'
    """
    row = content[at : at + _HEX_BYTES]
    letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
    return f"{at:08x}  {row.hex(' '):<47}  {letters}"


def _rows_of(
    path: str, found: Mapping[str, bytes | None], reference: Mapping[str, bytes | None]
) -> FileDifference | None:
    """Compare a database by its rows, and by what its integrity check says."""
    ours, theirs = (_asked(path, files) for files in (found, reference))
    before, after = _table_rows(theirs), _table_rows(ours)
    lines: list[Line] = []
    for label, kind, contents in (("promised", "gone", theirs), ("found", "new", ours)):
        if contents is not None and (contents.error or contents.integrity not in ((), ("ok",))):
            said = contents.error or "; ".join(contents.integrity[:5])
            lines.append(Line(kind=kind, text=shown(f"{label}: {said}")))
    for table in dict.fromkeys([*before, *after]):
        old, new = Counter(before.get(table, ())), Counter(after.get(table, ()))
        gone, fresh = list((old - new).elements()), list((new - old).elements())
        if gone or fresh or (table in before) != (table in after):
            has = "" if table in before and table in after else ", which only one of them has"
            lines.append(Line(kind="place", text=shown(f"table {table}{has}")))
            lines += [Line(kind="gone", text=shown(row)) for row in gone]
            lines += [Line(kind="new", text=shown(row)) for row in fresh]
    if not lines:
        return None
    rows = [each for each in lines if each.kind in {"gone", "new"}]
    gone_count, new_count = (sum(each.kind == kind for each in rows) for kind in ("gone", "new"))
    status = "changed" if path in found and path in reference else "extra" if path in found else "missing"
    summary = f"{_count(gone_count, 'row')} promised and not there, {_count(new_count, 'row')} there and not promised"
    return _difference(path, status, "rows", summary, lines)


def _asked(path: str, files: Mapping[str, bytes | None]) -> Contents | None:
    """Ask a copy of a database for its rows; None where there is no file."""
    content = files.get(path)
    if content is None:
        return None
    with tempfile.TemporaryDirectory(prefix="chaos-report-") as folder:
        copy = Path(folder, "copy.db")
        copy.write_bytes(content)
        for side in ("-wal", "-journal"):
            if (beside := files.get(path + side)) is not None:
                copy.with_name(copy.name + side).write_bytes(beside)
        return ask(copy, {}, _DATABASE)


def _table_rows(contents: Contents | None) -> dict[str, list[str]]:
    tables = contents.tables if contents is not None else ()
    return {table.name: [_row(row) for row in table.rows] for table in tables}


def _row(row: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={msgspec.json.encode(value).decode(errors='replace')}" for name, value in row.items())


def shown(text: str) -> str:
    """Return a text of a state without secrets, and not longer than a line may be."""
    safe = clean(text[: 4 * LINE_CHARACTERS_MAX].encode(errors="backslashreplace").decode())
    more = len(text) - LINE_CHARACTERS_MAX
    return safe if more <= 0 else f"{safe[:LINE_CHARACTERS_MAX]} … ({more:,} more)"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
