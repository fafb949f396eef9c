"""States in folders: written one after the other whatever became of the one before,
and read back.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.explore.simulate.content import PAGE_BYTES, Content, PageStore
from pytest_chaos.explore.simulate.folder import KEPT_BYTES_MIN, MANY_FILES, StateFolder, differences, read_folder
from pytest_chaos.explore.simulate.state import Item, durable_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STORE = PageStore()
LARGE = KEPT_BYTES_MIN + 3 * PAGE_BYTES


def _file(node: int, content: bytes, mode: int = 0o644) -> Item:
    return Item("file", mode, node, Content(STORE).write(0, content))


ITEMS = {
    "a": _file(2, b"abc", 0o600),
    "d": Item("folder", 0o755, 3),
    "d/b": _file(4, b"x" * 10_000),
    "d/hard": _file(4, b"x" * 10_000),
    "link": Item("symlink", 0o777, 5, None, "d/b"),
    "pipe": Item("other", 0o644, 6),
}


def test_a_state_is_written_as_it_is(tmp_path: Path) -> None:
    """Files, folders, hard and symbolic links, pipes and permissions are those of the state."""
    folder = StateFolder(tmp_path / "state")
    folder.put(ITEMS)

    assert differences(ITEMS, read_folder(folder.path, STORE)) == []
    assert (folder.path / "a").stat().st_mode & 0o777 == 0o600
    assert (folder.path / "d/b").stat().st_ino == (folder.path / "d/hard").stat().st_ino
    assert (folder.path / "link").read_bytes() == b"x" * 10_000
    assert stat.S_ISFIFO((folder.path / "pipe").stat().st_mode)


def _ruin_file(path: Path) -> None:
    (path / "a").write_text("ruined")


def _replace_folder(path: Path) -> None:
    for name in ("b", "hard"):
        (path / "d" / name).unlink()
    (path / "d").rmdir()
    (path / "d").write_text("a file")


def _replace_root(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _lock_folder(path: Path) -> None:
    (path / "extra").mkdir()
    (path / "extra" / "x").touch()
    (path / "extra").chmod(0)


@pytest.mark.parametrize("change", [_ruin_file, _replace_folder, _replace_root, _lock_folder])
def test_whatever_was_done_to_it_the_next_state_is_right(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A check may write, delete, replace and forbid: the same state, put again, is there again."""
    folder = StateFolder(tmp_path / "state")
    folder.put(ITEMS)
    change(folder.path)
    folder.put(ITEMS)

    assert not folder.path.is_symlink()
    assert differences(ITEMS, read_folder(folder.path, STORE)) == []


def test_a_handle_that_was_left_open_holds_the_old_file(tmp_path: Path) -> None:
    """The next state is in new files, so that a check which forgot to close one
    cannot write to it.
    """
    folder = StateFolder(tmp_path / "state")
    folder.put(ITEMS)
    with (folder.path / "a").open("r+b") as forgotten:
        folder.put(ITEMS)
        forgotten.write(b"late")
    assert (folder.path / "a").read_bytes() == b"abc"


def test_a_large_file_is_kept_and_only_its_pages_are_written(tmp_path: Path) -> None:
    """A file of more than a megabyte that nobody touched gets the pages that differ,
    and a touched one is made anew.
    """
    folder = StateFolder(tmp_path / "state")
    first = Item("file", 0o644, 2, Content(STORE).write(0, b"1" * LARGE))
    assert first.content is not None
    second = first._replace(content=first.content.write(5 * PAGE_BYTES, b"2").resize(LARGE - 100))
    folder.put({"a": first})
    inode = (folder.path / "a").stat().st_ino
    folder.put({"a": second})

    assert (folder.path / "a").stat().st_ino == inode
    assert differences({"a": second}, read_folder(folder.path, STORE)) == []
    with (folder.path / "a").open("r+b") as file:
        file.write(b"ruined")
    folder.put({"a": second})
    assert differences({"a": second}, read_folder(folder.path, STORE)) == []


MANY = {f"f{number}": _file(number, b"x") for number in range(2, MANY_FILES + 2)}


@contextlib.contextmanager
def _many(folder: StateFolder) -> Iterator[Callable[[], set[str]]]:
    """Put a state of many files twice; yield what tells which of them were made anew.

    The files are held open meanwhile, or a new one could get the inode of an old one.
    """
    for _ in range(2):
        folder.put(MANY)
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context((folder.path / path).open("rb")) for path in MANY}
        yield lambda: {
            path
            for path, file in files.items()
            if os.path.lexists(folder.path / path)
            and not os.path.samestat(os.fstat(file.fileno()), (folder.path / path).stat())
        }


def test_of_many_files_those_that_nobody_changed_stay(tmp_path: Path) -> None:
    """The next state makes what differs anew, what was changed, and nothing else."""
    folder = StateFolder(tmp_path / "state")
    state = {**MANY, "f7": _file(7, b"z"), "new": _file(1, b"n")}
    del state["f8"]
    with _many(folder) as made_anew:
        (folder.path / "f2").write_text("y")
        (folder.path / "f3").chmod(0)
        (folder.path / "f4").unlink()
        (folder.path / "f5").rename(folder.path / "more")
        (folder.path / "f6").read_bytes()
        folder.put(state)

        assert made_anew() == {"f2", "f3", "f4", "f5", "f7"}
    assert differences(state, read_folder(folder.path, STORE)) == []


@pytest.mark.parametrize("change", [_replace_root, _lock_folder])
def test_of_many_files_none_stays_if_a_folder_was_changed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """What cannot be told is made anew; so is everything once a file was left open."""
    folder = StateFolder(tmp_path / "state")
    with _many(folder):
        change(folder.path)
        folder.put(MANY)
        assert differences(MANY, read_folder(folder.path, STORE)) == []
    with _many(folder) as made_anew:
        folder.forget()
        folder.put(MANY)
        assert made_anew() == set(MANY)


def test_a_hole_takes_no_room(tmp_path: Path) -> None:
    """A file of a gigabyte that has nothing but zeros is written as a hole."""
    folder = StateFolder(tmp_path / "state")
    folder.put({"a": Item("file", 0o644, 2, Content(STORE).resize(1 << 30))})

    assert (folder.path / "a").stat().st_size == 1 << 30
    assert (folder.path / "a").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("real", "said"),
    [
        ({}, "a is missing"),
        ({"a": _file(9, b"abc"), "b": _file(8, b"")}, "b is not expected"),
        ({"a": _file(9, b"ab")}, "a has 2 bytes, not 3"),
        ({"a": _file(9, b"abX")}, "a differs in page 0"),
        ({"a": Item("folder", 0o755, 9)}, "a is a folder, not a file"),
    ],
)
def test_differences_are_said_in_words(real: dict[str, Item], said: str) -> None:
    """Each way in which a folder is not what was built has a sentence,
    and none that is the same.
    """
    built = {"a": _file(2, b"abc")}

    assert differences(built, real) == [said]
    assert differences(built, {"a": _file(77, b"abc", 0o600)}) == []
    assert durable_digest(built) != durable_digest(real)
    assert durable_digest(built) == durable_digest({"a": _file(77, b"abc", 0o600)})


def test_shared_memory_is_compared_by_its_name_alone() -> None:
    """What is in a -shm file nobody saw; whether it is there is known."""
    built = {"a-shm": _file(2, b"1")}

    assert differences(built, {"a-shm": _file(2, b"22")}) == []
    assert differences(built, {}) == ["a-shm is missing"]


def test_a_umask_does_not_change_the_state(tmp_path: Path) -> None:
    """Permissions are the state's, not those of whoever explores."""
    before = os.umask(0o077)
    try:
        StateFolder(tmp_path / "state").put({"a": _file(2, b"", 0o666)})
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert (tmp_path / "state" / "a").stat().st_mode & 0o777 == 0o666
