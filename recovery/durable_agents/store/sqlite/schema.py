"""The tables, as migrations. A released migration is never edited, only followed.

The number of migrations that a file has had is its ``user_version``; ``application_id`` says that
it is ours. Tables are STRICT: SQLite would otherwise store a text in an integer column without an
error.

Any number of processes may open the same new file at once. Each migration takes the write lock,
reads the version again and runs only if it is still to be done, in one transaction. So it is done
once, and a crash leaves a file at some whole version.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from durable_agents.errors import CorruptDatabase, DatabaseUnavailable, ForeignDatabase, NewerSchema
from durable_agents.store.sqlite.connections import (
    BUSY_TIMEOUT_S,
    ConnectionFactory,
    factory_for,
    result_code,
    translated,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

APPLICATION_ID: Final = 0x50437263
"""``PCrc`` in ASCII, in the header of each of our files (``file`` and ``sqlite3 .dbinfo`` show it).
"""

Migration: TypeAlias = tuple[str, ...]
"""Statements that take a file from one schema version to the next, in one transaction."""

# The snapshot is text, so that `sqlite3 FILE 'SELECT snapshot ...'` and json_extract work on it,
# and comes last, so that the other columns are read without walking its overflow pages. The table
# keeps its rowid: without one, rows of some kilobytes would lie in the key's own tree, which then
# hardly fans out (measured: commits take a tenth longer).
CHECKPOINTS: Final = """
CREATE TABLE checkpoints (
    task_id         TEXT    NOT NULL REFERENCES tasks (task_id),
    sequence_number INTEGER NOT NULL CHECK (sequence_number >= 1),
    type            TEXT    NOT NULL CHECK (type <> ''),
    content_hash    TEXT    NOT NULL CHECK (length(content_hash) = 64),
    created_at      INTEGER NOT NULL,
    snapshot        TEXT    NOT NULL,
    PRIMARY KEY (task_id, sequence_number)
) STRICT
"""

_1_TASKS: Final[Migration] = (
    """
CREATE TABLE tasks (
    task_id          TEXT    NOT NULL PRIMARY KEY CHECK (task_id <> ''),
    tracker_key      TEXT    UNIQUE CHECK (tracker_key <> ''),
    status           TEXT    NOT NULL CHECK (status IN ('created', 'running', 'succeeded', 'failed', 'cancelled')),
    stage            TEXT    NOT NULL,
    stage_entered_at INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
    "CREATE INDEX tasks_by_status ON tasks (status, task_id)",
    CHECKPOINTS,
    """
CREATE TABLE task_audits (
    audit_id   INTEGER PRIMARY KEY,
    task_id    TEXT    NOT NULL REFERENCES tasks (task_id),
    event      TEXT    NOT NULL,
    before     TEXT,
    after      TEXT,
    detail     TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT
""",
    "CREATE INDEX task_audits_by_task ON task_audits (task_id, audit_id)",
)

_2_EVIDENCE: Final[Migration] = (
    # One row per checkpoint, in its transaction: a checkpoint without one has no evidence, so no
    # state of the file can make one look verified. All items are in one JSON array (json_each takes
    # it apart): a row and a page for each item would cost a commit a tenth of its time (measured).
    # The table lies under its key: small rows, written in that order.
    """
CREATE TABLE checkpoint_evidence (
    task_id         TEXT    NOT NULL,
    sequence_number INTEGER NOT NULL,
    required        INTEGER NOT NULL CHECK (required >= 1),
    verified        INTEGER NOT NULL CHECK (verified IN (0, 1)),
    verdicts        TEXT    NOT NULL CHECK (verdicts <> ''),
    PRIMARY KEY (task_id, sequence_number),
    FOREIGN KEY (task_id, sequence_number) REFERENCES checkpoints ON DELETE CASCADE
) STRICT, WITHOUT ROWID
""",
)

_3_WORK_ITEMS: Final[Migration] = (
    # Holder and expiry are there exactly while an item is in progress:
    # a lease without an expiry would never be swept.
    """
CREATE TABLE work_items (
    work_item_id     INTEGER PRIMARY KEY,
    task_id          TEXT    NOT NULL REFERENCES tasks (task_id),
    type             TEXT    NOT NULL CHECK (type <> ''),
    priority         INTEGER NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'in_progress', 'completed', 'failed')),
    retries          INTEGER NOT NULL CHECK (retries BETWEEN 0 AND max_retries),
    max_retries      INTEGER NOT NULL CHECK (max_retries >= 0),
    lease_token      INTEGER NOT NULL CHECK (lease_token >= 0),
    lease_holder     TEXT    CHECK ((lease_holder IS NOT NULL) = (status = 'in_progress')),
    lease_expires_at INTEGER CHECK ((lease_expires_at IS NOT NULL) = (status = 'in_progress')),
    heartbeat_at     INTEGER,
    error            TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL
) STRICT
""",
    # Partial indexes hold the pending and the held items, and none of the millions that have ended.
    "CREATE INDEX work_items_pending ON work_items (priority DESC, work_item_id) WHERE status = 'pending'",
    (
        "CREATE INDEX work_items_pending_by_type ON work_items (type, priority DESC, work_item_id) "
        "WHERE status = 'pending'"
    ),
    (
        "CREATE INDEX work_items_pending_by_task ON work_items (task_id, priority DESC, work_item_id) "
        "WHERE status = 'pending'"
    ),
    "CREATE INDEX work_items_leased ON work_items (lease_expires_at, work_item_id) WHERE status = 'in_progress'",
    # A token belongs to one grant of one item, so a token of another item fences nothing in.
    "CREATE UNIQUE INDEX work_items_by_token ON work_items (lease_token) WHERE lease_token > 0",
)

_4_INBOX: Final[Migration] = (
    # The identity of a delivery is unique, so that it is accepted once, by whichever receiver. The
    # body comes last: listings do not walk its overflow pages. A partial index holds the pending
    # deliveries, and none that was handled.
    """
CREATE TABLE webhook_inbox (
    delivery_number INTEGER PRIMARY KEY AUTOINCREMENT,
    source          TEXT    NOT NULL CHECK (source <> ''),
    identity        TEXT    NOT NULL CHECK (identity <> ''),
    delivery_id     TEXT    NOT NULL,
    event           TEXT    NOT NULL,
    received_at     INTEGER NOT NULL,
    status          TEXT    NOT NULL CHECK (status IN ('pending', 'handled', 'failed')),
    attempts        INTEGER NOT NULL CHECK (attempts >= 0),
    error           TEXT    NOT NULL,
    body            TEXT    NOT NULL,
    UNIQUE (source, identity)
) STRICT
""",
    "CREATE INDEX webhook_inbox_pending ON webhook_inbox (delivery_number) WHERE status = 'pending'",
    "CREATE INDEX webhook_inbox_handled ON webhook_inbox (received_at) WHERE status = 'handled'",
)

_5_JOBS: Final[Migration] = (
    # An executor that has no process is dead; one whose process has no start cannot be told from a
    # later one of its number.
    """
CREATE TABLE jobs (
    job_id        INTEGER PRIMARY KEY,
    agent         TEXT    NOT NULL CHECK (agent <> ''),
    repo          TEXT    NOT NULL,
    task_id       TEXT    REFERENCES tasks (task_id),
    status        TEXT    NOT NULL CHECK (status IN ('queued', 'running', 'done', 'failed')),
    attempts      INTEGER NOT NULL CHECK (attempts BETWEEN 0 AND max_attempts),
    max_attempts  INTEGER NOT NULL CHECK (max_attempts >= 1),
    claim         INTEGER NOT NULL CHECK (claim >= 0),
    run_id        INTEGER REFERENCES agent_runs (run_id),
    pid           INTEGER,
    process_start TEXT    CHECK (process_start IS NULL OR pid IS NOT NULL),
    monitor_pid   INTEGER,
    monitor_start TEXT    CHECK (monitor_start IS NULL OR monitor_pid IS NOT NULL),
    started_at    INTEGER CHECK (started_at IS NOT NULL OR status <> 'running'),
    error         TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT
""",
    """
CREATE TABLE agent_runs (
    run_id      INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES jobs (job_id),
    claim       INTEGER NOT NULL,
    task_id     TEXT    REFERENCES tasks (task_id),
    agent       TEXT    NOT NULL CHECK (agent <> ''),
    started_at  INTEGER NOT NULL,
    finished_at INTEGER CHECK ((finished_at IS NULL) = (exit_code IS NULL)),
    exit_code   INTEGER CHECK (exit_code BETWEEN -64 AND 255)
) STRICT
""",
    "CREATE INDEX agent_runs_by_job ON agent_runs (job_id, run_id)",
    "CREATE INDEX jobs_running ON jobs (job_id) WHERE status = 'running'",
    "CREATE INDEX jobs_queued ON jobs (job_id) WHERE status = 'queued'",
    "CREATE INDEX jobs_queued_by_agent ON jobs (agent, job_id) WHERE status = 'queued'",
    "CREATE INDEX jobs_active ON jobs (task_id, job_id) WHERE status IN ('queued', 'running')",
    # Not a column of jobs: several reapers may count at their own pace, and a count is no change of
    # the job.
    """
CREATE TABLE job_dead_ticks (
    job_id INTEGER NOT NULL REFERENCES jobs (job_id),
    reaper TEXT    NOT NULL,
    claim  INTEGER NOT NULL,
    ticks  INTEGER NOT NULL CHECK (ticks >= 1),
    PRIMARY KEY (job_id, reaper)
) STRICT, WITHOUT ROWID
""",
    # Sent entries are deleted, so the table stays small. One claim has one end, so one entry.
    """
CREATE TABLE outbox (
    outbox_id  INTEGER PRIMARY KEY,
    kind       TEXT    NOT NULL CHECK (kind IN ('advance', 'alert')),
    job_id     INTEGER NOT NULL REFERENCES jobs (job_id),
    claim      INTEGER NOT NULL,
    agent      TEXT    NOT NULL,
    repo       TEXT    NOT NULL,
    task_id    TEXT    REFERENCES tasks (task_id),
    stage      TEXT    NOT NULL,
    entered_at INTEGER NOT NULL,
    text       TEXT    NOT NULL,
    tries      INTEGER NOT NULL CHECK (tries >= 0),
    taken_by   TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (job_id, claim, kind)
) STRICT
""",
    "CREATE INDEX outbox_by_kind ON outbox (kind, outbox_id)",
)

_6_STATE: Final[Migration] = (
    # Small rows that are found by their key alone, so they lie under it.
    """
CREATE TABLE state_entries (
    group_name TEXT NOT NULL CHECK (group_name <> ''),
    key        TEXT NOT NULL CHECK (key <> ''),
    value      TEXT NOT NULL CHECK (value <> ''),
    PRIMARY KEY (group_name, key)
) STRICT, WITHOUT ROWID
""",
    # The marker of a cycle is its id, which no other cycle ever has; its name may come again.
    """
CREATE TABLE cycles (
    cycle_id     TEXT    NOT NULL PRIMARY KEY CHECK (cycle_id <> ''),
    name         TEXT    NOT NULL CHECK (name <> ''),
    committed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE cycle_entries (
    cycle_id TEXT    NOT NULL REFERENCES cycles (cycle_id),
    place    INTEGER NOT NULL CHECK (place >= 1),
    kind     TEXT    NOT NULL CHECK (kind <> ''),
    value    TEXT    NOT NULL CHECK (value <> ''),
    PRIMARY KEY (cycle_id, place)
) STRICT
""",
)

_7_KEYS: Final[Migration] = (
    # Keys: claims and results. The claim's expiry is there exactly while a caller executes, the
    # result exactly after it; so no state of a row is one that nobody would ever end. The result
    # comes last: a claim does not walk its overflow pages.
    """
CREATE TABLE idempotency_keys (
    key_number       INTEGER PRIMARY KEY,
    key              TEXT    NOT NULL UNIQUE CHECK (key <> ''),
    scope            TEXT    NOT NULL CHECK (scope <> ''),
    request_hash     TEXT    NOT NULL CHECK (length(request_hash) = 64),
    status           TEXT    NOT NULL CHECK (status IN ('executing', 'in_doubt', 'done', 'failed')),
    token            INTEGER NOT NULL CHECK (token >= 1),
    owner            TEXT    NOT NULL,
    claim_expires_at INTEGER CHECK ((claim_expires_at IS NOT NULL) = (status = 'executing')),
    expires_at       INTEGER CHECK ((expires_at IS NOT NULL) = (status IN ('done', 'failed'))),
    used_at          INTEGER,
    created_at       INTEGER NOT NULL,
    result           BLOB    CHECK ((result IS NOT NULL) = (status IN ('done', 'failed')))
) STRICT
""",
    # Only evictable results are in it: an entry for a tool ledger's would cost each commit a page.
    (
        "CREATE INDEX idempotency_keys_by_use ON idempotency_keys (scope, used_at, length(result)) "
        "WHERE used_at IS NOT NULL AND status IN ('done', 'failed')"
    ),
    """
CREATE TABLE key_usage (
    scope         TEXT    NOT NULL PRIMARY KEY,
    hits          INTEGER NOT NULL,
    misses        INTEGER NOT NULL,
    tokens_saved  INTEGER NOT NULL,
    time_saved_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
)

_8_SOURCES: Final[Migration] = (
    # Apart from the tasks, whose rows are read at every step.
    # A branch is found by its name, a commit by its repository: there are few open branches in one.
    """
CREATE TABLE task_sources (
    task_id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (task_id),
    repo    TEXT NOT NULL,
    branch  TEXT NOT NULL,
    sha     TEXT NOT NULL
) STRICT, WITHOUT ROWID
""",
    "CREATE INDEX task_sources_by_branch ON task_sources (repo, branch)",
    "CREATE INDEX task_sources_by_commit ON task_sources (repo, sha) WHERE sha <> ''",
    # By the age of the stage, not of the row (D21, docs/design.md):
    # the tasks that are due come first.
    "CREATE INDEX tasks_waiting ON tasks (stage, stage_entered_at, task_id) WHERE status IN ('created', 'running')",
    "CREATE INDEX webhook_inbox_failed ON webhook_inbox (delivery_number) WHERE status = 'failed'",
    "CREATE INDEX outbox_advances ON outbox (task_id) WHERE kind = 'advance'",
)

MIGRATIONS: Final[tuple[Migration, ...]] = (
    _1_TASKS,
    _2_EVIDENCE,
    _3_WORK_ITEMS,
    _4_INBOX,
    _5_JOBS,
    _6_STATE,
    _7_KEYS,
    _8_SOURCES,
)
"""Step 1, step 2, ...: the schema version of this code is their number."""


_PAGE_BYTES_MIN: Final = 512
_MADE: Final = re.compile(r"CREATE (?:UNIQUE )?(?:TABLE|INDEX) (\w+)")


def init_factory(path: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> ConnectionFactory:
    """Give the file at ``path`` the current schema, and return the factory of its connections.

    There is no global state. A newer, foreign or damaged file is refused before anything is written
    to it, its write-ahead log included. Raises InvalidSetting and any StoreError.
    """
    factory = factory_for(path, busy_timeout_s)
    prepare(factory, MIGRATIONS)
    return factory


def prepare(factory: ConnectionFactory, migrations: Sequence[Migration]) -> None:
    """Bring the factory's file to the version that ``migrations`` leads to."""
    _refuse_untouched(factory, migrations)
    with closing(factory()) as connection:
        try:
            while _migrate_one_step(connection, migrations, factory.path):
                pass
        except sqlite3.Error as error:
            raise translated(error, factory.path, factory.busy_timeout_s) from error


def _refuse_untouched(factory: ConnectionFactory, migrations: Sequence[Migration]) -> None:
    """Raise if an existing file is not a database for us, without writing to it.

    The connection is read-only: the last ordinary one copies the log into the file when it closes,
    so even a refusal would write.
    """
    file = Path(factory.path)
    try:
        if not file.is_file() or file.stat().st_size == 0:
            return
        _refuse_stump(file)
    except OSError as error:
        message = (
            f"{file} must be in a folder that this process may enter; got '{error.strerror}'. Check its permissions."
        )
        raise DatabaseUnavailable(message) from error
    try:
        try:
            _look(file, "ro", factory, migrations)
        except sqlite3.OperationalError as error:
            if result_code(error) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            # The process that made the file was killed in a write, before there was a write-ahead
            # log (found by exploring the first opening). Opening any database rolls such a write
            # back.
            _look(file, "rw", factory, migrations)
    except sqlite3.Error as error:
        raise translated(error, factory.path, factory.busy_timeout_s) from error


def _look(file: Path, mode: str, factory: ConnectionFactory, migrations: Sequence[Migration]) -> None:
    with closing(
        sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True, timeout=factory.busy_timeout_s)
    ) as connection:
        connection.execute("BEGIN")  # one look: another process may be making the first tables now
        if _version_of(connection, len(migrations), factory.path) == 0:
            _refuse_tables(connection, migrations, factory.path)


def _refuse_tables(connection: sqlite3.Connection, migrations: Sequence[Migration], path: str) -> None:
    """Raise ForeignDatabase for a file with a table or index that the migrations will make."""
    ours = {name for migration in migrations for statement in migration for name in _MADE.findall(statement)}
    for kind, name in connection.execute("SELECT type, name FROM sqlite_schema ORDER BY rowid"):
        if name in ours:
            raise _in_the_way(path, f"{kind} {name} already exists")


def _in_the_way(path: str, what: str) -> ForeignDatabase:
    return ForeignDatabase(f"{path} must be a new database or ours; got tables in the way ({what}). Use another file.")


def _refuse_stump(file: Path) -> None:
    """Raise CorruptDatabase for a file that is smaller than the smallest page.

    SQLite may take it for a new database.
    """
    size_bytes = file.stat().st_size
    if size_bytes < _PAGE_BYTES_MIN:
        message = (
            f"{file} must be an SQLite database; got a file of {size_bytes} bytes. Restore a copy, or move it away."
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
            raise _in_the_way(path, str(error)) from error


def _version_of(connection: sqlite3.Connection, version_max: int, path: str) -> int:
    """Return the file's schema version. Raises NewerSchema or ForeignDatabase."""
    # In this order: both are set in one commit, so a commit between the two reads can only add the
    # id.
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    is_unclaimed = application == 0 and version == 0
    if application != APPLICATION_ID and not is_unclaimed:
        message = (
            f"{path} must be a new database or ours; got one in which another program numbers its versions "
            f"(application_id {application}, user_version {version}). Use another file."
        )
        raise ForeignDatabase(message)
    if version > version_max:
        message = (
            f"{path} must have schema version {version_max} or older; got {version}. "
            "Update this package; the file was left as it is."
        )
        raise NewerSchema(message)
    return version
