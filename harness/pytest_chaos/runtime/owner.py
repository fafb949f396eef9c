"""The owners of a folder: the processes that hold a lock on a file in it.

A pid names a process only in its own PID namespace: two containers that share a folder see each
other's owners as gone. The kernel knows a lock everywhere, and releases it when its holder ends,
however it ends. So a folder is in use while its file ``owner`` is locked, and only a process that
has locked it exclusively may remove the folder.

The lock is a flock(2), which belongs to the open file: a guardian gets the descriptor of its
controller, and is an owner from its first instruction. A fork closes its copy, since an agent that
was left behind must not keep the folder in use. The file says who made it, for people to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE: Final = "CHAOS_OWNER"
"""Set for a guardian and all of its descendants: the path of the session's scratch folder."""

FILE: Final = "owner"
STAGED: Final = "."
"""Prefix of a folder's name until it has its owner."""

_REMOVALS_MAX: Final = 20
_HELD: Final[dict[str, int]] = {}


def make(folder: Path) -> None:
    """Make a folder for this user alone, owned by this process from the moment it has its name.

    Raises OSError: BlockingIOError and FileNotFoundError if a sweep was faster; then try again. On
    a file system without locks the folder has no owner, and no sweep removes it.
    """
    staged = folder.with_name(STAGED + folder.name)
    staged.mkdir(mode=0o700)
    descriptor = os.open(staged / FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
        os.write(descriptor, json.dumps(_description()).encode() + b"\n")
        staged.rename(folder)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(descriptor)
        raise
    adopt(folder, descriptor)


def hold(folder: Path) -> None:
    """Become one more owner of a folder. Does nothing in a folder that has no owner."""
    with contextlib.suppress(OSError):
        descriptor = _open(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        adopt(folder, descriptor)


def adopt(folder: Path, descriptor: int) -> None:
    """Become an owner by the descriptor of another one, which is ours from here on."""
    release(folder)
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
    _HELD[str(folder)] = descriptor


def descriptor_of(folder: Path) -> int | None:
    """Return the locked descriptor by which this process owns a folder, or None."""
    return _HELD.get(str(folder))


def release(folder: Path) -> None:
    """Own a folder no longer."""
    if (descriptor := _HELD.pop(str(folder), None)) is not None:
        os.close(descriptor)


@contextlib.contextmanager
def abandoned(folder: Path) -> Iterator[bool]:
    """Yield whether a folder has an owner file and no owner; if so, it is locked meanwhile."""
    try:
        descriptor = _open(folder)
    except OSError:
        with contextlib.suppress(OSError):  # what a killed make or removal left is empty
            folder.rmdir()
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use; or a file system that has no locks, where nothing is known
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a folder, its owner file last: what a killed removal leaves can be removed again."""
    for _ in range(_REMOVALS_MAX):
        names = _names(folder)
        for name in names - {FILE}:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        if _names(folder) - {FILE}:
            continue  # a process that is about to end made a new file
        with contextlib.suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except FileNotFoundError:
            break
        except OSError:
            with contextlib.suppress(OSError):
                (folder / FILE).touch(mode=0o600)
        else:
            break
    release(folder)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # this file system has no locks
        return


def _open(folder: Path) -> int:
    return os.open(folder / FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _description() -> dict[str, int | str]:
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "pid_namespace": processes.namespace(), "boot_id": boot}


def _disown() -> None:
    """Give up everything in a fork."""
    for descriptor in _HELD.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_disown)
