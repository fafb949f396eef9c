"""A process whose monotonic clocks start elsewhere: in a time namespace (time_namespaces(7)).

MONOTONIC and BOOTTIME cannot be set while a program runs, and no program expects them to be. They
start anew with each start of a machine, and a program may be started at any time after that.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Final

_NEW_TIME: Final = 0x80
_NEW_USER: Final = 0x10000000


def start_elsewhere(by_s: int) -> None:
    """Move this process's monotonic clocks, and those of all that it starts, by whole seconds.

    There must be no other thread. An ordinary user gets a user namespace of the same ids for it.
    Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_TIME) != 0:
        if libc.unshare(_NEW_USER | _NEW_TIME) != 0:
            raise OSError(ctypes.get_errno(), f"no time namespace: {os.strerror(ctypes.get_errno())}")
        _write("setgroups", "deny")
        _write("uid_map", f"{user} {user} 1")
        _write("gid_map", f"{group} {group} 1")
    _write("timens_offsets", f"monotonic {by_s} 0\nboottime {by_s} 0\n")
    namespace = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, _NEW_TIME) != 0:
            raise OSError(ctypes.get_errno(), f"no time namespace: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(namespace)


def why_not() -> str:
    """Return why this machine allows no time namespace, or nothing: a child tries."""
    trial = f"from {__name__} import start_elsewhere; start_elsewhere(5)"
    child = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, check=False)
    return child.stderr.strip().rpartition("\n")[2] if child.returncode else ""


def started_by_s(pid: int) -> int:
    """Return by how many seconds the monotonic clock of a process is moved. Raises OSError."""
    with open(f"/proc/{pid}/timens_offsets", encoding="ascii") as file:
        rows = [line.split() for line in file]
    is_own = os.readlink(f"/proc/{pid}/ns/time") != os.readlink("/proc/self/ns/time")
    return next((int(row[1]) for row in rows if row[0] == "monotonic"), 0) if is_own else 0


def _write(name: str, text: str) -> None:
    file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(file)
