"""A durable step: one call that changes what a crash would leave. Pure values.

Objects are known by a *node*, a number given to each file, folder or link when it is first seen or
made, which stays with it over renames and further hard links, and is never given again: an inode
number would be, after an unlink. Paths are relative to the watched folder, with ``/`` and without a
leading one; the folder itself is the empty path. A name that is not UTF-8 is held with surrogate
escapes, as ``os.fsdecode`` gives it.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

NO_NODE: Final = 0
"""Stands for no object; nodes begin at 1, which is the watched folder."""

ROOT_NODE: Final = 1
"""The node of the watched folder itself."""

NO_CONTENT: Final = -1
"""Stands for no place in the contents of a recording."""


class Action(enum.StrEnum):
    """What a step does. The fields of ``Step`` that it uses are named with each."""

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
    """The name ``path`` of ``node`` goes, and the file with its last name."""
    REMOVE_FOLDER = "remove_folder"
    """The folder ``node`` at ``path`` goes."""
    RENAME = "rename"
    """``node`` moves from ``path`` to ``target``, in place of what is there. ``path`` is empty, and ``node`` new, for
    a file that comes from outside the watched folder (``length`` bytes of ``content`` are what it
    holds); ``target`` is empty for what leaves it."""
    EXCHANGE = "exchange"
    """What is at ``path`` (``node``) and at ``target`` change places."""
    WRITE = "write"
    """``length`` bytes of ``content`` go to ``offset`` of ``node``, in this one call. A copy by the kernel (sendfile,
    splice, copy_file_range, reflink) is a write of what was copied."""
    TRUNCATE = "truncate"
    """``node`` gets the size ``length``; what it grows by is zero."""
    ALLOCATE = "allocate"
    """``node`` gets at least the size ``offset + length``; what it grows by is zero."""
    ZERO = "zero"
    """``length`` bytes from ``offset`` of ``node`` become zero (a hole or zeros); its size stays."""
    CHANGE_MODE = "change_mode"
    """``node`` gets the permissions ``mode``."""
    SYNC = "sync"
    """fsync of ``node``, a file or a folder; of a file opened with O_SYNC it follows each write."""
    SYNC_DATA = "sync_data"
    """fdatasync or msync of ``node``, or a write to a file opened with O_DSYNC: data, and the size it needs."""
    SYNC_RANGE = "sync_range"
    """sync_file_range of ``node``: starts or awaits writing, and promises nothing (its manual page says so)."""
    SYNC_ALL = "sync_all"
    """sync or syncfs: everything in the watched folder."""
    POINT = "point"
    """Nothing changes: the program passes a point that it has named itself; ``path`` is the name. Audit events only."""
    MARK = "mark"
    """Not a step: an agent wrote a mark; the bytes are its ``content``. Its number is that of the step before it."""


def readable(text: str) -> str:
    """Return a text that can be written anywhere: what is no UTF-8 in a name is shown by the numbers of its bytes."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no name has such letters, but a check may say anything
        return text.encode("utf-8", "backslashreplace").decode()


SYNCS: Final = frozenset({Action.SYNC, Action.SYNC_DATA, Action.SYNC_RANGE, Action.SYNC_ALL})


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One step, or one mark. ``offset`` and ``length`` are in bytes, ``mode`` is permission bits.

    ``call`` is the name of the system call (or audit event). ``process`` and ``thread`` count those
    of the run from 1 in the order in which they were seen, so that two runs of one program compare
    equal.
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

    @property
    def is_mark(self) -> bool:
        """Whether this is a mark and not a step."""
        return self.action is Action.MARK

    @property
    def trace(self) -> tuple[Action, str, str, int, int]:
        """What two runs of a deterministic program have in common at this step."""
        return (self.action, self.path, self.target, self.offset, self.length)

    def does_as(self, other: Step) -> bool:
        """Whether the traces of two steps are equal; asked of every step of a run that is to be as another one was."""
        return (
            self.action is other.action
            and self.path == other.path
            and self.target == other.target
            and self.offset == other.offset
            and self.length == other.length
        )

    def __str__(self) -> str:
        """Say the step as a report does: ``12: write a.db-wal 4096 bytes at 32``."""
        where = f"{self.path} -> {self.target}" if self.target else self.path
        extent = f" {self.length} bytes at {self.offset}" if self.action is Action.WRITE else ""
        size = f" to {self.length} bytes" if self.action is Action.TRUNCATE else ""
        return f"{self.number}: {self.action.value} {readable(where) or '.'}{extent}{size}"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is at one path before a run begins. ``kind`` is file, folder, symlink or other; a link's text is ``target``.

    Several entries with one ``node`` are hard links. ``content`` is the place of a file's
    ``length`` bytes in the recording's contents.
    """

    path: str
    node: int
    kind: str
    mode: int = 0
    length: int = 0
    content: int = NO_CONTENT
    target: str = ""


class BlindSpot(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the source could not see, or denied because it could not have seen it.

    ``what`` is a short name (``io_uring``, ``shared-mapping``, ``nested-filter``,
    ``unreadable-process``); with ``is_denied`` the program was told that there is no such call, and
    nothing escaped.
    """

    what: str
    text: str
    is_denied: bool = False
    number: int = 0
