"""Seccomp notifications: the kernel's interface to watch system calls, by ctypes and ioctl.

A trapped call waits in the kernel. The process that holds the listener receives a notification,
looks at the caller, and answers: let it pass, fail it, or claim that it was done. Sources:
seccomp(2), seccomp_unotify(2), pidfd_getfd(2), ``linux/seccomp.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import signal
import struct
import warnings
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import StepsUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

MACHINE: Final = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
AUDIT_ARCH: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The machine of a call, as a filter and a notification show it (``linux/audit.h``)."""

# Numbers of system calls that the C library has no function for.
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_PIDFD_GETFD: Final = 438
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}
_RESTART: Final = 512
"""ERESTARTSYS of the kernel: once the caller has stopped and goes on, the call is made again."""

_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE: Final = 1 << 5
_PR_SET_NO_NEW_PRIVS: Final = 38

# Requests of ioctl on a listener, and their flags (linux/seccomp.h).
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1

_NOTIFICATION: Final = struct.Struct("<QI4xiIQ6Q")
"""struct seccomp_notif: id, pid, (flags), number, machine, instruction pointer, six arguments."""
_RESPONSE: Final = struct.Struct("<QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""
_IDENTITY: Final = struct.Struct("<Q")
_NOTHING: Final = bytes(_NOTIFICATION.size)

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Notification(msgspec.Struct, frozen=True, gc=False):
    """A waiting call. ``thread`` is its caller's id; ``arguments`` are six unsigned words.

    ``at`` is the address behind the instruction that makes it.
    """

    id: int
    thread: int
    number: int
    machine: int
    arguments: list[int]
    at: int = 0


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """A filter, made before a fork, so that the child has nothing to allocate."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))

    def put_on(self) -> int:
        """Put the filter on this process, for good; return its listener. Raises OSError."""
        # Without privileges a filter needs no_new_privs, or it could deceive a setuid program.
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # WAIT_KILLABLE (Linux 5.19): a signal to the caller does not interrupt a call that we have
        # received, so the program sees no EINTR that it would not see unwatched.
        for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
            number = ctypes.c_long(_SECCOMP[MACHINE])
            listener: int = _libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(self._program))
            if listener >= 0:
                return listener
            if ctypes.get_errno() != errno.EINVAL:  # EINVAL: an older kernel, which does not know the flag
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def refusal(self) -> int:
        """Return the errno with which this machine refuses the filter, else 0: a child tries."""
        with warnings.catch_warnings():  # Python 3.12 warns of threads; this child takes no lock of theirs
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
    """The observer's end: receives notifications and answers them. It owns ``descriptor``."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray(_NOTIFICATION.size)
        self._answer = bytearray(_RESPONSE.size)
        self._passing = bytearray(_RESPONSE.pack(0, 0, 0, _CONTINUE))
        # SYNC_WAKE_UP (Linux 6.6) wakes the other side on the same processor: a trapped call costs
        # 12 us in place of 69. An older kernel refuses it, which does no harm.
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """Receive the next notification; None when its caller was killed meanwhile."""
        self._buffer[:] = _NOTHING  # the kernel refuses a buffer that is not zero
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, self._buffer)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:
                return None
            raise
        identity, thread, number, machine, at, *arguments = _NOTIFICATION.unpack(self._buffer)
        return Notification(identity, thread, number, machine, arguments, at)

    def let_pass(self, notification: Notification) -> bool:
        """Have the kernel do the call as if untrapped; return whether its caller still lived.

        If so, the memory that was read in between was the caller's. Otherwise it may have been that
        of a later process with the same id (seccomp_unotify(2), "Design goals").
        """
        _IDENTITY.pack_into(self._passing, 0, notification.id)
        return self._send(self._passing)

    def fail(self, notification: Notification, error: int) -> bool:
        """Fail the call with an error; it is not done. Return as ``let_pass`` does."""
        _RESPONSE.pack_into(self._answer, 0, notification.id, 0, -error, 0)
        return self._send(self._answer)

    def succeed(self, notification: Notification, value: int) -> bool:
        """Have the call return a value; it is not done. Return as ``let_pass`` does."""
        _RESPONSE.pack_into(self._answer, 0, notification.id, value, 0, 0)
        return self._send(self._answer)

    def stop(self, notification: Notification, process: int) -> bool:
        """Stop the caller's process in front of the call, which is made again when it goes on.

        The signal goes to the caller's own thread: any other one would stop it a moment later.
        """
        number = ctypes.c_long(_TGKILL[MACHINE])
        if _libc.syscall(number, process, notification.thread, int(signal.SIGSTOP)) != 0:
            return False
        return self.fail(notification, _RESTART)

    def end(self, notification: Notification, process: int, number: int) -> bool:
        """End the caller's process by a signal without a handler; the call is not done."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)  # it waits here, so its pid is its own
        return number == signal.SIGKILL or self.fail(notification, _RESTART)

    def _send(self, answer: bytearray) -> bool:
        try:
            fcntl.ioctl(self.descriptor, _SEND, answer)
        except OSError as failure:
            if failure.errno == errno.ENOENT:  # the id is not valid any more: the caller was killed
                return False
            raise
        return True

    def close(self) -> None:
        """Close the listener: from now on calls of processes with the filter fail with ENOSYS."""
        os.close(self.descriptor)


def unavailable(number: int) -> StepsUnavailable:
    """Return the error that says why a filter was refused, by the errno of seccomp(2)."""
    if number == errno.EBUSY:
        why = "a supervisor watches this process already (a container's, or another run of this), and there can be one"
    else:
        why = f"this kernel or container allows no seccomp notifications ({os.strerror(number)})"
    return StepsUnavailable(f"steps cannot be counted by seccomp here: {why}; named audit events still work")


def borrow_descriptor(process: int, descriptor: int) -> int:
    """Return a descriptor for another process's open file, position shared. Raises OSError."""
    pidfd = os.pidfd_open(process)
    try:
        borrowed: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, descriptor, 0)
    finally:
        os.close(pidfd)
    if borrowed < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return borrowed
