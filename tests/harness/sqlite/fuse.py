"""A file system in memory that speaks FUSE, and answers POSIX locks as it is told to.

It is what a test needs of ``linux/fuse.h``: one folder of files, no permissions, no links. A lock
is answered with an errno (ENOLCK, as NFS without its lock daemon), or left to the kernel, so that
what is watched there is watched on a real mount.

As a program it mounts, and runs a command with the folder as its last argument. In namespaces of
its own the mount goes with it: ``unshare -rm python -m tests.harness.sqlite.fuse TYPE ERRNO
COMMAND``. The errno ``none`` leaves locks to the kernel.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
import threading
from ctypes import CDLL, c_char_p, c_ulong, get_errno
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_ATTRIBUTES: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ROOT: Final = 1
_PAGE: Final = 4096
_WRITE_MAX: Final = 1 << 17
_POSIX_LOCKS: Final = 1 << 1
_BIG_WRITES: Final = 1 << 5
_UNANSWERED: Final = frozenset({2, 36, 42})
"""FUSE_FORGET, FUSE_INTERRUPT and FUSE_BATCH_FORGET."""
_SAFE: Final = 2 | 4
"""MS_NOSUID and MS_NODEV."""
_DETACH: Final = 2
CANNOT_MOUNT: Final = 77
"""The exit code where this machine mounts no FUSE."""


class Refused(Exception):  # noqa: N818 - an answer of the file system, and no error of it
    """The answer to a call is an errno."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class MemoryFiles:
    """The files of the one folder, and what is answered. ``lock_errno`` answers locks, if not 0."""

    def __init__(self, lock_errno: int) -> None:
        self._lock_errno = lock_errno
        self._names: dict[bytes, int] = {}
        self._contents: dict[int, bytearray] = {}
        self._next = _ROOT + 1

    def answer(self, operation: int, node: int, body: bytes) -> bytes:
        """Return the answer to an operation. Raises Refused."""
        known = _OPERATIONS.get(operation)
        if known is None:
            raise Refused(errno.ENOSYS)
        found: bytes = known(self, node, body)
        return found

    def begin(self, _node: int, body: bytes) -> bytes:
        """FUSE_INIT: who answers locks."""
        major, minor, ahead, _ = struct.unpack_from("<IIII", body)
        flags = _BIG_WRITES | (_POSIX_LOCKS if self._lock_errno else 0)
        return struct.pack("<IIIIHHIIHHI28x", major, min(minor, 31), ahead, flags, 16, 12, _WRITE_MAX, 1, 32, 0, 0)

    def look_up(self, _node: int, body: bytes) -> bytes:
        """FUSE_LOOKUP."""
        return self._entry(self._named(body.partition(b"\0")[0]))

    def attributes(self, node: int, _body: bytes) -> bytes:
        """FUSE_GETATTR."""
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def change(self, node: int, body: bytes) -> bytes:
        """FUSE_SETATTR: only a size counts."""
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & (1 << 3):
            content = self._contents[node]
            del content[size:]
            content.extend(bytes(size - len(content)))
        return self.attributes(node, b"")

    def open(self, _node: int, _body: bytes) -> bytes:
        """FUSE_OPEN and FUSE_OPENDIR."""
        return struct.pack("<QII", 0, 0, 0)

    def create(self, _node: int, body: bytes) -> bytes:
        """FUSE_CREATE."""
        name = body[16:].partition(b"\0")[0]
        if name not in self._names:
            self._names[name] = self._next
            self._contents[self._next] = bytearray()
            self._next += 1
        return self._entry(self._names[name]) + self.open(0, b"")

    def read(self, node: int, body: bytes) -> bytes:
        """FUSE_READ."""
        _, offset, count = struct.unpack_from("<QQI", body)
        return bytes(self._contents[node][offset : offset + count])

    def write(self, node: int, body: bytes) -> bytes:
        """FUSE_WRITE."""
        _, offset, count = struct.unpack_from("<QQI", body)
        content = self._contents[node]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + count] = body[40 : 40 + count]
        return struct.pack("<II", count, 0)

    def unlink(self, _node: int, body: bytes) -> bytes:
        """FUSE_UNLINK: the content stays for who has it open."""
        name = body.partition(b"\0")[0]
        self._named(name)
        del self._names[name]
        return b""

    def rename(self, _node: int, body: bytes) -> bytes:
        """FUSE_RENAME2."""
        old, new, _ = body[16:].split(b"\0", 2)
        self._names[new] = self._named(old)
        del self._names[old]
        return b""

    def listed(self, _node: int, body: bytes) -> bytes:
        """FUSE_READDIR, in one answer."""
        _, offset = struct.unpack_from("<QQ", body)
        found = b""
        for place, (name, node) in enumerate(self._names.items(), 1):
            if place > offset:
                found += (struct.pack("<QQII", node, place, len(name), 8) + name).ljust(
                    (24 + len(name) + 7) // 8 * 8, b"\0"
                )
        return found

    def space(self, _node: int, _body: bytes) -> bytes:
        """FUSE_STATFS."""
        return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, _PAGE, 255, _PAGE, 0)

    def nothing(self, _node: int, _body: bytes) -> bytes:
        """What needs no more than a yes: flush, sync, release."""
        return b""

    def lock(self, _node: int, _body: bytes) -> bytes:
        """FUSE_GETLK, FUSE_SETLK and FUSE_SETLKW."""
        raise Refused(self._lock_errno)

    def _named(self, name: bytes) -> int:
        if name not in self._names:
            raise Refused(errno.ENOENT)
        return self._names[name]

    def _entry(self, node: int) -> bytes:
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        size = len(self._contents.get(node, b""))
        mode = 0o040755 if node == _ROOT else 0o100644
        return _ATTRIBUTES.pack(node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, _PAGE, 0)


_OPERATIONS: Final = {
    1: MemoryFiles.look_up, 3: MemoryFiles.attributes, 4: MemoryFiles.change, 10: MemoryFiles.unlink,
    14: MemoryFiles.open, 15: MemoryFiles.read, 16: MemoryFiles.write, 17: MemoryFiles.space,
    18: MemoryFiles.nothing, 20: MemoryFiles.nothing, 25: MemoryFiles.nothing, 26: MemoryFiles.begin,
    27: MemoryFiles.open, 28: MemoryFiles.listed, 29: MemoryFiles.nothing, 30: MemoryFiles.nothing,
    31: MemoryFiles.lock, 32: MemoryFiles.lock, 33: MemoryFiles.lock, 35: MemoryFiles.create,
    12: MemoryFiles.rename, 45: MemoryFiles.rename,
}  # fmt: skip
"""The numbers of `linux/fuse.h`. Renames of both kinds keep their names at the same place here."""


def serve(device: int, files: MemoryFiles) -> None:
    """Answer the kernel until the mount is gone."""
    while True:
        try:
            request = os.read(device, _WRITE_MAX + _PAGE)
        except OSError:
            return
        _, operation, unique, node, *_ = _HEADER.unpack_from(request)
        if operation in _UNANSWERED:
            continue
        code, answer = 0, b""
        try:
            answer = files.answer(operation, node, request[_HEADER.size :])
        except Refused as refused:
            code = refused.code
        try:
            os.write(device, _OUT.pack(_OUT.size + len(answer), -code, unique) + answer)
        except OSError:  # who asked has been killed
            continue


def main(kind: str, lock_errno: str, command: list[str]) -> int:
    """Mount, run the command with the folder as its last argument, and return its exit code."""
    libc = CDLL(None, use_errno=True)
    libc.mount.argtypes = [c_char_p, c_char_p, c_char_p, c_ulong, c_char_p]
    folder = tempfile.mkdtemp()
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        print(f"cannot mount: {error}", file=sys.stderr)
        Path(folder).rmdir()
        return CANNOT_MOUNT
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    mounted = libc.mount(b"memory", folder.encode(), kind.encode(), _SAFE, options.encode())
    if mounted:
        print(f"cannot mount: {os.strerror(get_errno())}", file=sys.stderr)
        Path(folder).rmdir()
        return CANNOT_MOUNT
    files = MemoryFiles(getattr(errno, lock_errno, 0))
    threading.Thread(target=serve, args=(device, files), daemon=True).start()
    try:
        return subprocess.run([*command, folder], check=False).returncode
    finally:
        libc.umount2(folder.encode(), _DETACH)
        Path(folder).rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
