"""Finds the SQLite files of a run and copies them, byte for byte, before anything opens them.

Opening a SQLite file may change it: a hot journal is rolled back, a write-ahead log is
checkpointed. So the four files are copied as they lie. Questions are asked of another copy
(``scratch``), which is then removed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.evidence.limits import Problems, full
from pytest_chaos.evidence.reading import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.evidence.limits import Limits

FOLDER: Final = "database"
SIDE_FILES: Final = ("", "-wal", "-shm", "-journal")
"""The files of a SQLite database; the first is the file itself."""

_MAGIC: Final = b"SQLite format 3\0"
_SIDE_MAGICS: Final = {
    "-wal": (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"),
    "-journal": (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7",),
}
_NAMES: Final = frozenset({".db", ".db3", ".sqlite", ".sqlite3"})
_BLOCK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of a database. ``modified`` is UTC in ISO 8601; ``locks`` is the kernel's list."""

    suffix: str
    size_bytes: int
    modified: str
    locks: str = ""
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Database:
    """A database of the run. ``head`` and ``wal_head`` are the first bytes of file and log."""

    name: str
    path: Path
    files: tuple[FileFacts, ...]
    head: bytes = b""
    wal_head: bytes = b""
    copy: Path | None = None

    def size_bytes(self, suffix: str = "") -> int:
        """Return the size of one of the files; 0 when there is none."""
        return sum(file.size_bytes for file in self.files if file.suffix == suffix)


def find(work: Path, named: Iterable[Path], limits: Limits, problems: Problems) -> tuple[Path, ...]:
    """Return the SQLite files that the test named, then those under ``work``, each once.

    A file counts if its header says so, if a log or a journal beside it says so (the file itself
    may be empty, broken or missing), or if its name ends like one.
    """
    found: dict[Path, None] = {}
    for path in named:
        _note_named(path, found, problems)
    for path in _files(work, limits, problems):
        with problems.catching(f"the search at {printable(path)}"):
            if (database := _database_of(path)) is not None:
                found.setdefault(database)
    paths = tuple(found)
    if len(paths) > limits.databases_max:
        left_out = ", ".join(printable(path) for path in paths[limits.databases_max :][:20])
        problems.cut(
            "databases", f"{len(paths)} SQLite files, of which {limits.databases_max} are here; not: {left_out}"
        )
    return paths[: limits.databases_max]


def copy_all(paths: Iterable[Path], pack: Path, limits: Limits, problems: Problems) -> tuple[Database, ...]:
    """Copy each database to ``pack/database/NAME/``. Raises OSError only for a full disk."""
    databases: list[Database] = []
    taken: set[str] = set()
    left_bytes = limits.copied_bytes_max
    for path in paths:
        with problems.catching(printable(path)):
            name = _name(path, taken)
            database = _describe(name, path, problems)
            size = sum(file.size_bytes for file in database.files)
            if size > min(limits.database_bytes_max, left_bytes):
                problems.cut(name, f"{size} bytes are more than may be copied: described from its header only")
            else:
                left_bytes -= size
                database = _copy(database, pack / FOLDER / name, problems)
            databases.append(database)
    return tuple(databases)


def scratch(database: Database, folder: Path) -> Path | None:
    """Copy the copy for a connection that may change it; return None if there is nothing to open.

    The shared memory file is left out: it is an index of the log, which a connection rebuilds.
    """
    if database.copy is None:
        return None
    folder.mkdir(parents=True)
    for suffix in SIDE_FILES:
        source = database.copy.with_name(database.copy.name + suffix)
        if suffix != "-shm" and source.exists():
            shutil.copyfile(source, folder / source.name)
    return folder / database.copy.name if (folder / database.copy.name).exists() else None


def printable(path: Path | str) -> str:
    """Return a path as text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _note_named(path: Path, found: dict[Path, None], problems: Problems) -> None:
    with problems.catching(printable(path)):
        resolved = path.resolve()
        if not any(resolved.with_name(resolved.name + suffix).exists() for suffix in SIDE_FILES):
            problems.problem(printable(path), "the test named this database, but there is no such file")
            return
        found.setdefault(resolved)


def _files(work: Path, limits: Limits, problems: Problems) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.problem(f"the search at {printable(error.filename or work)}", error.strerror or error)

    seen = 0
    for folder, folders, names in os.walk(work.resolve(), onerror=unreadable):
        folders.sort()
        for name in sorted(names):
            seen += 1
            if seen > limits.searched_files_max:
                problems.cut(
                    "databases", f"only the first {limits.searched_files_max} files under {work} were looked at"
                )
                return
            yield Path(folder, name)


def _database_of(path: Path) -> Path | None:
    """Return the database that this file is or belongs to, or None."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return None
    for suffix, magics in _SIDE_MAGICS.items():
        if path.name.endswith(suffix) and path.name != suffix:
            return path.with_name(path.name.removesuffix(suffix)) if _starts_with(path, magics) else None
    if path.name.endswith("-shm"):
        return None
    return path if path.suffix.lower() in _NAMES or _starts_with(path, (_MAGIC,)) else None


def _starts_with(path: Path, magics: tuple[bytes, ...]) -> bool:
    with reading(path) as stream:
        return stream.read(16).startswith(magics)


def _name(path: Path, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", printable(path.name)).lstrip(".")[:100] or "database"
    name, number = plain, 1
    while name.lower() in taken:
        number += 1
        name = f"{plain}.{number}"
    taken.add(name.lower())
    return name


def _describe(name: str, path: Path, problems: Problems) -> Database:
    files: list[FileFacts] = []
    locks = _locks()
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            status = path.with_name(path.name + suffix).stat()
            modified = datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC).isoformat()
            held = "; ".join(text for inode, text in locks if inode == status.st_ino)
            files.append(FileFacts(suffix, status.st_size, modified, held))
    if not any(file.suffix == "" for file in files):
        problems.problem(name, "the database file is missing, only its side files are there")
    return Database(
        name, path, tuple(files), _head(path, problems), _head(path.with_name(path.name + "-wal"), problems)
    )


def _head(path: Path, problems: Problems) -> bytes:
    try:
        with reading(path) as stream:
            return stream.read(100)
    except FileNotFoundError:
        return b""
    except OSError as error:
        problems.problem(printable(path), f"cannot be read: {error.strerror or error}")
        return b""


def _locks() -> list[tuple[int, str]]:
    """Return inode and text of each file lock that the kernel shows (proc_locks(5))."""
    found: list[tuple[int, str]] = []
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            match = re.search(r"\d+: (.*?) [0-9a-f]+:[0-9a-f]+:(\d+) (.*)", line)
            if match is not None:
                found.append((int(match[2]), f"{' '.join(match[1].split())} bytes {match[3]}"))
    return found


def _copy(database: Database, folder: Path, problems: Problems) -> Database:
    folder.mkdir(parents=True)
    files: list[FileFacts] = []
    for file in database.files:
        source = database.path.with_name(database.path.name + file.suffix)
        size = _copy_file(source, folder / (database.name + file.suffix), problems)
        if size is not None and size != file.size_bytes:
            problems.problem(
                printable(source), f"grew or shrank while it was copied: {file.size_bytes} bytes, then {size}"
            )
        files.append(replace(file, copied=size is not None))
    return replace(database, files=tuple(files), copy=folder / database.name)


def _copy_file(source: Path, destination: Path, problems: Problems) -> int | None:
    """Copy as much of a file as can be read and return its size; None if that is nothing."""
    size = 0
    try:
        with reading(source) as stream, destination.open("xb") as copy:
            while block := stream.read(_BLOCK_BYTES):
                size += copy.write(block)
    except OSError as error:
        if full(error):
            raise
        problems.problem(printable(source), f"could be copied up to byte {size} only: {error.strerror or error}")
        if not size:
            destination.unlink(missing_ok=True)
        return size or None
    return size
