"""Names and sizes: the folder that a recording describes is the one that the program left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.trace.folder import WatchedFolder
from pytest_chaos.trace.source import InjectError

from tests.harness.evidence.replaying import contents
from tests.harness.trace.lab import LIBC, MODE, Lab, said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def _move_names() -> None:
    Path("folder").mkdir()
    Path("folder/a").write_bytes(b"a")
    Path("folder/a").rename("folder/b")
    os.link("folder/b", "c")
    os.symlink("folder/b", "s")
    Path("folder").rename("moved")
    with open("moved/b", "ab") as file:
        file.write(b"more")
    Path("d").write_bytes(b"d")
    Path("d").replace("c")
    Path("moved/b").unlink()
    Path("moved").rmdir()
    os.mkfifo("pipe")
    os.chmod("c", 0o600)
    os.chmod("c", 0o600)


def test_names_are_followed(lab: Lab) -> None:
    """Folders, renames over what is there, links of both kinds, pipes and permissions."""
    observation, _ = lab.record(_move_names)
    assert said(observation.steps) == [
        "make_folder folder",
        "create folder/a",
        "write folder/a 1 bytes at 0",
        "rename folder/a -> folder/b",
        "link c",
        "symlink s -> folder/b",
        "rename folder -> moved",
        "write moved/b 4 bytes at 1",
        "create d",
        "write d 1 bytes at 0",
        "rename d -> c",
        "unlink moved/b",
        "remove_folder moved",
        "make_node pipe",
        "change_mode c",
    ]


def exchange(one: str, other: str) -> None:
    """Exchange two names; raise OSError where the kernel refuses."""
    if LIBC.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "it was refused")


def _fail_in_all_ways() -> None:
    attempts: list[Callable[[], object]] = [
        lambda: os.mkdir("there"),
        lambda: os.unlink("missing"),
        lambda: os.rename("missing", "x"),
        lambda: os.rmdir("there"),
        lambda: os.link("missing", "x"),
        lambda: os.symlink("x", "there"),
        lambda: os.open("there/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        lambda: os.open("nowhere/file", os.O_CREAT | os.O_WRONLY),
        lambda: os.unlink("there"),
        lambda: os.rename("there/file", "there"),
        lambda: os.rename("there", "there/inside"),
        lambda: exchange("there", "there/file"),
        lambda: exchange("there/file", "there"),
        lambda: os.write(1, b""),
    ]
    for attempt in attempts[:-1]:
        try:
            attempt()
        except OSError:
            continue
        sys.exit("it should have failed")
    attempts[-1]()
    os.rename("there/file", "there/file")
    os.truncate("there/file", 1)


def test_calls_that_fail_or_change_nothing_are_no_steps(lab: Lab) -> None:
    """What exists already, does not exist, is not empty, or stays as it is."""
    (lab.directory / "there").mkdir()
    (lab.directory / "there" / "file").write_bytes(b"x")
    observation, recording = lab.record(_fail_in_all_ways)
    assert (observation.steps, observation.exit_code) == ((), 0)
    assert [(entry.path, entry.kind) for entry in recording.before] == [("there", "folder"), ("there/file", "file")]


def _resize() -> None:
    with open("a", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 10)
        file.truncate(4)
        file.truncate(4)
        file.truncate(8)
        os.pwrite(file.fileno(), b"12345678", 0)
        assert LIBC.fallocate(file.fileno(), 3, ctypes.c_long(2), ctypes.c_long(3)) == 0
        assert LIBC.fallocate(file.fileno(), 1, ctypes.c_long(0), ctypes.c_long(100)) == 0
        os.fsync(file.fileno())


def test_sizes_are_followed(lab: Lab) -> None:
    """Allocating, cutting, growing and punching."""
    observation, _ = lab.record(_resize)
    assert said(observation.steps) == [
        "create a",
        "allocate a",
        "truncate a to 4 bytes",
        "truncate a to 8 bytes",
        "write a 8 bytes at 0",
        "zero a",
        "sync a",
    ]
    assert (lab.directory / "a").read_bytes() == b"12" + bytes(3) + b"678"


def _use_descriptors_of_folders() -> None:
    os.makedirs("one/two")
    folder = os.open("one", os.O_RDONLY | os.O_DIRECTORY)
    descriptor = os.open("file", os.O_CREAT | os.O_WRONLY, MODE, dir_fd=folder)
    os.write(descriptor, b"x")
    os.mkdir("made", dir_fd=folder)
    os.rename("file", "two/file", src_dir_fd=folder, dst_dir_fd=folder)
    os.symlink("two/file", "link", dir_fd=folder)
    os.unlink("two/file", dir_fd=folder)
    os.chdir("one/two")
    Path("../back").write_bytes(b"y")
    os.fsync(folder)
    os.sync()


def test_paths_relative_to_descriptors_are_resolved(lab: Lab) -> None:
    """The folder that a descriptor leads to, the working folder after chdir, and steps up."""
    observation, _ = lab.record(_use_descriptors_of_folders)
    assert said(observation.steps) == [
        "make_folder one",
        "make_folder one/two",
        "create one/file",
        "write one/file 1 bytes at 0",
        "make_folder one/made",
        "rename one/file -> one/two/file",
        "symlink one/link -> two/file",
        "unlink one/two/file",
        "create one/back",
        "write one/back 1 bytes at 0",
        "sync one",
        "sync_all .",
    ]


def _name_an_unnamed_file() -> None:
    descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, MODE)
    os.write(descriptor, b"hidden")
    at_working_folder, follow = -100, 0x400
    assert (
        LIBC.linkat(at_working_folder, f"/proc/self/fd/{descriptor}".encode(), at_working_folder, b"named", follow) == 0
    )


def test_a_file_without_a_name_may_get_one(lab: Lab) -> None:
    """O_TMPFILE and a link: the bytes that were written before are under the name then."""
    observation, _ = lab.record(_name_an_unnamed_file)
    assert said(observation.steps)[0] == "create_unnamed ."
    assert said(observation.steps)[2] == "link named"
    assert (lab.directory / "named").read_bytes() == b"hidden"


def test_what_comes_and_goes_is_followed(lab: Lab) -> None:
    """A file that is moved in brings its bytes; one that is moved out is gone; both are strays."""
    outside = lab.folder / "outside"
    outside.write_bytes(b"from elsewhere")

    def move() -> None:
        outside.rename(lab.directory / "inside")
        (lab.directory / "inside").rename(lab.directory / "again")
        Path("leaving").write_bytes(b"x")
        Path("leaving").rename(lab.folder / "gone")

    observation, _ = lab.record(move)
    assert observation.strays == (str(outside), str(lab.folder / "gone"))
    assert contents(lab.directory).keys() == {"again"}


def _refused(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


def test_a_file_whose_removal_was_refused_is_still_watched(lab: Lab) -> None:
    """The file is still where it was, and a write to it is a step."""

    def program() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.unlink("a"))
        os.pwrite(descriptor, b"later", 0)

    seen = lab.watch(program, directive=InjectError(number=2, error="EIO"))
    assert said(seen.steps) == ["create a", "write a 5 bytes at 0"]
    assert seen.strays == ()


def test_a_file_whose_rename_was_refused_keeps_its_path(lab: Lab) -> None:
    """A step after a rename that was refused speaks of the old name, of what is in a folder too."""

    def program() -> None:
        os.mkdir("folder")
        descriptor = os.open("folder/a", os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.rename("folder", "other"))
        os.pwrite(descriptor, b"later", 0)
        _refused(lambda: os.rename("folder/a", "b"))
        os.pwrite(descriptor, b"later", 5)

    seen = lab.watch(program, directive=InjectError(number=3, error="EIO"))
    assert said(seen.steps)[2:] == ["write folder/a 5 bytes at 0", "rename folder/a -> b", "write b 5 bytes at 5"]


def test_a_file_that_was_not_let_in_is_none_of_the_folders(lab: Lab) -> None:
    """A move from outside that is refused leaves the file outside, and writes to it are strays."""
    outside = lab.folder / "outside"

    def program() -> None:
        descriptor = os.open(outside, os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.rename(outside, "inside"))
        os.write(descriptor, b"x")
        os.mkdir("end")

    seen = lab.watch(program, directive=InjectError(number=1, error="EIO"))
    assert said(seen.steps) == ["make_folder end"]
    assert str(outside) in seen.temporary
    assert not outside.exists(), "what a run that got an error leaves outside is removed"


def test_a_link_that_was_refused_gives_no_name(lab: Lab) -> None:
    """A file without a name stays without one, and is known by its next name."""

    def program() -> None:
        descriptor = os.open(".", os.O_WRONLY | os.O_TMPFILE, MODE)
        os.write(descriptor, b"hidden")
        for name in (b"a", b"b"):
            LIBC.linkat(-100, f"/proc/self/fd/{descriptor}".encode(), -100, name, 0x400)
        os.pwrite(descriptor, b"later", 0)

    seen = lab.watch(program, directive=InjectError(number=3, error="EIO"))
    assert said(seen.steps)[2:] == ["link b", "write b 5 bytes at 0"]


def test_what_is_in_exchanged_folders_goes_with_each(lab: Lab) -> None:
    """A write to an open file of either is a step with its new path, however deep it lies."""

    def program() -> None:
        os.makedirs("one/deep")
        os.mkdir("two")
        files = [os.open(path, os.O_WRONLY | os.O_CREAT, MODE) for path in ("one/deep/a", "two/b")]
        exchange("one", "two")
        for descriptor in files:
            os.write(descriptor, b"x")
        os.rename("two", "three")
        os.write(files[0], b"y")

    seen = lab.watch(program)
    assert said(seen.steps)[5:] == [
        "exchange one -> two",
        "write two/deep/a 1 bytes at 0",
        "write one/b 1 bytes at 0",
        "rename two -> three",
        "write three/deep/a 1 bytes at 1",
    ]


class Counted(dict[Any, Any]):
    """Counts what is looked up in it, and changed."""

    count = 0

    def get(self, key: object, default: object = None) -> Any:
        """Count a look."""
        Counted.count += 1
        return super().get(key, default)

    def __setitem__(self, key: object, value: object) -> None:
        """Count a change."""
        Counted.count += 1
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[Any]:
        """Count each key that is passed."""
        for key in super().__iter__():
            Counted.count += 1
            yield key

    def items(self) -> Any:
        """Count as much as there is."""
        Counted.count += len(self)
        return super().items()


@pytest.mark.parametrize("count", [100, 10_000])
def test_a_rename_costs_the_same_however_many_files_there_are(tmp_path: Path, count: int) -> None:
    """A file, and a folder with all that is in it, move in a few operations."""
    folder = WatchedFolder(tmp_path)
    folder._at, folder._named = Counted(folder._at), Counted(folder._named)
    moved = folder.reserve("moved")
    files = [folder.reserve(f"moved/{number}") for number in range(count)]
    Counted.count = 0
    folder.move(files[0], "moved/again")
    folder.move(moved, "away")
    assert 0 < Counted.count < 25
    assert [folder.path(node) for node in (files[0], files[-1])] == ["away/again", f"away/{count - 1}"]
    folder.take_back()
    assert [folder.path(node) for node in (files[0], files[-1])] == ["moved/0", f"moved/{count - 1}"]
