"""Durable steps: calls that change what a crash would leave. Pure values.

A *node* is the number of a file, folder or link. It is given when the object is first seen or made,
stays with it over renames and further hard links, and is never reused, as an inode number would be
after an unlink. Paths are relative to the watched folder, with ``/``; the folder itself is the
empty path. A name that is not UTF-8 has surrogate escapes, as ``os.fsdecode`` gives it.
"""

from __future__ import annotations

import enum
import functools
from fnmatch import fnmatchcase
from glob import escape
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_NODE: Final = 0
"""No object; nodes begin at 1."""

ROOT_NODE: Final = 1
"""The node of the watched folder itself."""

NO_CONTENT: Final = -1
"""No place in the contents of a recording."""


class Action(enum.StrEnum):
    """The effect of a step, with the fields of ``Step`` that it uses."""

    CREATE = "create"
    """``node`` is a new empty file at ``path``; ``mode`` its permissions."""
    CREATE_UNNAMED = "create_unnamed"
    """``node`` is a new empty file without a name (O_TMPFILE); a LINK may give it one."""
    MAKE_FOLDER = "make_folder"
    """``node`` is a new folder at ``path``."""
    MAKE_NODE = "make_node"
    """``node`` is a new pipe, socket or device at ``path``."""
    SYMLINK = "symlink"
    """``node`` is a new symbolic link at ``path`` to the text ``target``."""
    LINK = "link"
    """``node`` gets a further name ``path``."""
    UNLINK = "unlink"
    """The name ``path`` of ``node`` goes; with its last name the file goes."""
    REMOVE_FOLDER = "remove_folder"
    """The folder ``node`` at ``path`` goes."""
    RENAME = "rename"
    """``node`` moves from ``path`` to ``target`` and replaces what is there. A file from outside
    has an empty ``path``, a new ``node``, and ``length`` bytes of ``content``. A file that leaves
    the watched folder has an empty ``target``."""
    EXCHANGE = "exchange"
    """The objects at ``path`` (``node``) and at ``target`` change places."""
    WRITE = "write"
    """``length`` bytes of ``content`` go to ``offset`` of ``node``, in one call. A copy by the
    kernel (sendfile, splice, copy_file_range, reflink) is a write of the copied bytes."""
    TRUNCATE = "truncate"
    """``node`` gets the size ``length``; bytes that it gains are zero."""
    ALLOCATE = "allocate"
    """``node`` gets at least the size ``offset + length``; bytes that it gains are zero."""
    ZERO = "zero"
    """``length`` bytes from ``offset`` of ``node`` become zero; its size stays."""
    CHANGE_MODE = "change_mode"
    """``node`` gets the permissions ``mode``."""
    SYNC = "sync"
    """fsync of ``node``, a file or a folder. With O_SYNC it follows each write."""
    SYNC_DATA = "sync_data"
    """fdatasync or msync of ``node``: data, and its size. With O_DSYNC it follows each write."""
    SYNC_RANGE = "sync_range"
    """sync_file_range of ``node``: starts or awaits writing, and promises nothing."""
    SYNC_ALL = "sync_all"
    """sync or syncfs: everything in the watched folder."""
    POINT = "point"
    """A named point of the program; ``path`` is its name. Nothing changes. Audit events only."""
    MARK = "mark"
    """Not a step: a mark, whose bytes are its ``content``. Its number is that of the last step."""


VOLATILE: Final = ("*-shm", "lock.mdb")
"""Files that are known to be shared memory alone: SQLite's ``-shm``, and the lock file of LMDB."""


class FileKinds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Patterns of files that are no data.

    No call on an *ignored* file is a step, and it is in no state unless it was there before the
    run; then it stays as it was. A *volatile* file is shared memory or a lock: a kill leaves it,
    after a power loss it is gone, and its contents are neither compared nor followed where they are
    mapped.

    A pattern without a slash matches names in any folder, one with a slash the path from the
    watched folder; ``**`` stands for any folders. A folder's match is one of all that is in it.

    >>> FileKinds(ignored=("*.log", "run/*.pid", "/cache")).ignores("logs/app.log")
    True
    >>> FileKinds().is_volatile("data/a.db-shm"), FileKinds().is_volatile("data.mdb")
    (True, False)
    """

    ignored: tuple[str, ...] = ()
    volatile: tuple[str, ...] = VOLATILE

    def ignores(self, path: str) -> bool:
        """Whether a path, relative to the watched folder, is ignored."""
        return bool(self.ignored) and _is_matched(path, self.ignored)

    def is_volatile(self, path: str) -> bool:
        """Whether a path, relative to the watched folder, is that of a volatile file."""
        return _is_matched(path, self.volatile)

    def with_volatile(self, path: str) -> FileKinds:
        """Return these patterns with one more volatile file."""
        return FileKinds(self.ignored, (*self.volatile, f"/{escape(path)}"))


KNOWN_FILES: Final = FileKinds()
"""The files that are known to be no data without a pattern."""


@functools.lru_cache(maxsize=1 << 16)
def _is_matched(path: str, patterns: tuple[str, ...]) -> bool:
    names = path.split("/")
    return bool(path) and any(_covers(_parts_of(pattern), names) for pattern in patterns)


def _parts_of(pattern: str) -> list[str]:
    pattern = pattern.rstrip("/")
    return pattern.lstrip("/").split("/") if "/" in pattern else ["**", pattern]


def _covers(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the parts of a pattern match a path, or a folder above it."""
    if not parts:
        return True
    if parts[0] == "**":
        return any(_covers(parts[1:], names[place:]) for place in range(len(names)))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _covers(parts[1:], names[1:])


def readable(text: str) -> str:
    r"""Return a text that can be encoded as UTF-8; other bytes of a name are shown as numbers.

    >>> readable("caf\udce9")
    'caf\\xe9'
    """
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate in a text of a check; no file name has one
        return text.encode("utf-8", "backslashreplace").decode()


SYNCS: Final = frozenset({Action.SYNC, Action.SYNC_DATA, Action.SYNC_RANGE, Action.SYNC_ALL})


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A durable step, or a mark. ``offset`` and ``length`` in bytes, ``mode`` as permission bits.

    ``call`` is the system call or audit event. ``process`` and ``thread`` are counted from 1 in the
    order in which the run shows them, so that two runs of one program compare equal. A WRITE with a
    ``look`` is no call: the bytes were stored through shared memory before this look at the file
    (from 1), in an order that is not known. Its ``process`` and ``thread`` made the next call.

    >>> str(Step(number=12, action=Action.WRITE, call="write", path="a.db", offset=32, length=4096))
    '12: write a.db 4096 bytes at 32'
    """

    number: int
    action: Action
    call: str
    path: str = ""
    target: str = ""
    node: int = NO_NODE
    offset: int = 0
    length: int = 0
    mode: int = 0
    content: int = NO_CONTENT
    process: int = 1
    thread: int = 1
    look: int = 0

    @property
    def is_mark(self) -> bool:
        """Whether this is a mark."""
        return self.action is Action.MARK

    @property
    def effect(self) -> tuple[Action, str, str, int, int]:
        """The part of a step that is equal in two runs of a deterministic program."""
        return (self.action, self.path, self.target, self.offset, self.length)

    def has_effect_of(self, other: Step) -> bool:
        """Whether the effects of two steps are equal."""
        return (  # without making two tuples: asked of every step of a run
            self.action is other.action
            and self.path == other.path
            and self.target == other.target
            and self.offset == other.offset
            and self.length == other.length
        )

    def __str__(self) -> str:
        """Return the step as reports show it."""
        where = f"{self.path} -> {self.target}" if self.target else self.path
        extent = f" {self.length} bytes at {self.offset}" if self.action is Action.WRITE else ""
        size = f" to {self.length} bytes" if self.action is Action.TRUNCATE else ""
        how = " (through memory)" if self.look else ""
        return f"{self.number}: {self.action.value} {readable(where) or '.'}{extent}{size}{how}"


class ProcessSeen(msgspec.Struct, frozen=True):
    """A process of the program: its number, the number of the step before which it was known first.

    ``names`` are ``main`` for the first one, ``child`` for one that was forked and runs no other
    program; its title; and the program and the first words of its command line.
    """

    number: int
    since: int
    names: tuple[str, ...]

    def is_called(self, pattern: str) -> bool:
        """Whether its number, or one of its names, matches a pattern.

        >>> ProcessSeen(2, 5, ("python3", "worker.py")).is_called("work*")
        True
        """
        return pattern == str(self.number) or any(fnmatchcase(name, pattern) for name in self.names)

    def __str__(self) -> str:
        """Return the process as reports show it."""
        return f"{self.number} ({' '.join(self.names)})"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The object at one path before a run begins. ``kind`` is file, folder, symlink or other.

    Entries with the same ``node`` are hard links. ``content`` is the place of a file's ``length``
    bytes in the recording; ``target`` is the text of a symbolic link.
    """

    path: str
    node: int
    kind: str
    mode: int = 0
    length: int = 0
    content: int = NO_CONTENT
    target: str = ""


class BlindSpot(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the step source could not see, or denied because it could not have seen it.

    ``what`` is a short name (``io_uring``, ``shared-mapping``, ``unreadable-process``). With
    ``is_denied`` the program got an error, so nothing escaped. ``number`` is the last step before
    it.
    """

    what: str
    text: str
    is_denied: bool = False
    number: int = 0


class Touch(enum.StrEnum):
    """What a call does to a file that is no durable step. Noted only for an ``EventLog``."""

    OPEN = "open"
    """A regular file of the folder is opened, as ``descriptor``."""
    CLOSE = "close"
    """``descriptor`` is closed; ``offset`` is its position, ``length`` the size of the file."""
    LOCK = "lock"
    """A POSIX lock (fcntl) of ``length`` bytes from ``offset``, of the type ``lock``, is wanted."""
    READ = "read"
    """A read at the end of the file: what came before was read in order."""
    COPY = "copy"
    """The kernel copies out of ``descriptor`` (sendfile, copy_file_range, a reflink)."""
    EXIT = "exit"
    """The process ends, or runs another program."""


class LockType(enum.StrEnum):
    """The type of a POSIX lock."""

    READ = "read"
    WRITE = "write"
    NONE = "none"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A step, a mark or a touch of a file, with who did it and at which line. Plain data.

    One of ``action`` and ``touch`` is there; ``what`` is that one.
    ``process`` tells processes of the run apart, ``thread`` its threads. ``number`` is that of the
    last durable step, this one included. ``head`` are the first bytes of a write, or a whole mark.
    ``descriptor`` is
    that of a write. ``holders`` are the processes, each with a descriptor, that have the file open
    which loses its name: ``node``, or with a rename ``replaced``. ``behind`` is the number of
    frames that the write-ahead log beside a database has and the database lacks. ``system`` is the
    type of the file system, with the first lock of a file; ``refused`` is the errno with which that
    file system answers any lock, as ``ENOLCK``.
    """

    process: str
    thread: int = 0
    action: Action | None = None
    touch: Touch | None = None
    line: str = ""
    number: int = 0
    path: str = ""
    target: str = ""
    node: int = NO_NODE
    replaced: int = NO_NODE
    descriptor: int = -1
    offset: int = 0
    length: int = 0
    lock: LockType = LockType.NONE
    head: bytes = b""
    holders: tuple[tuple[str, int], ...] = ()
    replaced_holders: tuple[tuple[str, int], ...] = ()
    behind: int = 0
    system: str = ""
    refused: str = ""

    @property
    def what(self) -> Action | Touch:
        """What was done."""
        found = self.action or self.touch
        assert found is not None  # noqa: S101 - each event is made with one
        return found
