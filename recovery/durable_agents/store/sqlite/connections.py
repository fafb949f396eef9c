"""Connections to an SQLite file, the settings they prove, and SQLite's errors as ours.

``synchronous`` belongs to a connection and silently defaults; ``journal_mode`` belongs to the file
and may be refused. So each new connection sets both and reads both back: a missing setting is an
error here, not a lost commit later. ``translated`` is the one place that knows result codes
(sqlite.org/rescode.html).
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import time
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from durable_agents.clock import is_duration
from durable_agents.errors import (
    CorruptDatabase,
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidSetting,
    InvalidTask,
    PragmaRefused,
    RecoveryError,
    StoreError,
)
from durable_agents.store.sqlite import log_size

Refusal: TypeAlias = sqlite3.Error | UnicodeEncodeError | OverflowError
REFUSALS: Final = (sqlite3.Error, UnicodeEncodeError, OverflowError)
"""The errors of a statement: SQLite's, and those for arguments that no column can hold."""

_PRIMARY: Final = 0xFF

# The index of the log is a file of its own, and SQLite has no special code for a full disk under
# it.
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def result_code(error: sqlite3.Error) -> int:
    """Return the extended result code, or 0 for an error of Python's module alone."""
    return getattr(error, "sqlite_errorcode", 0)


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection was in the way."""
    return result_code(error) & _PRIMARY in _LOCKED


def is_unknown_parent(error: sqlite3.Error) -> bool:
    """Tell whether a row refers to one that does not exist."""
    return result_code(error) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY


def translated(error: Refusal, path: str, busy_timeout_s: float) -> RecoveryError:
    """Return the error for what ``error`` means at ``path``; raise it ``from`` the original."""
    if isinstance(error, UnicodeEncodeError):
        return InvalidTask(f"text must be encodable as UTF-8; got {error.object!r}. Remove its lone surrogates.")
    if isinstance(error, OverflowError) or _is_unbound(error):
        return InvalidSetting(
            f"values for {path} must be texts, bytes, numbers of 64 bits or None; got '{error}'. "
            "Give values that a column can hold."
        )
    extended = result_code(error)
    code = extended & _PRIMARY
    if code in _LOCKED:
        return DatabaseLocked(
            f"{path} must be unlocked within {busy_timeout_s:g} s; got '{error}': another connection keeps it. "
            "Try again, or raise busy_timeout_s."
        )
    if extended in _FULL:
        return DatabaseFull(
            f"there must be room for a write to {path}; got '{error}': the disk or the size limit is full. "
            "Free some space."
        )
    if code in _CORRUPT or extended == sqlite3.SQLITE_IOERR_SHORT_READ:
        return CorruptDatabase(
            f"{path} must be a sound SQLite database; got '{error}'. Restore a copy, or move the file away."
        )
    if code == sqlite3.SQLITE_READONLY or (code == sqlite3.SQLITE_CANTOPEN and _is_write_protected(path)):
        return DatabaseReadOnly(
            f"{path} and its folder must be writable by this process; got '{error}'. Check their permissions."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return DatabaseUnavailable(f"{path} must be a file in a folder that exists; got '{error}'. Correct the path.")
    if code == sqlite3.SQLITE_IOERR:
        return DatabaseUnavailable(
            f"{path} must be readable and writable; got '{error}'. Check the device that it is on."
        )
    if code == sqlite3.SQLITE_TOOBIG:
        return StoreError(
            f"values for {path} must have at most a gigabyte; got '{error}'. Keep large content in files."
        )
    return StoreError(f"a statement on {path} must succeed; got '{error}'. Please report this.")


def _is_unbound(error: sqlite3.Error) -> bool:
    """Tell whether Python's module could not make a value of a column out of an argument."""
    return isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError) and "binding parameter" in str(error)


def _is_write_protected(path: str) -> bool:
    """Tell whether a file is there that we may not write, or may not put a log next to."""
    file = Path(path)
    return file.is_file() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for others by default, in seconds."""

_BUSY_TIMEOUT_S_MAX: Final = 24 * 3600.0
_SQLITE_VERSION_MIN: Final = (3, 37, 0)
MAPPED_BYTES: Final = 1024 * 1024 * 1024
"""How much of the file a reading connection maps into memory at most;
it costs address space and no memory.
"""

_RETRY_DELAY_S: Final = 0.002
_SYNCHRONOUS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")
_SETTINGS: Final = {"synchronous": 2, "foreign_keys": 1, "trusted_schema": 0}


class Pragmas(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one connection that durability depends on, as SQLite reports them."""

    synchronous: str
    journal_mode: str
    busy_timeout_ms: int
    foreign_keys: bool


def read_pragmas(connection: sqlite3.Connection) -> Pragmas:
    """Ask the connection for its settings."""
    return Pragmas(
        synchronous=_SYNCHRONOUS[int(_pragma(connection, "synchronous"))],
        journal_mode=str(_pragma(connection, "journal_mode")).lower(),
        busy_timeout_ms=int(_pragma(connection, "busy_timeout")),
        foreign_keys=bool(_pragma(connection, "foreign_keys")),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionFactory:
    """Makes connections to one file; call it to get a new one, which is the caller's to close.

    Connections are in autocommit mode (BEGIN and COMMIT are explicit) and may change threads, one
    at a time. ``path`` is absolute. Raises a StoreError when called and the file cannot be opened
    or refuses a setting.
    """

    path: str
    busy_timeout_s: float = BUSY_TIMEOUT_S

    def __call__(self) -> sqlite3.Connection:
        """Open a connection, set it up and check that it is set up."""
        try:
            connection = self._open()
        except sqlite3.Error as error:
            raise translated(error, self.path, self.busy_timeout_s) from error
        try:
            self._set_up(connection)
            _check(connection, self.path)
        except sqlite3.Error as error:
            connection.close()
            raise translated(error, self.path, self.busy_timeout_s) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def reader(self) -> sqlite3.Connection:
        """Return a read-only connection that maps the file into memory.

        Mapping makes cache hits fast. A device that fails to read a mapped page ends the process by
        SIGBUS, where a read would have raised an error.
        """
        connection = self()
        try:
            connection.execute("PRAGMA query_only = 1")
            connection.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise translated(error, self.path, self.busy_timeout_s) from error
        return connection

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=self.busy_timeout_s, isolation_level=None, check_same_thread=False)

    def _set_up(self, connection: sqlite3.Connection) -> None:
        for name, value in _SETTINGS.items():
            connection.execute(f"PRAGMA {name} = {value}")
        connection.execute(f"PRAGMA journal_size_limit = {log_size.LOG_BYTES_MAX}").fetchone()
        self._switch_to_wal(connection)

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Put the file into WAL mode, unless it is in it.

        SQLite does not wait for locks here, so this retries.
        """
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                if _pragma(connection, "journal_mode") != "wal":
                    connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(_RETRY_DELAY_S)


def could_begin(connection: sqlite3.Connection) -> bool:
    """Tell whether a write transaction could begin on this connection now.

    False while another process writes. Never waits. Any other error counts as True: the transaction
    itself will meet it.
    """
    timeout_ms = _pragma(connection, "busy_timeout")
    try:
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return not is_busy(error)
    finally:
        if connection.in_transaction:
            connection.rollback()
        connection.execute(f"PRAGMA busy_timeout = {timeout_ms}")
    return True


def factory_for(path: str | os.PathLike[str], busy_timeout_s: float) -> ConnectionFactory:
    """Return a factory for the file at ``path``. Raises InvalidSetting for an invalid timeout."""
    if sqlite3.sqlite_version_info < _SQLITE_VERSION_MIN:
        message = f"SQLite must be 3.37 or newer; got {sqlite3.sqlite_version} in this Python. Update it."
        raise DatabaseUnavailable(message)
    if not is_duration(busy_timeout_s, 0, _BUSY_TIMEOUT_S_MAX):
        message = (
            f"busy_timeout_s must be between 0 and {_BUSY_TIMEOUT_S_MAX:g}; got {busy_timeout_s!r:.80}. Give seconds."
        )
        raise InvalidSetting(message)
    if os.fspath(path) in {"", ":memory:"}:
        message = f"path must name a file; got {os.fspath(path)!r}. A database in memory survives nothing."
        raise InvalidSetting(message)
    return ConnectionFactory(str(Path(path).absolute()), float(busy_timeout_s))


def _check(connection: sqlite3.Connection, path: str) -> None:
    """Raise PragmaRefused unless the connection has every setting that it was given."""
    expected: dict[str, int | str] = {**_SETTINGS, "journal_mode": "wal"}
    for name, value in expected.items():
        came = _pragma(connection, name)
        if came != value:
            message = (
                f"{path} must run with {name} = {value}; got {came}. "
                "Put it on a local file system, with an SQLite that supports this."
            )
            raise PragmaRefused(message)


def _pragma(connection: sqlite3.Connection, name: str) -> int | str:
    value: int | str = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
