"""The numbers of the system calls that a step source looks at, by machine. Pure.

Numbers are the kernel's own and never change for a machine; ``tests/harness/test_steps_syscalls.py`` compares them with
the kernel's headers. A machine that lacks a call (aarch64 has no ``open``, only ``openat``) lacks its name here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

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
