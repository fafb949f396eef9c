"""Buffers: where cycles keep what they find until it gets into the history, and what becomes of them after a crash.

A *cycle* is one round of work whose findings are only worth something together: half of a round,
compared with the round before, would show findings as fixed that nobody looked for. So each cycle
writes to a buffer of its own (``durable_agents.state.cycles``), and its commit copies all of it
into the store in one transaction. A crash leaves the buffer behind, an orphan; ``recover_orphans``
removes it and never commits it. A buffer whose owner lives is left alone, whichever process looks
(D24).

**An unreadable orphan** is moved into ``quarantine``, with the files that SQLite keeps beside it,
and nothing in it is changed: somebody may want to know why. The order is the file first, then what
lies beside it, in removing as in moving; so whoever is killed in between leaves something that
tells the next how to go on. What the quarantine has under that name already (only a name that is
not of our making comes twice) makes room first, under the next free number.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import logging
import os
import re
import secrets
import sqlite3
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.clock import Clock, SystemClock
from durable_agents.errors import InvalidCycle
from durable_agents.processes import Liveness, look, start_of
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.cycles import NAME_PATTERN, SIDECARS, SUFFIX, Buffer, BufferOwner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents.state.groups import StateStore
    from durable_agents.state.roots import Roots
    from durable_agents.store.rows import Cycle


QUARANTINE: Final = "quarantine"

_MAGIC: Final = b"SQLite format 3\0"
_PAGE: Final = 1000
_LOCK: Final = "buffers"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_log: Final = logging.getLogger("durable_agents.state.buffers")


class Disposition(enum.StrEnum):
    """What became of a buffer that was found."""

    LEFT = "left"
    DISCARDED = "discarded"
    QUARANTINED = "quarantined"


class FoundBuffer(msgspec.Struct, frozen=True):
    """A buffer that was found: its file's name without the folder, its fate, and why."""

    file: str
    disposition: Disposition
    detail: str = ""


class Orphans(msgspec.Struct, frozen=True):
    """What one look at the folder of buffers did; ``problems`` are sentences about what could not be done."""

    found: tuple[FoundBuffer, ...] = ()
    problems: tuple[str, ...] = ()

    def count(self, disposition: Disposition) -> int:
        """Return how many buffers met this fate."""
        return sum(each.disposition is disposition for each in self.found)


class Buffers:
    """The buffers of the cycles below one root, and the history that they get into. May be shared by threads."""

    buffer: type[Buffer] = Buffer

    def __init__(self, roots: Roots, state: StateStore, *, clock: Clock | None = None) -> None:
        """Prepare; nothing is made yet."""
        self._roots = roots
        self._state = state
        self._clock: Clock = SystemClock() if clock is None else clock

    @property
    def folder(self) -> Path:
        """The folder of the buffers."""
        return self._roots.buffers

    def begin(self, name: str) -> Buffer:
        """Begin a cycle of this name, which may have been used before, also at this moment by others.

        Raises InvalidCycle for a name that cannot be part of a file's, BufferNotWritten.
        """
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            shown = repr(name)
            message = (
                f"Expected the name of a cycle to be 1 to 100 letters, digits, '.', '_' and '-' but got {shown[:120]}; "
                "replace what else is in it."
            )
            raise InvalidCycle(message)
        self._roots.make()
        cycle_id = f"{self._clock.now():016x}-{secrets.token_hex(6)}"
        start = start_of(os.getpid())
        assert start is not None  # noqa: S101 - this very process
        sys.audit(StateCrashPoint.CYCLE_BEFORE_BEGIN, cycle_id)
        buffer = self.buffer(self.folder, BufferOwner(name, cycle_id, os.getpid(), start), self._state, self._clock)
        sys.audit(StateCrashPoint.CYCLE_AFTER_BEGIN, cycle_id)
        return buffer

    def history(self, *, after: str = "") -> Iterator[Cycle]:
        """Yield the committed cycles, oldest first, those behind the id ``after``."""
        store = self._state.store
        while store is not None and (page := store.cycles(after=after, limit=_PAGE)):
            yield from page
            after = page[-1].cycle_id

    def entries(self, cycle_id: str) -> Iterator[tuple[str, Any]]:
        """Yield kind and value of each entry of a committed cycle, in their order."""
        store, after = self._state.store, 0
        while store is not None and (page := store.cycle_entries(cycle_id, after=after, limit=_PAGE)):
            yield from ((entry.kind, msgspec.json.decode(entry.value)) for entry in page)
            after = page[-1].place

    def recover_orphans(self) -> Orphans:
        """Discard the buffers whose owners are dead, quarantine what cannot be read, leave those of the living.

        A missing folder has none. Doing it twice, or after it was killed anywhere, comes to the
        same. Files that are no buffers are not touched. Raises FolderLocked.
        """
        found: list[FoundBuffer] = []
        problems: list[str] = []
        with self._roots.locked(_LOCK):
            sys.audit(StateCrashPoint.ORPHANS_BEFORE_LOOK, "")
            for stem, suffixes in self._listed(problems).items():
                try:
                    found.append(self._judge(stem, suffixes))
                except OSError as error:
                    problems.append(f"the buffer {stem} could not be put away: {error.strerror or error}")
        for problem in problems:
            _log.warning("%s", problem)
        return Orphans(tuple(found), tuple(problems))

    def _listed(self, problems: list[str]) -> dict[str, set[str]]:
        """Return what lies in the folder, by the name of a buffer's file: which suffixes there are."""
        stems: dict[str, set[str]] = {}
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return {}
        except OSError as error:
            problems.append(f"the buffers in {self.folder} could not be listed: {error.strerror or error}")
            return {}
        for name in names:
            stem, found, suffix = name.rpartition(SUFFIX)
            if found and suffix in {"", *SIDECARS}:
                stems.setdefault(stem, set()).add(suffix)
        return stems

    def _judge(self, stem: str, suffixes: set[str]) -> FoundBuffer:
        owner = BufferOwner.of(stem)
        if owner is not None and self._is_live(owner):
            return FoundBuffer(stem, Disposition.LEFT, f"process {owner.pid} lives")
        if "" not in suffixes:
            if os.path.lexists(self.folder / QUARANTINE / (stem + SUFFIX)):
                return self._quarantine(stem, "its file is there already")
            return self._discard(stem, "its file is gone already")
        problem = "its name tells no owner" if owner is None else _unreadable(self.folder / (stem + SUFFIX))
        if problem:
            return self._quarantine(stem, problem)
        return self._discard(stem, "its owner is dead")

    def _is_live(self, owner: BufferOwner) -> bool:
        return look(owner.pid, owner.start) is not Liveness.DEAD

    def _discard(self, stem: str, detail: str) -> FoundBuffer:
        sys.audit(StateCrashPoint.ORPHANS_BEFORE_DISCARD, stem)
        for suffix in ("", *SIDECARS):
            (self.folder / (stem + SUFFIX + suffix)).unlink(missing_ok=True)
            if not suffix:
                sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD_FILE, stem)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD, stem)
        return FoundBuffer(stem, Disposition.DISCARDED, detail)

    def _quarantine(self, stem: str, detail: str) -> FoundBuffer:
        sys.audit(StateCrashPoint.ORPHANS_BEFORE_QUARANTINE, stem)
        with contextlib.ExitStack() as stack:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            with contextlib.suppress(FileExistsError):
                os.mkdir(QUARANTINE, dir_fd=folder)
            place = os.open(QUARANTINE, _FOLDER, dir_fd=folder)  # refused where it is a link, which would lead outside
            stack.callback(os.close, place)
            if os.path.lexists(self.folder / (stem + SUFFIX)):
                _make_room(place, stem)
            for suffix in ("", *SIDECARS):
                name = stem + SUFFIX + suffix
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=folder, dst_dir_fd=place)
                if not suffix:
                    sys.audit(StateCrashPoint.ORPHANS_AFTER_QUARANTINE_FILE, stem)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_QUARANTINE, stem)
        _log.warning("the buffer %s is in %s: %s", stem, QUARANTINE, detail)
        return FoundBuffer(stem, Disposition.QUARANTINED, detail)


def _make_room(place: int, stem: str) -> None:
    """Give an earlier buffer of this name another one, its file last: while that is there, the number is not used."""
    names = set(os.listdir(place))
    if stem + SUFFIX not in names:
        return
    number = next(count for count in itertools.count(1) if f"{stem}.{count}{SUFFIX}" not in names)
    for suffix in (*SIDECARS, ""):
        if stem + SUFFIX + suffix in names:
            os.rename(stem + SUFFIX + suffix, f"{stem}.{number}{SUFFIX}{suffix}", src_dir_fd=place, dst_dir_fd=place)


def _unreadable(path: Path) -> str:
    """Return why an orphan's file is no sound database, or nothing; without changing it, or following a link."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return "is a link" if stat.S_ISLNK(status.st_mode) else "is not a regular file"
    if not status.st_size:
        return ""  # its owner died before anything was written
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:  # which a log beside it that has the whole content would hide
            return "does not begin as a database"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return "" if answer == "ok" else str(answer)
    except sqlite3.Error as error:
        return str(error)
