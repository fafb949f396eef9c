"""Grouped state: JSON under a key of a group, for what an agent must still know after a restart.

The groups of an agent are in ``StateGroup``; any other text is a group, too. One store holds them
all. It is opened when it is first needed, once, and the folder that its file lies in is made. Where
it cannot be opened the agent goes on without a memory: every read finds nothing, every write says
False, and one warning says why. That is for stores that cannot be had at all. What passes, a full
disk or a lock that is held for too long, raises, be it at the opening or at a write: the caller
would rely on what was not written, or take what was not read for nothing. The next call tries
again.
"""

from __future__ import annotations

import enum
import errno
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from durable_agents import snapshots
from durable_agents.errors import (
    CorruptState,
    DatabaseFull,
    DatabaseLocked,
    InvalidSetting,
    InvalidSnapshot,
    InvalidState,
    StoreClosed,
    StoreError,
)
from durable_agents.store import Store, open_store
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import StateEntry

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

KEY_BYTES_MAX: Final = 1024
"""The longest key or group, in bytes of UTF-8: they are read whole at every look-up."""

VALUE_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest value, in bytes of JSON. What is larger belongs into a file."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_log: Final = logging.getLogger("durable_agents.state.groups")
_decode: Final = msgspec.json.Decoder().decode


class StateGroup(enum.StrEnum):
    """The groups that an agent keeps: what each holds is said where it is written."""

    REGISTRY = "registry"
    QUEUE = "queue"
    CONCURRENCY = "concurrency"
    RUNTIME = "runtime"
    SYNC_QUEUE = "sync_queue"
    DISPATCH_HISTORY = "dispatch_history"


class StateStore:
    """Grouped state over one store. May be shared by threads.

    Give it a store, or the path of a database file, which it opens at the first use and will close.
    Raises InvalidSetting for both and for neither.
    """

    def __init__(self, store: Store | None = None, *, db_path: str | os.PathLike[str] | None = None) -> None:
        """Prepare; nothing is opened yet."""
        if (store is None) == (db_path is None):
            message = (
                f"Expected either a store or a db_path but got store={store!r} and db_path={db_path!r}; "
                "give exactly one."
            )
            raise InvalidSetting(message)
        self._store = store
        self._db_path = db_path
        self._is_refused = False
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def store(self) -> Store | None:
        """The store, opened by the first who asks; None where it cannot be opened, which is warned of once.

        A database that somebody else keeps locked raises DatabaseLocked, one without room
        DatabaseFull, and the next who asks tries again: neither is a reason to go on without it for
        good. Raises StoreClosed after ``close``.
        """
        with self._lock:
            if self._is_closed:
                message = "Expected an open state store but it was closed; make another one."
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
        """Close the store if it was opened here. Closing twice is fine, and so is closing what was never opened."""
        with self._lock:
            self._is_closed = True
            if self._db_path is not None and self._store is not None:
                self._store.close()
                self._store = None

    def set(self, group: str, key: str, value: object) -> bool:
        """Keep a value, which is JSON, under a key; durable when this returns True. False without a store.

        Raises InvalidState, or any StoreError.
        """
        entry = checked_entry(group, key, value)
        if (store := self.store) is None:
            return False
        with store.transaction() as transaction:
            transaction.put_state(entry)
        return True

    def get(self, group: str, key: str) -> Any:
        """Return the value under a key, or None where there is none. Raises InvalidState, CorruptState, StoreErrors."""
        check_name("group", group)
        check_name("key", key)
        store = self.store
        entry = None if store is None else store.state(group, key)
        return None if entry is None else value_of(entry)

    def delete(self, group: str, key: str) -> bool:
        """Forget a key and return whether it was there; one that was not is no error. Raises as ``get``."""
        check_name("group", group)
        check_name("key", key)
        if (store := self.store) is None:
            return False
        with store.transaction() as transaction:
            return transaction.delete_state(group, key)

    def count(self, group: str) -> int:
        """Return how many keys a group has; 0 without a store. Raises as ``get``."""
        check_name("group", group)
        return 0 if (store := self.store) is None else store.state_count(group)

    def entries(self, group: str, *, after: str = "") -> Iterator[StateEntry]:
        """Yield what is stored in a group, in the order of its keys, those behind ``after``. Raises as ``get``."""
        check_name("group", group)
        store = self.store
        while store is not None:
            page = store.state_entries(group, after=after, limit=PAGE_ROWS_MAX)
            yield from page
            if len(page) < PAGE_ROWS_MAX:
                return
            after = page[-1].key

    def restore(self, group: str) -> Iterator[tuple[str, Any]]:
        """Yield each key of a group with its value. Whoever walks may stop early. Raises as ``get``."""
        for entry in self.entries(group):
            yield entry.key, value_of(entry)


def _make_folder(folder: Path) -> None:
    """Make the folder of a store. Raises DatabaseFull; what else is in the way is told by the store."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"Expected room for the folder {folder} but the disk is full ({error}); free some space."
            raise DatabaseFull(message) from error


def checked_entry(group: str, key: str, value: object) -> StateEntry:
    """Return what is to be stored. Raises InvalidState unless it would come back as it is."""
    check_name("group", group)
    check_name("key", key)
    try:
        content, _, _ = snapshots.encoded(value, VALUE_BYTES_MAX)
    except InvalidSnapshot as error:
        message = f"Expected JSON of at most {VALUE_BYTES_MAX} bytes under {key!r} of {group!r} but got none: {error}"
        raise InvalidState(message) from error
    return StateEntry(group, key, content)


def value_of(entry: StateEntry) -> Any:
    """Return the value of an entry. Raises CorruptState."""
    try:
        return _decode(entry.value)
    except (ValueError, msgspec.MsgspecError) as error:
        message = (
            f"Expected JSON under {entry.key!r} of {entry.group!r} but found {entry.value[:100]!r} ({error}); "
            "delete the key, or restore a copy."
        )
        raise CorruptState(message) from error


def check_name(what: str, name: object) -> None:
    """Raise InvalidState unless this can be a key, or a group: text, not empty, short, without NUL, in UTF-8."""
    problem = _problem(name)
    if problem:
        shown = repr(name)
        message = (
            f"Expected a {what} of 1 to {KEY_BYTES_MAX} bytes of text but got {problem} ({shown[:60]}); "
            "give a short name, and put what is long into the value."
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
