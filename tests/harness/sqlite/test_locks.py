"""POSIX locks as they are computed here, against the kernel's own, and against a map of bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from hypothesis import given, strategies as st
from pytest_chaos.sqlite.locks import PosixLocks
from pytest_chaos.trace.step import Event, LockType, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = 7
BYTES = 8
KINDS = {LockType.READ: fcntl.F_RDLCK, LockType.WRITE: fcntl.F_WRLCK, LockType.NONE: fcntl.F_UNLCK}
FLOCK = struct.Struct("hhqqi4x")


def lock(process: str, kind: LockType, start: int, length: int, *, descriptor: int = 3) -> Event:
    """Return the event of asking for a lock."""
    return Event(
        touch=Touch.LOCK, process=process, node=NODE, offset=start, length=length, lock=kind, descriptor=descriptor
    )


ASKED = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(list(LockType)), st.integers(0, BYTES - 1), st.integers(1, BYTES)),
    max_size=12,
)


@given(ASKED)
def test_ranges_are_what_a_map_of_bytes_says(asked: list[tuple[str, LockType, int, int]]) -> None:
    """A lock is refused by another process's alone, and replaces the process's own."""
    locks = PosixLocks()
    held: dict[tuple[str, int], LockType] = {}
    for process, kind, start, length in asked:
        wanted = range(start, start + length)
        others = [type_ for (other, byte), type_ in held.items() if other != process and byte in wanted]
        is_free = kind is LockType.NONE or not (others if kind is LockType.WRITE else LockType.WRITE in others)
        assert locks.ask(lock(process, kind, start, length)) is bool(is_free)
        locks.goes_on(process, 0)
        if is_free:
            held |= {(process, byte): kind for byte in wanted}
            held = {key: type_ for key, type_ in held.items() if type_ is not LockType.NONE}
        for each in "ab":
            found = {byte: part.event.lock for part in locks.held(NODE, each) for byte in range(part.start, part.end)}
            assert found == {byte: type_ for (other, byte), type_ in held.items() if other == each}


@contextlib.contextmanager
def _another(path: Path) -> Iterator[tuple[int, int]]:
    """Start a process that does what it is told: 'KIND START LENGTH', or 'close'."""
    (its, ours), (ours_too, its_too) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)  # or it would never see the end of its own orders
        descriptor = os.open(path, os.O_RDWR)
        while said := os.read(its, 17):
            _, *numbers = struct.unpack("<Bqq", said)
            os.write(its_too, b"y" if _asked(descriptor, said[0], *numbers) else b"n")
        os._exit(0)
    os.close(its)
    os.close(its_too)
    try:
        yield ours, ours_too
    finally:
        os.close(ours)
        os.close(ours_too)
        os.waitpid(child, 0)


def _asked(descriptor: int, kind: int, start: int, length: int) -> bool:
    """Ask the kernel for a lock; 9 opens the file again and closes it."""
    if kind == 9:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
        return True
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError:
        return False
    return True


def test_the_kernel_agrees(tmp_path: Path) -> None:
    """All pairs of locks of two processes, and a close, which drops what the process had."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with _another(path) as one, _another(path) as two:
        for first in (LockType.READ, LockType.WRITE):
            for second in (LockType.READ, LockType.WRITE):
                for start in (0, 2, 4):
                    locks = PosixLocks()
                    steps = [("a", first, 1, 3), ("b", second, start, 2), ("a", "close", 0, 0), ("b", second, start, 2)]
                    for process, kind, at, length in steps:
                        end = one if process == "a" else two
                        number = 9 if kind == "close" else KINDS[LockType(kind)]
                        os.write(end[0], struct.pack("<Bqq", number, at, length))
                        did = os.read(end[1], 1) == b"y"
                        if kind == "close":
                            locks.drop(NODE, process)
                        else:
                            assert locks.ask(lock(process, LockType(kind), at, length)) is did
                    for end in (one, two):  # begin anew
                        os.write(end[0], struct.pack("<Bqq", KINDS[LockType.NONE], 0, 0))
                        assert os.read(end[1], 1) == b"y"


def test_a_process_that_ends_has_no_locks() -> None:
    """On any file."""
    locks = PosixLocks()
    locks.ask(lock("a", LockType.WRITE, 0, 4))
    locks.drop_all("a")
    assert list(locks.of_all(NODE)) == []
    assert locks.ask(lock("b", LockType.WRITE, 0, 4))


def owners(locks: PosixLocks) -> str:
    """Return the processes that have, or may have, the first byte."""
    return "".join(process for process in "abc" if locks.held(NODE, process))


def test_calls_that_are_under_way_may_be_done_in_any_order() -> None:
    """They are noted before the kernel does them. What one of them is answered is open then."""
    write, release = LockType.WRITE, LockType.NONE
    locks = PosixLocks()
    locks.ask(lock("a", write, 0, 1))
    locks.goes_on("a", 0)
    assert not locks.ask(lock("b", write, 0, 1))
    assert owners(locks) == "a"
    locks.ask(lock("a", release, 0, 1))  # perhaps before b asks, in the kernel
    assert owners(locks) == "b"
    assert not locks.blocking(lock("c", write, 0, 1))  # nobody surely has it
    locks.goes_on("a", 0)
    locks.goes_on("b", 0)
    assert locks.ask(lock("c", write, 0, 1))
    assert locks.blocking(lock("a", write, 0, 1))
    assert owners(locks) == "bc"
    locks.ask(lock("b", release, 0, 1))
    assert owners(locks) == "c"


def test_of_two_that_ask_at_once_either_may_have_it() -> None:
    """And of one that was refused a while ago, nothing is left."""
    write = LockType.WRITE
    locks = PosixLocks()
    locks.ask(lock("a", write, 0, 1))
    locks.ask(lock("b", write, 0, 1))
    assert owners(locks) == "ab"
    locks.drop(NODE, "a")
    locks.drop_all("b")
    assert owners(locks) == ""
    locks.ask(lock("a", write, 0, 1))
    locks.goes_on("a", 0)
    assert not locks.ask(lock("b", write, 0, 1))
    locks.goes_on("b", 0)
    locks.ask(lock("a", LockType.NONE, 0, 1))
    assert owners(locks) == ""
