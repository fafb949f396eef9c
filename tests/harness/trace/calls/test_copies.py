"""Copies inside the kernel are writes of what was copied."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from pathlib import Path

import pytest
from pytest_chaos.trace.calls import copies
from pytest_chaos.trace.calls.copies import CLONE, CLONE_RANGE

from tests.harness.trace.lab import Lab, said


def _copy_by_the_kernel() -> None:
    Path("source").write_bytes(b"0123456789")
    with open("source", "rb") as source, open("copy", "wb") as copy:
        os.copy_file_range(source.fileno(), copy.fileno(), 4, 2, 1)
        os.sendfile(copy.fileno(), source.fileno(), 8, 100)
    with open("source", "rb") as source, open("whole", "wb") as whole:
        shutil.copyfileobj(source, whole)


def test_copies_by_the_kernel_are_writes(lab: Lab) -> None:
    """copy_file_range and sendfile: what was copied, where it went, and no more than there is."""
    observation, _ = lab.record(_copy_by_the_kernel)
    copied = [step for step in observation.steps if step.call in {"copy_file_range", "sendfile"}]
    assert said(copied) == ["write copy 4 bytes at 1", "write copy 2 bytes at 0"]


def test_what_is_spliced_from_a_pipe_is_a_write(lab: Lab) -> None:
    """At the file's position, and at an offset; reading from a file into a pipe is no step."""

    def work() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"piped, and more")
        with open("a", "wb") as copy:
            assert os.splice(reading, copy.fileno(), 5) == 5
            assert os.splice(reading, copy.fileno(), 100, offset_dst=8) == 10
            copy.seek(0, os.SEEK_END)
            with open("a", "rb") as source:
                assert os.splice(source.fileno(), writing, 4) == 4
            os.close(writing)
            assert os.splice(reading, copy.fileno(), 100) == 4
            assert os.splice(reading, copy.fileno(), 100) == 0
        with open("a", "ab") as appending, pytest.raises(OSError, match="Invalid argument"):
            os.splice(reading, appending.fileno(), 5)

    observation, _ = lab.record(work)
    assert (observation.exit_code, observation.blind_spots) == (0, ())
    writes = [line for line in said(observation.steps) if line.startswith("write")]
    assert writes == ["write a 5 bytes at 0", "write a 10 bytes at 8", "write a 4 bytes at 18"]


def test_what_is_spliced_from_an_empty_pipe_is_refused(lab: Lab) -> None:
    """Its bytes are not known yet: that is reported, and the program goes on with an error."""

    def ask() -> None:
        reading, _ = os.pipe()
        with open("b", "wb") as copy, pytest.raises(OSError, match="Invalid argument"):
            os.splice(reading, copy.fileno(), 5)

    observation = lab.watch(ask)
    assert observation.exit_code == 0
    assert [(spot.what, spot.is_denied) for spot in observation.blind_spots] == [("splice", True)]


@pytest.mark.parametrize("can", [True, False, None])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_reflink_is_a_write_where_the_file_system_has_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, can: bool | None, is_whole: bool
) -> None:
    """Elsewhere the kernel refuses it; where that is unknown, it is refused and reported.

    The call itself fails on the file systems of this machine: what is looked at is what is made of
    it.
    """
    monkeypatch.setattr(copies, "shares_blocks", lambda _: can)

    def ask() -> None:
        Path("a").write_bytes(b"0123456789")
        with open("a", "rb") as source, open("b", "wb") as copy:
            part = struct.pack("qQQQ", source.fileno(), 2, 3, 4)
            request, argument = (CLONE, source.fileno()) if is_whole else (CLONE_RANGE, part)
            with pytest.raises(OSError, match=r"."):
                fcntl.ioctl(copy.fileno(), request, argument)

    observation = lab.watch(ask)
    assert observation.exit_code == 0
    assert [spot.what for spot in observation.blind_spots] == (["reflink"] if can is None else [])
    expected = ["write b 10 bytes at 0" if is_whole else "write b 3 bytes at 4"] if can else []
    assert [line for line in said(observation.steps) if line.startswith("write b")] == expected


def test_whether_blocks_can_be_shared_is_tried_out(tmp_path: Path) -> None:
    """As the kernel answers for two files with names, and nothing is left in the folder."""
    (tmp_path / "a").write_bytes(b"x")
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), CLONE, source.fileno())
            can = True
        except OSError:
            can = False
    assert copies.shares_blocks(str(tmp_path)) is can
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert copies.shares_blocks(str(tmp_path / "nothing")) is None
