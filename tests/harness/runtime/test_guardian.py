"""What an agent prints is kept with a bound, beginning and end, whatever it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_chaos.runtime.guardian import TAIL_BYTES, Output


def feed(output: Output, content: bytes) -> None:
    """Print something and let it be read, as much at a time as a pipe holds."""
    for start in range(0, len(content), 1 << 15):
        os.write(output.write_end, content[start : start + (1 << 15)])
        assert output.drain()


def test_output_is_in_its_file_as_it_comes(tmp_path: Path) -> None:
    """Whoever waits for a line sees it at once, not at the end."""
    output = Output(1, tmp_path / "log", 100)
    feed(output, b"one\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"
    feed(output, b"two\xff\n")
    output.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\xff\n"
    assert output.total == 9


def test_the_end_of_the_output_is_noticed(tmp_path: Path) -> None:
    """There may be more as long as anybody has the writing end."""
    output = Output(1, tmp_path / "log", 100)
    other = os.dup(output.write_end)
    output.drop_write_end()
    assert output.drain()
    os.close(other)
    assert not output.drain()
    output.close()


@pytest.mark.parametrize(
    ("total", "left_out"), [(100, None), (101, 0), (100 + TAIL_BYTES, 0), (100 + TAIL_BYTES + 1, 1), (300_000, 234_364)]
)
def test_beginning_and_end_are_kept_and_the_rest_is_counted(tmp_path: Path, total: int, left_out: int | None) -> None:
    """At every size around the bound each byte is in the file or in the count."""
    output = Output(1, tmp_path / "log", 100)
    content = bytes(index % 251 for index in range(total))
    feed(output, content)
    output.close()
    kept = (tmp_path / "log").read_bytes()
    assert output.total == total
    if left_out is None:
        assert kept == content
        return
    line = f"\n[... {left_out} bytes left out ...]\n".encode()
    assert kept == content[:100] + line + content[100 + left_out :]


def test_a_file_that_cannot_take_it_does_not_stop_the_agent() -> None:
    """A full disk costs a log, not the run: the pipe is read on."""
    full = Output(1, Path("/dev/full"), 10)
    feed(full, b"x" * 100_000)
    full.close()
    assert full.total == 100_000
