"""SQLite's errors as errors of the recovery core: the one place that knows result codes (sqlite.org/rescode.html)."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final, TypeAlias

from recovery.errors import (
    CorruptDatabase,
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidSetting,
    InvalidTask,
    RecoveryError,
    StoreError,
)

Refusal: TypeAlias = sqlite3.Error | UnicodeEncodeError | OverflowError
REFUSALS: Final = (sqlite3.Error, UnicodeEncodeError, OverflowError)
"""What Python's module raises for a statement: SQLite's errors, and those of arguments that no column can hold."""

_PRIMARY: Final = 0xFF

# The index of the log is a file of its own, and SQLite has no code of its own for a disk on which it finds no room.
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def result_code(error: sqlite3.Error) -> int:
    """Return the extended result code, or 0 for an error that Python's module raised without asking SQLite."""
    return getattr(error, "sqlite_errorcode", 0)


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection was in the way."""
    return result_code(error) & _PRIMARY in _LOCKED


def is_unknown_parent(error: sqlite3.Error) -> bool:
    """Tell whether a row refers to one that does not exist."""
    return result_code(error) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY


def translated(error: Refusal, path: str, busy_timeout_s: float) -> RecoveryError:
    """Return the error that says what ``error`` means for the database at ``path``; raise it ``from`` the original."""
    if isinstance(error, UnicodeEncodeError):
        return InvalidTask(f"Expected text that UTF-8 can hold but got {error.object!r}; remove its lone surrogates.")
    if isinstance(error, OverflowError) or _is_unbound(error):
        return InvalidSetting(
            f"Expected texts, numbers of 64 bits and None for the columns of {path} but '{error}'; "
            "give values that a column can hold."
        )
    extended = result_code(error)
    code = extended & _PRIMARY
    if code in _LOCKED:
        return DatabaseLocked(
            f"Expected to get hold of {path} within {busy_timeout_s:g} s but another connection kept it locked "
            f"({error}); try again, or raise busy_timeout_s."
        )
    if extended in _FULL:
        return DatabaseFull(
            f"Expected room for a write to {path} but the disk or the size limit is full; free some space."
        )
    if code in _CORRUPT or extended == sqlite3.SQLITE_IOERR_SHORT_READ:
        return CorruptDatabase(
            f"Expected a sound SQLite database at {path} but SQLite says '{error}'; "
            "restore a copy, or move the file away."
        )
    if code == sqlite3.SQLITE_READONLY or (code == sqlite3.SQLITE_CANTOPEN and _is_write_protected(path)):
        return DatabaseReadOnly(
            f"Expected to be allowed to write {path} and its folder but am not; check their permissions."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return DatabaseUnavailable(f"Expected to open {path} but could not; it must be a file in a folder that exists.")
    if code == sqlite3.SQLITE_IOERR:
        return DatabaseUnavailable(
            f"Expected to read and write {path} but SQLite says '{error}'; check the device it is on."
        )
    if code == sqlite3.SQLITE_TOOBIG:
        return StoreError(
            f"Expected values of up to a gigabyte for {path} but SQLite says '{error}'; keep large content in files."
        )
    return StoreError(f"Expected SQLite to carry out a statement on {path} but it says '{error}'; please report this.")


def _is_unbound(error: sqlite3.Error) -> bool:
    """Tell whether Python's module could not make a value of a column out of an argument."""
    return isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError) and "binding parameter" in str(error)


def _is_write_protected(path: str) -> bool:
    """Tell whether a file is there that we may not write, or may not put a log next to."""
    file = Path(path)
    return file.is_file() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
