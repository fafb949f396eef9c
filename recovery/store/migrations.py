"""How a file gets its tables: forwards, one transaction per step, whoever comes first.

Any number of processes may open the same new file at once. Each step takes the write lock, looks at the version again
and does the step only if it is still to be done, so a step is done once, and a crash leaves a file at some whole
version.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from recovery.errors import CorruptDatabase, DatabaseUnavailable, ForeignDatabase, NewerSchema
from recovery.store.connections import BUSY_TIMEOUT_S, ConnectionFactory, factory_for
from recovery.store.schema import APPLICATION_ID, MIGRATIONS, Migration
from recovery.store.translation import result_code, translated

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

_PAGE_BYTES_MIN: Final = 512


def init_factory(path: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> ConnectionFactory:
    """Make sure that the file at ``path`` exists with the current schema, and return the factory of its connections.

    Nothing is remembered outside the returned value. A file that is newer, foreign or damaged is refused before
    anything is written to it, its write-ahead log included. Raises InvalidSetting and any StoreError.
    """
    factory = factory_for(path, busy_timeout_s)
    prepare(factory, MIGRATIONS)
    return factory


def prepare(factory: ConnectionFactory, migrations: Sequence[Migration]) -> None:
    """Bring the factory's file to the version that ``migrations`` leads to."""
    _refuse_untouched(factory, len(migrations))
    with closing(factory()) as connection:
        try:
            while _migrate_one_step(connection, migrations, factory.path):
                pass
        except sqlite3.Error as error:
            raise translated(error, factory.path, factory.busy_timeout_s) from error


def _refuse_untouched(factory: ConnectionFactory, version: int) -> None:
    """Look at an existing file through a read-only connection and raise if it is not one for us.

    The last ordinary connection to a file copies its log into it when it closes: even a refusal would write.
    """
    file = Path(factory.path)
    try:
        if not file.is_file() or file.stat().st_size == 0:
            return
        _refuse_stump(file)
    except OSError as error:
        message = f"Expected to look at {file} but {error.strerror}; it must be in a folder that may be entered."
        raise DatabaseUnavailable(message) from error
    try:
        try:
            _look(file, "ro", factory, version)
        except sqlite3.OperationalError as error:
            if result_code(error) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            # Who made the file was killed while he wrote to it, before it had a write-ahead log (exploring the first
            # opening found it). To take back what he had half done is what opening a database is, whoever's it is.
            _look(file, "rw", factory, version)
    except sqlite3.Error as error:
        raise translated(error, factory.path, factory.busy_timeout_s) from error


def _look(file: Path, mode: str, factory: ConnectionFactory, version: int) -> None:
    with closing(
        sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True, timeout=factory.busy_timeout_s)
    ) as connection:
        _version_of(connection, version, factory.path)


def _refuse_stump(file: Path) -> None:
    """Raise CorruptDatabase for less than the smallest page, which SQLite may take for a new database."""
    size_bytes = file.stat().st_size
    if size_bytes < _PAGE_BYTES_MIN:
        message = (
            f"Expected an SQLite database at {file} but it has {size_bytes} bytes; restore a copy, or move it away."
        )
        raise CorruptDatabase(message)


def _migrate_one_step(connection: sqlite3.Connection, migrations: Sequence[Migration], path: str) -> bool:
    """Do the next step that the file still needs; return whether there was one."""
    if _version_of(connection, len(migrations), path) == len(migrations):
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = _version_of(connection, len(migrations), path)
        if done < len(migrations):
            _execute_step(connection, migrations[done], path)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {done + 1}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def _execute_step(connection: sqlite3.Connection, migration: Migration, path: str) -> None:
    for statement in migration:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if result_code(error) != sqlite3.SQLITE_ERROR:
                raise
            message = f"Expected {path} to be new or ours but it has tables in the way ({error}); use another file."
            raise ForeignDatabase(message) from error


def _version_of(connection: sqlite3.Connection, version_max: int, path: str) -> int:
    """Return the file's schema version. Raises NewerSchema or ForeignDatabase."""
    # In this order: both are set in one commit, so whoever comes between the two reads can only add the name.
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    is_unclaimed = application == 0 and version == 0
    if application != APPLICATION_ID and not is_unclaimed:
        message = (
            f"Expected {path} to be new or ours but another program numbers its versions in it "
            f"(application_id {application}, user_version {version}); use another file."
        )
        raise ForeignDatabase(message)
    if version > version_max:
        message = (
            f"Expected {path} to have schema version {version_max} or older but it has {version}; "
            "update this package, the file was left as it is."
        )
        raise NewerSchema(message)
    return version
