"""Durable steps: calls that change what a crash would leave. Pure values.

A *node* is the number of a file, folder or link. It is given when the object is first seen or made,
stays with it over renames and further hard links, and is never reused, as an inode number would be
after an unlink. Paths are relative to the watched folder, with ``/``; the folder itself is the
empty path. A name that is not UTF-8 has surrogate escapes, as ``os.fsdecode`` gives it.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

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


_MEMORY_FILES: Final = ("-shm", "/lock.mdb")


def is_memory_file(path: str) -> bool:
    """Whether a file is known to be shared memory alone, which no restart reads.

    That is SQLite's ``-shm``, and the lock file of LMDB. What is stored to it is not followed.

    >>> is_memory_file("a.db-shm"), is_memory_file("lock.mdb"), is_memory_file("data.mdb")
    (True, True, False)
    """
    return f"/{path}".endswith(_MEMORY_FILES)


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
