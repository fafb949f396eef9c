"""Grouped state: JSON under a key of a group, for what an agent must still know after a restart.

The groups of an agent are in ``StateGroup``; any other text is a group, too. One store holds them
all. It is opened once, at its first use, and the folder of its file is made.

If the store cannot be opened, the agent continues without a memory: every read finds nothing, every
write returns False, and one warning says why. A passing problem (a full disk, a lock that is held
for too long) raises instead, and the next call tries again: a caller would otherwise rely on a
value that was not written, or take a value that was not read for missing.
"""

from __future__ import annotations

import enum
import errno
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from durable_agents import snapshots
from durable_agents.errors import (
    CorruptState,
    DatabaseFull,
    DatabaseLocked,
    InvalidSnapshot,
    InvalidState,
    StoreClosed,
    StoreError,
)
from durable_agents.store import Store, check_one_given, open_store
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import StateEntry

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

KEY_BYTES_MAX: Final = 1024
"""The longest key or group, in bytes of UTF-8."""

VALUE_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest value, in bytes of JSON. Put larger ones into files."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_log: Final = logging.getLogger("durable_agents.state.groups")
_Value = TypeVar("_Value")


class StateGroup(enum.StrEnum):
    """The groups of an agent."""

    REGISTRY = "registry"
    QUEUE = "queue"
    CONCURRENCY = "concurrency"
    RUNTIME = "runtime"
    SYNC_QUEUE = "sync_queue"
    DISPATCH_HISTORY = "dispatch_history"


class StateStore:
    """Grouped state over one store. May be shared by threads.

    Give it a store, or the path of a database file, which it opens at the first use and closes.
    Raises InvalidSetting for both and for neither.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, StateStore(db_path=f"{folder}/db") as state:
    ...     print(state.set("settings", "theme", {"dark": True}), state.get("settings", "theme"))
    True {'dark': True}
    """

    def __init__(self, store: Store | None = None, *, db_path: str | os.PathLike[str] | None = None) -> None:
        check_one_given(store, db_path)
        self._store = store
        self._db_path = db_path
        self._is_refused = False
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def store(self) -> Store | None:
        """The store, opened at the first use; None if it cannot be opened, with one warning.

        Raises DatabaseLocked and DatabaseFull, which pass: the next use tries again. Raises
        StoreClosed after ``close``.
        """
        with self._lock:
            if self._is_closed:
                message = "the state store must be open; got a call after close(). Make another one."
                raise StoreClosed(message)
            if self._store is None and not self._is_refused and self._db_path is not None:
                self._store = self._opened(self._db_path)
            return self._store

    def _opened(self, db_path: str | os.PathLike[str]) -> Store | None:
        _make_folder(Path(db_path).parent)
        try:
            return open_store(db_path)
        except (DatabaseFull, DatabaseLocked):
            raise
        except StoreError as error:
            self._is_refused = True
            _log.warning("going on without a state store, nothing will be stored: %s", error)
            return None

    def __enter__(self) -> Self:
        """Return the state store, which closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the store if it was opened here. Idempotent, also before the first use."""
        with self._lock:
            self._is_closed = True
            if self._db_path is not None and self._store is not None:
                self._store.close()
                self._store = None

    def set(self, group: str, key: str, value: object) -> bool:
        """Store a JSON value under a key; durable when this returns True, False without a store.

        Raises InvalidState, or any StoreError.
        """
        entry = checked_entry(group, key, value)
        if (store := self.store) is None:
            return False
        with store.transaction() as transaction:
            transaction.put_state(entry)
        return True

    def get(self, group: str, key: str) -> Any:
        """Return the value under a key, or None.

        Raises InvalidState, CorruptState, or any StoreError.
        """
        check_name("group", group)
        check_name("key", key)
        store = self.store
        entry = None if store is None else store.state(group, key)
        return None if entry is None else decoded(entry, Any)

    def delete(self, group: str, key: str) -> bool:
        """Delete a key and return whether it was there. Raises as ``get``."""
        check_name("group", group)
        check_name("key", key)
        if (store := self.store) is None:
            return False
        with store.transaction() as transaction:
            return transaction.delete_state(group, key)

    def count(self, group: str) -> int:
        """Return the number of keys in a group; 0 without a store. Raises as ``get``."""
        check_name("group", group)
        return 0 if (store := self.store) is None else store.state_count(group)

    def entries(self, group: str, *, after: str = "") -> Iterator[StateEntry]:
        """Yield the entries of a group behind ``after``, sorted by key. Raises as ``get``."""
        check_name("group", group)
        store = self.store
        while store is not None:
            page = store.state_entries(group, after=after, limit=PAGE_ROWS_MAX)
            yield from page
            if len(page) < PAGE_ROWS_MAX:
                return
            after = page[-1].key

    def restore(self, group: str) -> Iterator[tuple[str, Any]]:
        """Yield each key of a group with its value; a caller may stop early. Raises as ``get``."""
        return ((entry.key, decoded(entry, Any)) for entry in self.entries(group))


def _make_folder(folder: Path) -> None:
    """Make the folder of a store. Raises DatabaseFull; the store reports other problems."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"the folder {folder} must be made; got '{error}'. Free some space."
            raise DatabaseFull(message) from error


def checked_entry(group: str, key: str, value: object) -> StateEntry:
    """Return the entry of a value. Raises InvalidState unless JSON gives it back unchanged."""
    check_name("group", group)
    check_name("key", key)
    try:
        content, _, _ = snapshots.encoded(value, VALUE_BYTES_MAX)
    except InvalidSnapshot as error:
        message = f"the value under {key!r} of {group!r} must be JSON of at most {VALUE_BYTES_MAX} bytes; {error}"
        raise InvalidState(message) from error
    return StateEntry(group, key, content)


def decoded(entry: StateEntry, kind: type[_Value]) -> _Value:
    """Return the value of an entry. Raises CorruptState unless it is JSON of this type."""
    try:
        return msgspec.json.decode(entry.value, type=kind)
    except (ValueError, msgspec.MsgspecError) as error:
        message = (
            f"the value under {entry.key!r} of {entry.group!r} must be JSON of its type; got {entry.value[:100]!r} "
            f"({error}). Delete the key, or restore a copy."
        )
        raise CorruptState(message) from error


def check_name(what: str, name: object) -> None:
    """Raise InvalidState unless this is short text without NUL and lone surrogates."""
    problem = _problem(name)
    if problem:
        shown = repr(name)
        message = (
            f"{what} must be 1 to {KEY_BYTES_MAX} bytes of text; got {problem} ({shown[:60]}). Give a short name, and "
            "put long text into the value."
        )
        raise InvalidState(message)


def _problem(name: object) -> str:
    if not isinstance(name, str):
        return f"a {type(name).__name__}"
    if not name:
        return "an empty text"
    if "\0" in name:
        return "a text with NUL"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "a text with lone surrogates"
    return f"{size_bytes} bytes" if size_bytes > KEY_BYTES_MAX else ""
