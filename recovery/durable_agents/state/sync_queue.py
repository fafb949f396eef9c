"""The sync queue: what is to be pushed to another system, in order, until that system says that it has it.

**At least once, each effect once.** An entry leaves the queue after its push was acknowledged, so a
crash in between pushes it again; it carries an idempotency key that it was given when it was
queued, by which the receiver knows it.

**Head of line.** Only the oldest entry is pushed; while it fails, the others wait, so the receiver
sees them in order. The pauses grow: 1, 5, 15, 60 s, then 5 minutes, as often as it takes. They
survive a restart.

**Two copies**: a row of the state store, and a JSON file, each whole. Either may be lost, or be
behind after a crash between the two; each carries the number of its revision, and the larger one
counts. An empty queue has no row. Where one copy cannot be written, that is warned of, and the
other has it; where neither can, nothing is queued.

A copy that is older than the queue and is put back by hand, when the other is empty or lost, brings
back entries that were pushed already: they are pushed again, under their keys.
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
from durable_agents.store.rows import StateEntry
from durable_agents.work.artifacts import Artifacts
from durable_agents.work.evidence import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_agents.state.groups import StateStore
    from durable_agents.state.roots import Roots

BACKOFF_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0)
"""The pause after the first failure of an entry, the second, ...; after the fifth it stays the last."""

ENTRIES_MAX: Final = 1000
PUSHES_MAX: Final = 100
"""How many entries one run pushes at most."""

SYNC_QUEUE_FILE: Final = "sync_queue.json"
SYNC_QUEUE_KEY: Final = "queue"
SYNC_QUEUE_VERSION: Final = 1


_LOCK: Final = "sync_queue"
_KEY_BYTES_MAX: Final = 200
_log: Final = logging.getLogger("durable_agents.state.sync_queue")


class SyncEntry(msgspec.Struct, frozen=True):
    """One push that waits: ``dispatches`` are the caller's own JSON objects.

    ``key`` is the same at every attempt; before ``next_attempt_at`` there is none.
    """

    key: str
    agent_id: str
    queued_at: Microseconds
    dispatches: tuple[dict[str, Any], ...]
    attempts: int = 0
    next_attempt_at: Microseconds = 0
    last_error: str = ""


class SyncPass(msgspec.Struct, frozen=True):
    """What one run did: how many were pushed, how many wait, and why and until when, if the head failed."""

    pushed: int = 0
    waiting: int = 0
    error: str = ""
    next_attempt_at: Microseconds | None = None


class Queue(msgspec.Struct, frozen=True):
    """One copy of the queue."""

    revision: int = 0
    entries: tuple[SyncEntry, ...] = ()
    version: int = SYNC_QUEUE_VERSION


class _Header(msgspec.Struct, frozen=True):
    version: int = SYNC_QUEUE_VERSION


_encode: Final = msgspec.json.Encoder().encode
_queue: Final = msgspec.json.Decoder(Queue).decode
_version: Final = msgspec.json.Decoder(_Header).decode


class SyncQueue:
    """The queue of one root. ``push`` delivers one entry and returns when its receiver has it, or raises PushFailed.

    Whatever else it raises counts as a failure, too: a head that was not put off would be tried
    without a pause. ``HttpPush`` is one. May be shared by threads and used by several processes.
    Raises InvalidSetting.
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
        """Prepare; nothing is read yet."""
        if isinstance(entries_max, bool) or not isinstance(entries_max, int) or entries_max < 1:
            message = f"Expected entries_max of 1 or more but got {entries_max!r}; give a number such as {ENTRIES_MAX}."
            raise InvalidSetting(message)
        self._roots = roots
        self._state = state
        self._push = push
        self._clock: Clock = SystemClock() if clock is None else clock
        self._entries_max = entries_max
        self._warned: set[str] = set()

    def entries(self) -> tuple[SyncEntry, ...]:
        """Return what waits, the head first."""
        return self._read().entries

    def enqueue(self, agent_id: str, dispatches: Sequence[dict[str, Any]], *, key: str | None = None) -> SyncEntry:
        """Queue a push behind all others and return it; durable when this returns.

        A caller that may be killed and ask again gives a ``key`` of its own: where an entry with it
        waits, that is returned and nothing is queued. Raises InvalidSyncEntry, SyncQueueFull,
        SyncQueueNotWritten, FolderLocked.
        """
        entry = _checked(SyncEntry(key or secrets.token_hex(16), agent_id, self._clock.now(), tuple(dispatches)))
        with self._roots.locked(_LOCK):
            queue = self._read()
            if there := next((each for each in queue.entries if each.key == entry.key), None):
                return there
            if len(queue.entries) >= self._entries_max:
                message = (
                    f"Expected room in the sync queue but {len(queue.entries)} entries wait, the first since its "
                    f"attempt number {queue.entries[0].attempts} ({queue.entries[0].last_error}); look at the receiver."
                )
                raise SyncQueueFull(message)
            self._write(queue.revision, (*queue.entries, entry))
        return entry

    def drop(self, key: str) -> bool:
        """Remove an entry that will never be taken, and return whether it was there: for people, not for programs."""
        with self._roots.locked(_LOCK):
            queue = self._read()
            rest = tuple(each for each in queue.entries if each.key != key)
            if len(rest) == len(queue.entries):
                return False
            self._write(queue.revision, rest)
        return True

    def run_once(self, now: Microseconds | None = None) -> SyncPass:
        """Push from the head until one fails, is not due, or none is left; at most ``PUSHES_MAX``.

        A failed push is in the result. Raises SyncQueueNotWritten, FolderLocked.
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
        """Tell whether the head may be tried: after its pause, or when the clock was set back by more than any."""
        pause = waiting[0].next_attempt_at - moment
        return pause <= 0 or pause > microseconds(BACKOFF_S[-1])

    def _chosen(self, waiting: tuple[SyncEntry, ...], _: Microseconds) -> SyncEntry:
        return waiting[0]

    def _deliver(self, entry: SyncEntry) -> None:
        """Push, and dequeue only then."""
        sys.audit(StateCrashPoint.SYNC_BEFORE_PUSH, entry.key)
        try:
            self._push(entry)
        except PushFailed:
            raise
        except Exception as error:
            message = (
                f"Expected the push of entry {entry.key} to succeed or to raise PushFailed but {type(error).__name__}: "
                f"{error}; it is tried again."
            )
            raise PushFailed(message) from error
        sys.audit(StateCrashPoint.SYNC_AFTER_PUSH, entry.key)
        self._dequeue(entry)

    def _dequeue(self, entry: SyncEntry) -> None:
        with self._roots.locked(_LOCK):
            queue = self._read()
            rest = tuple(each for each in queue.entries if each.key != entry.key)
            if len(rest) < len(queue.entries):  # else another process was faster
                self._write(queue.revision, rest)

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

    # The two copies

    def _read(self) -> Queue:
        """Return the copy that counts: the one with the larger revision."""
        return max(self._read_store(), self._read_file(), key=lambda copy: copy.revision)

    def _write(self, revision: int, entries: tuple[SyncEntry, ...]) -> None:
        """Write both copies, the file first: an empty queue has no row, so the file must know that it is newer."""
        queue = Queue(revision + 1, entries)
        sys.audit(StateCrashPoint.SYNC_BEFORE_FILE, queue.revision)
        problems = [self._write_file(queue)]
        sys.audit(StateCrashPoint.SYNC_AFTER_FILE, queue.revision)
        problems.append(self._write_store(queue, is_file_behind=bool(problems[0])))
        sys.audit(StateCrashPoint.SYNC_AFTER_STORE, queue.revision)
        if all(problems):
            message = (
                f"Expected to write the sync queue to its file or to the store but could do neither ({problems[0]}; "
                f"{problems[1]}); free space, or make {self._roots.state} writable."
            )
            raise SyncQueueNotWritten(message)
        for place, problem in zip(("file", "store"), problems, strict=True):
            self._warn(place, problem)

    def _read_store(self) -> Queue:
        try:
            store = self._state.store
            entry = None if store is None else store.state(StateGroup.SYNC_QUEUE, SYNC_QUEUE_KEY)
            return Queue() if entry is None else _queue(entry.value)
        except (RecoveryError, msgspec.MsgspecError, ValueError) as error:
            self._warn("store read", str(error))
            return Queue()

    def _read_file(self) -> Queue:
        if not self._roots.state.is_dir():
            return Queue()
        look = Artifacts(self._roots.state).read(SYNC_QUEUE_FILE, bytes_max=VALUE_BYTES_MAX)
        problem = "" if look.reason in {Reason.VERIFIED, Reason.MISSING} else look.detail
        queue = Queue()
        if look.reason is Reason.VERIFIED:
            try:
                look.content.decode()  # a decoder skips what it does not know, whatever the bytes
                queue = _queue(look.content)
            except (msgspec.MsgspecError, ValueError) as error:
                problem = f"is no sync queue: {error}"
            if _is_newer(look.content):
                queue, problem = Queue(), f"is not of version {SYNC_QUEUE_VERSION}"
        self._warn("file read", problem)
        return queue

    def _write_file(self, queue: Queue) -> str:
        """Write the file unless a newer program did; return what stood in the way."""
        try:
            artifacts = Artifacts(self._roots.state)
            before = artifacts.read(SYNC_QUEUE_FILE, bytes_max=VALUE_BYTES_MAX)
            if before.reason not in {Reason.VERIFIED, Reason.MISSING} or _is_newer(before.content):
                return f"{SYNC_QUEUE_FILE} is not ours to replace: {before.detail or 'it has another version'}"
            artifacts.write(SYNC_QUEUE_FILE, msgspec.json.format(_encode(queue)) + b"\n")
        except RecoveryError as error:
            return str(error)
        return ""

    def _write_store(self, queue: Queue, *, is_file_behind: bool) -> str:
        """Write the row, or remove it where the queue is empty; return what stood in the way.

        A file that could not be written still holds what was pushed since: then the row of the
        empty queue must say so.
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
        """Warn once of a copy that fails, and again when it has worked meanwhile."""
        if problem and place not in self._warned:
            _log.warning("the sync queue has only one copy, its %s fails: %s", place, problem)
        (self._warned.add if problem else self._warned.discard)(place)


def _is_newer(content: bytes) -> bool:
    try:
        return _version(content).version != SYNC_QUEUE_VERSION if content else False
    except (msgspec.MsgspecError, ValueError):
        return False


def _checked(entry: SyncEntry) -> SyncEntry:
    names = (entry.agent_id, entry.key)
    if not all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= _KEY_BYTES_MAX for name in names):
        message = (
            f"Expected an agent id and a key of 1 to {_KEY_BYTES_MAX} printable characters but got "
            f"{str(entry.agent_id)[:80]!r} and {str(entry.key)[:80]!r}; shorten them."
        )
        raise InvalidSyncEntry(message)
    if not entry.key.isascii() or not all(isinstance(each, dict) for each in entry.dispatches):
        message = "Expected a key in ASCII and dispatches that are JSON objects but got others; it goes into a header."
        raise InvalidSyncEntry(message)
    try:
        snapshots.encoded(list(entry.dispatches), VALUE_BYTES_MAX // ENTRIES_MAX)
        entry.agent_id.encode()
    except (InvalidSnapshot, UnicodeEncodeError) as error:
        message = f"Expected dispatches that are JSON of at most {VALUE_BYTES_MAX // ENTRIES_MAX} bytes but: {error}"
        raise InvalidSyncEntry(message) from error
    return entry
