"""What a program reads: by each call that looks, by which path, and which part of a file."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.trace.calls import reads
from pytest_chaos.trace.calls.reads import END, TRAPS, WHOLE, FileRead, WatchedReads
from pytest_chaos.trace.calls.table import NUMBER_MAX, code_of
from pytest_chaos.trace.kernel import AUDIT_ARCH
from pytest_chaos.trace.source import source_for

from tests.harness.trace.calls.test_table import HEADERS, MACHINES, run

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 3 * 4096
NAMES = ("one", "other", "folder/inner")
NOTHING = FileRead()
LOOKED_UP = FileRead(is_opened=True)
ALL = ((0, END),)
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a folder with three files."""
    try:
        source_for("seccomp")
    except StepsUnavailable as error:
        pytest.skip(str(error))
    directory = tmp_path / "watched"
    (directory / "folder").mkdir(parents=True)
    for name in NAMES:
        (directory / name).write_bytes(b"x" * SIZE)
    return directory


def _watch(directory: Path, program: Callable[[], object] | list[str]) -> WatchedReads | None:
    def run_it() -> None:
        assert callable(program)
        program()

    called = program if isinstance(program, list) else run_it
    return source_for("seccomp").reads(called, directory, marks=directory.parent / "marks", timeout_s=60)


def _read(directory: Path, program: Callable[[], object] | list[str]) -> dict[str, FileRead]:
    """Return what a program asked of the files of which it asked something."""
    seen = _watch(directory, program)
    assert seen is not None
    assert set(seen.files) == set(NAMES)
    return {path: read for path, read in seen.files.items() if read != NOTHING}


def _part(size: int, offset: int) -> None:
    file = os.open("one", os.O_RDONLY)
    os.lseek(file, offset, os.SEEK_SET)
    os.read(file, size)


def _map() -> None:
    with open("one", "rb") as file, mmap.mmap(file.fileno(), 4096, offset=4096, prot=mmap.PROT_READ) as memory:
        assert memory[0]


def _rename_and_read() -> None:
    os.rename("one", "new")
    os.rename("other", "one")
    Path("new").read_bytes()


def _copy() -> None:
    with open("one", "rb") as file, open("../copy", "wb") as to:
        os.sendfile(to.fileno(), file.fileno(), 0, 4096)


def _look_from_inside() -> None:
    os.chdir("folder")
    os.stat("../folder/inner")


def _append() -> None:
    with open("one", "ab") as file:
        file.write(b"more")


def _read_what_it_made() -> None:
    Path("made").write_bytes(b"made")
    Path("made").read_bytes()


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda: None, {}),
        (lambda: Path("one").read_bytes(), {"one": FileRead(is_opened=True, parts=ALL)}),
        (lambda: _part(10, 100), {"one": FileRead(is_opened=True, parts=((100, 110),))}),
        (lambda: _part(10, SIZE), {"one": FileRead(is_opened=True, parts=((SIZE, END),))}),
        (lambda: os.pread(os.open("one", 0), 5, 7), {"one": FileRead(is_opened=True, parts=((7, 12),))}),
        (
            lambda: os.preadv(os.open("one", 0), [bytearray(2), bytearray(3)], 7),
            {"one": FileRead(is_opened=True, parts=((7, 12),))},
        ),
        (_map, {"one": FileRead(is_opened=True, parts=((4096, 8192),))}),
        (_copy, {"one": WHOLE}),
        (_append, {"one": LOOKED_UP}),
        (lambda: os.path.getsize("one"), {"one": FileRead(is_opened=True, is_sized=True)}),
        (lambda: os.access("one", os.R_OK), {"one": LOOKED_UP}),
        (lambda: os.listdir("folder"), {"folder/inner": FileRead(is_listed=True)}),
        (_look_from_inside, {"folder/inner": FileRead(is_opened=True, is_sized=True)}),
        (_rename_and_read, {"one": FileRead(is_opened=True, parts=ALL)}),
        (_read_what_it_made, {}),
        (lambda: Path("missing").exists(), {}),
        (lambda: Path(sys.executable).exists(), {}),
    ],
)  # fmt: skip
def test_each_way_to_look_is_seen(
    directory: Path, program: Callable[[], object] | list[str], expected: dict[str, FileRead]
) -> None:
    """A read has its range, and a file is known by its path before the program renamed it."""
    assert _read(directory, program) == expected


def test_commands_and_their_children_are_watched_too(directory: Path) -> None:
    """What a child of the program reads, it has read."""
    assert _read(directory, ["cat", "other"])["other"].parts == ALL
    assert _read(directory, ["sh", "-c", "cat one >/dev/null; exit 3"])["one"].parts == ALL


def test_a_database_that_is_opened_is_read_in_part(directory: Path) -> None:
    """SQLite reads the header and the pages that a query needs."""
    with sqlite3.connect(directory / "one.db") as connection:
        connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, body TEXT)")
        connection.executemany("INSERT INTO kept VALUES (?, ?)", [(number, "x" * 2000) for number in range(100)])
    connection.close()

    def ask() -> None:
        sqlite3.connect("one.db").execute("SELECT * FROM kept WHERE number = 7").fetchone()

    seen = _watch(directory, ask)

    assert seen is not None
    parts = seen.files["one.db"].parts
    assert parts[0][0] == 0
    assert END not in {end for _, end in parts}
    assert sum(end - start for start, end in parts) < (directory / "one.db").stat().st_size / 4


def test_a_program_that_cannot_be_seen_in_full_gives_no_reads(directory: Path) -> None:
    """One that does not end in time, and one that reads by io_uring."""
    source, marks = source_for("seccomp"), directory.parent / "marks"

    assert source.reads(["sleep", "60"], directory, marks=marks, timeout_s=0.2) is None
    assert _watch(directory, lambda: LIBC.syscall(425, 4, ctypes.create_string_buffer(120))) is None


def test_what_several_runs_read_is_summed_up() -> None:
    """A file that one of them read is read; names of one run become those of another."""
    one = WatchedReads({"a": FileRead(is_listed=True), "b-1": FileRead(parts=((0, 5),))})
    other = WatchedReads({"b-1": FileRead(is_sized=True, parts=((5, 9), (20, END))), "c": WHOLE})

    both = WatchedReads.of([one, other])

    assert both.files["b-1"] == FileRead(is_sized=True, parts=((0, 9), (20, END)))
    assert both.unread == ["a"]
    assert set(both.renamed([("b-1", "b-2")]).files) == {"a", "b-2", "c"}


def test_a_file_of_which_very_many_parts_are_read_is_read_whole(directory: Path) -> None:
    """The list of parts is bounded."""

    def leap() -> None:
        file = os.open("one", os.O_RDONLY)
        for place in range(0, SIZE, 16):
            os.pread(file, 4, place)

    assert _read(directory, leap)["one"].parts == ALL


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_of_calls_that_look_are_the_kernels(machine: str) -> None:
    """As for the calls that change something."""
    if not HEADERS[machine].exists():
        pytest.skip(f"there are no kernel headers for {machine} here")
    text = HEADERS[machine].read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    known |= {"newfstatat": known.get("newfstatat", known.get("fstatat", 0))}
    ours = {name: trap.numbers[machine] for name, trap in TRAPS.items() if machine in trap.numbers}
    assert ours == {name: known[name] for name in ours}


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, NUMBER_MAX + 100), flags=st.integers(0, 2**32 - 1))
def test_the_filter_traps_what_looks_and_no_anonymous_mapping(machine: str, number: int, flags: int) -> None:
    """A program maps memory without a file all the time; everything else passes."""
    numbers = {trap.numbers[machine]: name for name, trap in TRAPS.items() if machine in trap.numbers}
    verdict = run(code_of(list(TRAPS.values()), machine), AUDIT_ARCH[machine], number, (flags,) * 6)
    named = numbers.get(number, "")
    expected = number > NUMBER_MAX or (named != "" and not (named == "mmap" and flags & reads._MAP_ANONYMOUS))
    assert (verdict == 0x7FC00000) is expected
