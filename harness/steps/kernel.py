"""What the kernel offers for watching a process's system calls: seccomp notifications, by ctypes and ioctl.

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
from typing import Final

import msgspec

from harness.errors import StepsUnavailable
from harness.steps.filter import program
from harness.steps.syscalls import AUDIT_ARCH

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

    ``closes`` is whether it traps what closes files. Raises StepsUnavailable on a machine whose calls are not known.
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

        If so, what was read of its memory in between was its own, and not that of a later process with its number.
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
