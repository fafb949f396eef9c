"""Sync queue: pushes to another system, in order, each kept until that system has acknowledged it.

**At least once, each effect once.** An entry leaves the queue after its push was acknowledged, so a
crash in between pushes it again. Its idempotency key, given when it was queued, tells the receiver
that it is the same.

**Head of line.** Only the oldest entry is pushed. While it fails, the others wait, so the receiver
sees them in order. The pauses grow: 1, 5, 15, 60 s, then 5 minutes, without end. They survive a
restart.

**Two copies**: a row of the state store, and a JSON file, each written whole. Either may be lost,
or be older after a crash between the two writes; the copy with the larger revision counts. An empty
queue has no row. If one copy cannot be written, a warning says so; if neither can, the change is
refused.

If an old copy is restored by hand while the other is empty or lost, entries that were pushed
already are pushed again, under their keys.
"""

from __future__ import annotations

import logging
import secrets
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents import snapshots
from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import (
    InvalidSetting,
    InvalidSnapshot,
    InvalidSyncEntry,
    PushFailed,
    RecoveryError,
    SyncQueueFull,
    SyncQueueNotWritten,
)
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.groups import VALUE_BYTES_MAX, StateGroup
from durable_agents.state.json_files import FileProblem, JsonFormat, formatted
from durable_agents.store.rows import StateEntry
from durable_agents.work.artifacts import Artifacts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_agents.state.groups import StateStore
    from durable_agents.state.roots import Roots

BACKOFF_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0)
"""Pauses after the first failure of an entry, the second, and so on; the last one repeats."""

ENTRIES_MAX: Final = 1000
PUSHES_MAX: Final = 100
"""Entries that one run pushes at most."""

SYNC_QUEUE_FILE: Final = "sync_queue.json"
SYNC_QUEUE_KEY: Final = "queue"
SYNC_QUEUE_VERSION: Final = 1


_LOCK: Final = "sync_queue"
_KEY_BYTES_MAX: Final = 200
_log: Final = logging.getLogger("durable_agents.state.sync_queue")


class SyncEntry(msgspec.Struct, frozen=True):
    """One push that waits. ``dispatches`` are JSON objects of the caller.

    ``key`` is the same in every attempt. No attempt is made before ``next_attempt_at``.
    """

    key: str
    agent_id: str
    queued_at: Microseconds
    dispatches: tuple[dict[str, Any], ...]
    attempts: int = 0
    next_attempt_at: Microseconds = 0
    last_error: str = ""


class SyncPass(msgspec.Struct, frozen=True):
    """The result of one run; ``error`` and ``next_attempt_at`` are those of a head that failed."""

    pushed: int = 0
    waiting: int = 0
    error: str = ""
    next_attempt_at: Microseconds | None = None


class SyncQueueCopy(msgspec.Struct, frozen=True):
    """One of the two copies of the queue."""

    revision: int = 0
    entries: tuple[SyncEntry, ...] = ()
    version: int = SYNC_QUEUE_VERSION


_FORMAT: Final = JsonFormat(SyncQueueCopy, version=SYNC_QUEUE_VERSION, bytes_max=VALUE_BYTES_MAX)
_REPLACEABLE: Final = frozenset({None, FileProblem.MISSING, FileProblem.HALF_WRITTEN, FileProblem.NO_STATUS})
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(SyncQueueCopy).decode


class SyncQueue:
    """The queue below one root; ``push`` delivers one entry or raises PushFailed, as ``HttpPush``.

    Any other exception of ``push`` counts as a failure, too. May be shared by threads and used by
    several processes. Raises InvalidSetting.
    """

    def __init__(
        self,
        roots: Roots,
        state: StateStore,
        push: Callable[[SyncEntry], object],
        *,
        clock: Clock | None = None,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        if isinstance(entries_max, bool) or not isinstance(entries_max, int) or entries_max < 1:
            message = f"entries_max must be 1 or more; got {entries_max!r}. Give a number such as {ENTRIES_MAX}."
            raise InvalidSetting(message)
        self._roots = roots
        self._state = state
        self._push = push
        self._clock: Clock = SystemClock() if clock is None else clock
        self._entries_max = entries_max
        self._warned: set[str] = set()

    def entries(self) -> tuple[SyncEntry, ...]:
        """Return the entries that wait, the head first."""
        return self._read().entries

    def enqueue(self, agent_id: str, dispatches: Sequence[dict[str, Any]], *, key: str | None = None) -> SyncEntry:
        """Append a push and return it; durable when this returns.

        A caller that may be killed and repeat itself gives a ``key`` of its own. If an entry with
        this key waits, it is returned and nothing is queued. Raises InvalidSyncEntry,
        SyncQueueFull, SyncQueueNotWritten, FolderLocked.
        """
        entry = _checked(SyncEntry(key or secrets.token_hex(16), agent_id, self._clock.now(), tuple(dispatches)))
        with self._roots.locked(_LOCK):
            queue = self._read()
            if there := next((each for each in queue.entries if each.key == entry.key), None):
                return there
            if len(queue.entries) >= self._entries_max:
                message = (
                    f"the sync queue must have fewer than {self._entries_max} entries; got {len(queue.entries)} that "
                    f"wait, the first after {queue.entries[0].attempts} attempts ({queue.entries[0].last_error}). "
                    "Look at the receiver."
                )
                raise SyncQueueFull(message)
            self._write(queue.revision, (*queue.entries, entry))
        return entry

    def drop(self, key: str) -> bool:
        """Remove an entry, pushed or never to be accepted; return whether it was there."""
        with self._roots.locked(_LOCK):
            queue = self._read()
            rest = tuple(each for each in queue.entries if each.key != key)
            if is_there := len(rest) < len(queue.entries):
                self._write(queue.revision, rest)
        return is_there

    def run_once(self, now: Microseconds | None = None) -> SyncPass:
        """Push from the head until a push fails, the head is not due, or the queue is empty.

        At most ``PUSHES_MAX`` entries. A failed push is in the result. Raises SyncQueueNotWritten,
        FolderLocked.
        """
        pushed = 0
        while pushed < PUSHES_MAX:
            waiting = self._read().entries
            if not waiting:
                break
            moment = self._clock.now() if now is None else now
            if not self._is_due(waiting, moment):
                return SyncPass(pushed, len(waiting), waiting[0].last_error, waiting[0].next_attempt_at)
            entry = self._chosen(waiting, moment)
            try:
                self._deliver(entry)
            except PushFailed as error:
                return self._put_off(entry, str(error), moment, pushed)
            pushed += 1
        return SyncPass(pushed, len(self._read().entries))

    def _is_due(self, waiting: tuple[SyncEntry, ...], moment: Microseconds) -> bool:
        """Tell whether the head's pause is over, or longer than any: the clock was set back."""
        pause = waiting[0].next_attempt_at - moment
        return pause <= 0 or pause > microseconds(BACKOFF_S[-1])

    def _chosen(self, waiting: tuple[SyncEntry, ...], _: Microseconds) -> SyncEntry:
        return waiting[0]

    def _deliver(self, entry: SyncEntry) -> None:
        sys.audit(StateCrashPoint.SYNC_BEFORE_PUSH, entry.key)
        try:
            self._push(entry)
        except PushFailed:
            raise
        except Exception as error:
            message = (
                f"the push of entry {entry.key} must succeed or raise PushFailed; got {type(error).__name__}: {error}. "
                "It is tried again."
            )
            raise PushFailed(message) from error
        sys.audit(StateCrashPoint.SYNC_AFTER_PUSH, entry.key)
        self.drop(entry.key)  # False if another process pushed it, too, and was faster

    def _put_off(self, entry: SyncEntry, error: str, now: Microseconds, pushed: int) -> SyncPass:
        pause_s = BACKOFF_S[min(entry.attempts, len(BACKOFF_S) - 1)]
        later = msgspec.structs.replace(
            entry,
            attempts=entry.attempts + 1,
            next_attempt_at=now + microseconds(pause_s),
            last_error=error[:500],
        )
        with self._roots.locked(_LOCK):
            queue = self._read()
            entries = tuple(later if each.key == entry.key else each for each in queue.entries)
            if entries != queue.entries:
                self._write(queue.revision, entries)
        return SyncPass(pushed, len(entries), later.last_error, later.next_attempt_at)

    def _read(self) -> SyncQueueCopy:
        """Return the copy with the larger revision."""
        return max(self._read_store(), self._read_file(), key=lambda copy: copy.revision)

    def _write(self, revision: int, entries: tuple[SyncEntry, ...]) -> None:
        """Write both copies, the file first: an empty queue has no row to say that it is newer."""
        queue = SyncQueueCopy(revision + 1, entries)
        sys.audit(StateCrashPoint.SYNC_BEFORE_FILE, queue.revision)
        problems = [self._write_file(queue)]
        sys.audit(StateCrashPoint.SYNC_AFTER_FILE, queue.revision)
        problems.append(self._write_store(queue, is_file_behind=bool(problems[0])))
        sys.audit(StateCrashPoint.SYNC_AFTER_STORE, queue.revision)
        if all(problems):
            message = (
                f"the sync queue must be written to its file or to the store; got two errors ({problems[0]}; "
                f"{problems[1]}). Free space, or make {self._roots.state} writable."
            )
            raise SyncQueueNotWritten(message)
        for place, problem in zip(("file", "store"), problems, strict=True):
            self._warn(place, problem)

    def _read_store(self) -> SyncQueueCopy:
        try:
            store = self._state.store
            entry = None if store is None else store.state(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY)
            return SyncQueueCopy() if entry is None else _decode(entry.value)
        except (RecoveryError, msgspec.MsgspecError, ValueError) as error:
            self._warn("store read", str(error))
            return SyncQueueCopy()

    def _read_file(self) -> SyncQueueCopy:
        if not self._roots.state.is_dir():
            return SyncQueueCopy()
        found = _FORMAT.read(Artifacts(self._roots.state), SYNC_QUEUE_FILE)
        is_fine = found.problem in {None, FileProblem.MISSING}
        self._warn("file read", "" if is_fine else f"{found.problem} ({found.detail})")
        return found.value or SyncQueueCopy()

    def _write_file(self, queue: SyncQueueCopy) -> str:
        """Write the file, unless its place is taken; return the problem, if any."""
        try:
            artifacts = Artifacts(self._roots.state)
            before = _FORMAT.read(artifacts, SYNC_QUEUE_FILE)
            if before.problem not in _REPLACEABLE:
                return f"{SYNC_QUEUE_FILE} is not ours to replace: {before.problem} ({before.detail})"
            artifacts.write(SYNC_QUEUE_FILE, formatted(queue))
        except RecoveryError as error:
            return str(error)
        return ""

    def _write_store(self, queue: SyncQueueCopy, *, is_file_behind: bool) -> str:
        """Write the row, or delete it if the queue is empty; return the problem, if any.

        With ``is_file_behind`` even an empty queue has a row: the file still has entries that were
        pushed since.
        """
        try:
            if (store := self._state.store) is None:
                return "there is no state store"
            with store.transaction() as transaction:
                if queue.entries or is_file_behind:
                    transaction.put_state(StateEntry(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY, _encode(queue)))
                else:
                    transaction.delete_state(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY)
        except RecoveryError as error:
            return str(error)
        return ""

    def _warn(self, place: str, problem: str) -> None:
        """Warn of a copy that fails: once, and again after it has worked."""
        if problem and place not in self._warned:
            _log.warning("the sync queue has only one copy, its %s fails: %s", place, problem)
        (self._warned.add if problem else self._warned.discard)(place)


def _checked(entry: SyncEntry) -> SyncEntry:
    names = (entry.agent_id, entry.key)
    if not all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= _KEY_BYTES_MAX for name in names):
        message = (
            f"agent id and key must have 1 to {_KEY_BYTES_MAX} printable characters; got "
            f"{str(entry.agent_id)[:80]!r} and {str(entry.key)[:80]!r}. Shorten them."
        )
        raise InvalidSyncEntry(message)
    if not entry.key.isascii() or not all(isinstance(each, dict) for each in entry.dispatches):
        message = (
            f"key must be ASCII, since it goes into a header, and dispatches JSON objects; got {entry.key!r} and "
            f"{[type(each).__name__ for each in entry.dispatches][:9]}. Correct them."
        )
        raise InvalidSyncEntry(message)
    try:
        snapshots.encoded(list(entry.dispatches), VALUE_BYTES_MAX // ENTRIES_MAX)
        entry.agent_id.encode()
    except (InvalidSnapshot, UnicodeEncodeError) as error:
        message = f"dispatches must be JSON of at most {VALUE_BYTES_MAX // ENTRIES_MAX} bytes; {error}"
        raise InvalidSyncEntry(message) from error
    return entry
