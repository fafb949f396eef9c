"""The numbers of the system calls that a step source looks at, by machine. Pure.

Numbers are the kernel's own and never change for a machine;
``tests/harness/trace/test_steps_syscalls.py`` compares them with the kernel's headers. A machine
that lacks a call (aarch64 has no ``open``, only ``openat``) lacks its name here.

The filter: a small program for the kernel that says which calls the supervisor hears of. Pure.

It is classic BPF over ``struct seccomp_data`` (number, machine, instruction pointer, six
arguments). Everything that it does not name passes at full speed; so the many calls that only read
cost nothing, and an ``open`` is trapped only with flags that make, empty or specially open a file.

What the kernel offers for watching a process's system calls: seccomp notifications, by ctypes and
ioctl.

Sources: seccomp(2), seccomp_unotify(2), pidfd_getfd(2), and ``linux/seccomp.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
import warnings
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import StepsUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AUDIT_ARCH: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What a filter sees as the machine of a call (``linux/audit.h``)."""

NUMBER_MAX: Final = 469
"""The last call that was known when this was written (6.17): a later one may change files in ways not known here."""

NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "write": 1,
        "open": 2,
        "close": 3,
        "mmap": 9,
        "mprotect": 10,
        "ioctl": 16,
        "pwrite64": 18,
        "writev": 20,
        "msync": 26,
        "dup2": 33,
        "sendfile": 40,
        "bind": 49,
        "execve": 59,
        "fcntl": 72,
        "fsync": 74,
        "fdatasync": 75,
        "truncate": 76,
        "ftruncate": 77,
        "rename": 82,
        "mkdir": 83,
        "rmdir": 84,
        "creat": 85,
        "link": 86,
        "unlink": 87,
        "symlink": 88,
        "chmod": 90,
        "fchmod": 91,
        "umask": 95,
        "mknod": 133,
        "sync": 162,
        "setxattr": 188,
        "lsetxattr": 189,
        "fsetxattr": 190,
        "io_setup": 206,
        "openat": 257,
        "mkdirat": 258,
        "mknodat": 259,
        "unlinkat": 263,
        "renameat": 264,
        "linkat": 265,
        "symlinkat": 266,
        "fchmodat": 268,
        "splice": 275,
        "sync_file_range": 277,
        "fallocate": 285,
        "dup3": 292,
        "pwritev": 296,
        "open_by_handle_at": 304,
        "syncfs": 306,
        "renameat2": 316,
        "execveat": 322,
        "copy_file_range": 326,
        "pwritev2": 328,
        "io_uring_setup": 425,
        "close_range": 436,
        "openat2": 437,
        "fchmodat2": 452,
        "setxattrat": 463,
    },
    "aarch64": {
        "io_setup": 0,
        "setxattr": 5,
        "lsetxattr": 6,
        "fsetxattr": 7,
        "dup3": 24,
        "fcntl": 25,
        "ioctl": 29,
        "mknodat": 33,
        "mkdirat": 34,
        "unlinkat": 35,
        "symlinkat": 36,
        "linkat": 37,
        "renameat": 38,
        "truncate": 45,
        "ftruncate": 46,
        "fallocate": 47,
        "fchmod": 52,
        "fchmodat": 53,
        "openat": 56,
        "close": 57,
        "write": 64,
        "writev": 66,
        "pwrite64": 68,
        "pwritev": 70,
        "sendfile": 71,
        "splice": 76,
        "sync": 81,
        "fsync": 82,
        "fdatasync": 83,
        "sync_file_range": 84,
        "umask": 166,
        "bind": 200,
        "execve": 221,
        "mmap": 222,
        "mprotect": 226,
        "msync": 227,
        "open_by_handle_at": 265,
        "syncfs": 267,
        "renameat2": 276,
        "execveat": 281,
        "copy_file_range": 285,
        "pwritev2": 287,
        "io_uring_setup": 425,
        "close_range": 436,
        "openat2": 437,
        "fchmodat2": 452,
        "setxattrat": 463,
    },
}

CLOSES: Final = ("close", "dup2", "dup3", "close_range")
"""By these, and by an exec, a descriptor comes to lead to another file; a filter may leave them out."""


ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_MACHINE_AT: Final = 4
_ARGUMENT_AT: Final = 16

TMPFILE_BIT: Final = 0o20000000
"""What tells O_TMPFILE from O_DIRECTORY, which it contains."""
OPEN_FLAGS: Final = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_SYNC | os.O_DSYNC | TMPFILE_BIT
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
SET_FLAGS_COMMAND: Final = 4
"""F_SETFL of fcntl, which may make a file append."""
CLONE: Final = 0x40049409
"""FICLONE, an ioctl: share all blocks of another file, whose descriptor is the argument."""
CLONE_RANGE: Final = 0x4020940D
"""FICLONERANGE: share some of them; the argument is the address of four numbers of eight bytes each."""
CLONE_COMMANDS: Final = (CLONE, CLONE_RANGE)

_Instruction = tuple[int, int, int, int]


def program(machine: str, *, closes: bool = True) -> bytes:
    """Return the filter for a machine, as the kernel takes it: eight bytes an instruction.

    With ``closes`` it traps what closes files, too: who hears of that need not ask with each write
    where it goes.
    """
    numbers = {name: number for name, number in NUMBERS[machine].items() if closes or name not in CLOSES}
    instructions: list[_Instruction] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, NOTIFY),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER, 0, 1, NUMBER_MAX),
        (_RETURN, 0, 0, NOTIFY),
    ]
    for name, argument in (("open", 1), ("openat", 2), ("open_by_handle_at", 2)):
        if name in numbers:
            instructions += _if_number(numbers.pop(name), _if_set(argument, OPEN_FLAGS))
    instructions += _if_number(numbers.pop("mmap"), _if_set(3, MAP_SHARED))
    instructions += _if_number(numbers.pop("mprotect"), _if_set(2, PROT_WRITE))
    instructions += _if_number(numbers.pop("fcntl"), _if_equal(1, (SET_FLAGS_COMMAND,)))
    instructions += _if_number(numbers.pop("ioctl"), _if_equal(1, CLONE_COMMANDS))
    for number in numbers.values():
        instructions += _if_number(number, [(_RETURN, 0, 0, NOTIFY)])
    instructions.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _if_number(number: int, then: Sequence[_Instruction]) -> list[_Instruction]:
    """Do this for one call; ``then`` always returns. The number is in the accumulator, and stays there."""
    return [(_JUMP_EQUAL, 0, len(then), number), *then]


def _if_set(argument: int, bits: int) -> list[_Instruction]:
    """Notify where the argument has one of the bits, else allow."""
    return [*_load(argument), (_JUMP_SET, 0, 1, bits), (_RETURN, 0, 0, NOTIFY), (_RETURN, 0, 0, ALLOW)]


def _if_equal(argument: int, values: Sequence[int]) -> list[_Instruction]:
    """Notify where the argument is one of the values, else allow."""
    tests = [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, NOTIFY))]
    return [*_load(argument), *tests, (_RETURN, 0, 0, ALLOW)]


def _load(argument: int) -> list[_Instruction]:
    """Load the low half of an argument: flags and descriptors fit into it."""
    return [(_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument)]


MACHINE: Final = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_PIDFD_OPEN: Final = 434
_PIDFD_GETFD: Final = 438
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE: Final = 1 << 5
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_PR_SET_NO_NEW_PRIVS: Final = 38

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1

_NOTIFICATION: Final = struct.Struct("<QI4xiI8x6Q")
"""Its flags, which are always 0, and the instruction pointer are left out."""
_RESPONSE: Final = struct.Struct("<QqiI")
_IDENTITY: Final = struct.Struct("<Q")
_NOTHING: Final = bytes(_NOTIFICATION.size)

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Notification(msgspec.Struct, frozen=True, gc=False):
    """A call that waits for its answer. ``thread`` is the caller's thread id; ``arguments`` are six unsigned words."""

    id: int
    thread: int
    number: int
    machine: int
    arguments: list[int]


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """The filter, ready to be put on: made before a fork, so that the child has nothing to allocate.

    ``closes`` is whether it traps what closes files. Raises StepsUnavailable on a machine whose
    calls are not known.
    """

    def __init__(self, *, closes: bool = True) -> None:
        self.closes = closes
        if MACHINE not in AUDIT_ARCH:
            msg = f"steps are counted on {' and '.join(AUDIT_ARCH)}, and this machine is {MACHINE}; use named points"
            raise StepsUnavailable(msg)
        code = program(MACHINE, closes=closes)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))

    def put_on(self) -> int:
        """Put the filter on this process, for good, and return the descriptor of its listener. Raises OSError."""
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
            number = ctypes.c_long(_SECCOMP[MACHINE])
            listener: int = _libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(self._program))
            if listener >= 0:
                return listener
            if ctypes.get_errno() != errno.EINVAL:  # which an older kernel says of a flag that it does not know
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def refusal(self) -> int:
        """Return the error with which this machine refuses the filter, 0 where it does not: a child tries it on."""
        with warnings.catch_warnings():  # Python 3.12 warns of threads, and this child waits on none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            number = errno.EPERM
            try:
                self.put_on()
                number = 0
            except OSError as error:
                number = error.errno or number
            finally:
                os._exit(number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Listener:
    """The supervisor's end: takes notifications and answers them. ``descriptor`` becomes its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray(_NOTIFICATION.size)
        self._answer = bytearray(_RESPONSE.size)
        self._passing = bytearray(_RESPONSE.pack(0, 0, 0, _CONTINUE))
        with contextlib.suppress(OSError):  # since Linux 6.6: waking the other on the same processor, 5 times faster
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """Take the next notification; None where its caller was killed meanwhile."""
        self._buffer[:] = _NOTHING
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, self._buffer)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:
                return None
            raise
        identity, thread, number, machine, *arguments = _NOTIFICATION.unpack(self._buffer)
        return Notification(identity, thread, number, machine, arguments)

    def let_pass(self, notification: Notification) -> bool:
        """Have the kernel do the call as if nobody had asked. Return whether its caller was there to the last.

        If so, what was read of its memory in between was its own, and not that of a later process
        with its number.
        """
        _IDENTITY.pack_into(self._passing, 0, notification.id)
        return self._send(self._passing)

    def fail(self, notification: Notification, error: int) -> bool:
        """Have the call fail with an error, without being done. Return as ``let_pass`` does."""
        _RESPONSE.pack_into(self._answer, 0, notification.id, 0, -error, 0)
        return self._send(self._answer)

    def succeed(self, notification: Notification, value: int) -> bool:
        """Have the call return a value, without being done. Return as ``let_pass`` does."""
        _RESPONSE.pack_into(self._answer, 0, notification.id, value, 0, 0)
        return self._send(self._answer)

    def _send(self, answer: bytearray) -> bool:
        try:
            fcntl.ioctl(self.descriptor, _SEND, answer)
        except OSError as failure:
            if failure.errno == errno.ENOENT:  # the caller was killed meanwhile
                return False
            raise
        return True

    def close(self) -> None:
        """Close the listener: calls of processes that still have the filter fail with ENOSYS from now on."""
        os.close(self.descriptor)


def adopt_orphans(*, adopts: bool = True) -> bool:
    """Make this process the parent of all descendants whose own parent ends, so that none of them gets away.

    Return whether it was before, so that what is done for a while can be undone.
    """
    before = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0)
    return bool(before.value)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def trim_memory() -> None:
    """Give back to the kernel what was freed, where the C library can (that of GNU)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def borrow_descriptor(process: int, descriptor: int) -> int:
    """Return a descriptor of ours for an open file of another process, position and flags shared. Raises OSError."""
    pidfd: int = _libc.syscall(ctypes.c_long(_PIDFD_OPEN), process, 0)
    if pidfd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        borrowed: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, descriptor, 0)
    finally:
        os.close(pidfd)
    if borrowed < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return borrowed
