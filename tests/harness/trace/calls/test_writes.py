"""Writes: where each goes, what it holds, and what the flags of its file add."""

from __future__ import annotations

import fcntl
import os

from tests.harness.trace.lab import MODE, Lab, said, umask


def _write_plainly() -> None:
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, MODE)
    os.write(descriptor, b"hello ")
    os.write(descriptor, b"world")
    os.pwrite(descriptor, b"H", 0)
    os.writev(descriptor, [b"!", b"", b"!!"])
    os.pwritev(descriptor, [b"E", b"L"], 1)
    os.lseek(descriptor, 20, os.SEEK_SET)
    os.write(descriptor, b"far")
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)


def test_writes_go_where_the_kernel_puts_them(lab: Lab) -> None:
    """Positions move, positioned writes do not move them, holes are zero, each sync is a step."""
    observation, recording = lab.record(_write_plainly)
    assert said(observation.steps) == [
        "create a",
        "write a 6 bytes at 0",
        "write a 5 bytes at 6",
        "write a 1 bytes at 0",
        "write a 3 bytes at 11",
        "write a 2 bytes at 1",
        "write a 3 bytes at 20",
        "sync a",
        "sync_data a",
    ]
    assert [step.number for step in observation.steps] == list(range(1, 10))
    assert recording.steps[0].mode == MODE & ~umask()
    assert (lab.directory / "a").read_bytes() == b"HELlo world!!!" + bytes(6) + b"far"


def _open_in_all_ways() -> None:
    for name, flags in (("append", os.O_APPEND), ("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | flags, MODE)
        os.write(descriptor, b"one")
        os.pwrite(descriptor, b"TWO", 0)
        os.close(descriptor)
    os.close(os.open("append", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open("append", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open("append", os.O_WRONLY | os.O_CREAT))
    os.umask(0o077)
    os.close(os.open("private", os.O_WRONLY | os.O_CREAT, 0o666))


def test_the_flags_of_open_count(lab: Lab) -> None:
    """O_APPEND writes at the end, despite an offset; O_SYNC, O_DSYNC sync; no change is no step."""
    observation, recording = lab.record(_open_in_all_ways)
    assert said(observation.steps) == [
        "create append",
        "write append 3 bytes at 0",
        "write append 3 bytes at 3",
        "create sync",
        "write sync 3 bytes at 0",
        "sync sync",
        "write sync 3 bytes at 0",
        "sync sync",
        "create dsync",
        "write dsync 3 bytes at 0",
        "sync_data dsync",
        "write dsync 3 bytes at 0",
        "sync_data dsync",
        "truncate append to 0 bytes",
        "create private",
    ]
    assert recording.steps[-1].mode == 0o600


def test_a_file_that_is_told_to_append_later_does(lab: Lab) -> None:
    """F_SETFL after open: a positioned write goes to the end then."""

    def work() -> None:
        descriptor = os.open("a", os.O_RDWR | os.O_CREAT, MODE)
        os.pwrite(descriptor, b"12345678", 0)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.pwrite(descriptor, b"end", 0)

    observation, _ = lab.record(work)
    assert said(observation.steps)[-1] == "write a 3 bytes at 8"


def test_a_large_write_is_kept_whole(lab: Lab) -> None:
    """Forty megabytes in one call, in two pieces."""

    def work() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        os.writev(descriptor, [b"a" * 30_000_000, b"b" * 10_000_000])

    observation, recording = lab.record(work)
    assert observation.steps[-1].length == 40_000_000
    assert len(recording.content(recording.steps[-1])) == 40_000_000
