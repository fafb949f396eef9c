"""What of ends is compared, and how a difference is told."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.explore.restart.compare import differences, learn
from pytest_chaos.explore.restart.ends import End, end_of

if TYPE_CHECKING:
    from pathlib import Path


def _end(folder: Path, files: dict[str, str], *, output: str = "") -> End:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return end_of(folder, lambda _: True, output=output)


def _rows(folder: Path, rows: list[tuple[object, ...]]) -> End:
    folder.mkdir()
    connection = sqlite3.connect(folder / "orders.db")
    connection.execute("create table orders (id integer, name text, created real)")
    connection.executemany("insert into orders values (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return end_of(folder, lambda _: True)


def test_rows_are_compared_by_content_without_columns_that_vary(tmp_path: Path) -> None:
    """A column that differs from one clean run to the next does not count, a lost row does."""
    clean = [_rows(tmp_path / f"{run}", [(1, "tea", run + 0.5), (2, "oil", run + 0.7)]) for run in range(2)]
    learned = learn(clean, clean[0])

    assert learned.rules["orders.db table orders"].without == {"created"}
    assert not differences(learned, _rows(tmp_path / "same", [(2, "oil", 9.0), (1, "tea", 8.0)]))
    (found,) = differences(learned, _rows(tmp_path / "lost", [(1, "tea", 9.0)]))
    assert found.text == "orders.db table orders has 1 row, an unkilled run 2; missing: id=2, name='oil'"
    assert found.kind == "missing"


def test_a_database_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A torn database is one difference, whatever tables it had."""
    clean = _rows(tmp_path / "clean", [(1, "tea", 0.0)] * 500)
    learned = learn([clean, clean], clean)
    _rows(tmp_path / "torn", [(1, "tea", 0.0)] * 500)
    file = tmp_path / "torn" / "orders.db"
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 8192)

    (found,) = differences(learned, end_of(tmp_path / "torn", lambda _: True))
    assert found.kind == "unreadable"
    assert found.text.startswith("orders.db cannot be read: ")


@pytest.mark.parametrize(
    ("clean", "again", "end", "found"),
    [
        (["a\nb\n", "a\nb\n"], "a\nb\n", "a\n", "x.txt has 1 line, an unkilled run 2; missing: b"),
        (["a\nb\n", "a\nb\n"], "a\nb\n", "a\nb\nb\n", "x.txt has 3 lines, an unkilled run 2; too many: b"),
        (["a\nb\n", "a\nb\n"], "a\nb\n", "b\na\n", "x.txt has the lines of an unkilled run in another order"),
        (["at 3\n", "at 5\n"], "at 9\n", "at 7\n", ""),
        (["a\n", "a\n"], "a\na\n", "", ""),
        (['{"n": 4, "at": 1}', '{"n": 4, "at": 2}'], '{"n": 4, "at": 2}', '{"n": 4, "at": 3}', ""),
        (
            ['{"n": 4, "at": 1}', '{"n": 4, "at": 2}'], '{"n": 4, "at": 2}', '{"n": 3, "at": 3}',
            "x.txt has n = 3, an unkilled run's has n = 4",
        ),
        (
            ['{"n": 4}', '{"n": 4}'], '{"n": 4}', '{"n": 4',
            'x.txt has lines ({"n": 4), an unkilled run\'s has keys (n=4)',
        ),
    ],
)  # fmt: skip
def test_a_file_is_compared_by_the_strictest_rule_that_fits(
    tmp_path: Path, clean: list[str], again: str, end: str, found: str
) -> None:
    """Lines in their order, keys of JSON, and neither what varies nor what a second run adds."""
    ends = [_end(tmp_path / f"clean-{run}", {"x.txt": text}) for run, text in enumerate(clean)]
    learned = learn(ends, _end(tmp_path / "again", {"x.txt": again}))

    told = differences(learned, _end(tmp_path / "end", {"x.txt": end}))
    assert [each.text for each in told] == ([found] if found else [])


def test_files_of_drawn_names_are_counted(tmp_path: Path) -> None:
    """One more file than a clean run leaves is found, whatever its name is."""
    names = ["0a1b2c3d", "1f2e3d4c", "2b3c4d5e", "aa11bb22", "cc33dd44"]
    clean = [
        _end(tmp_path / f"{run}", {f"out/{name}.json": '{"a": 1}' for name in names[run * 2 : run * 2 + 2]})
        for run in range(2)
    ]
    learned = learn(clean, clean[0])

    assert not differences(learned, _end(tmp_path / "same", {f"out/{name}.json": '{"a": 1}' for name in names[:2]}))
    (found,) = differences(learned, _end(tmp_path / "more", {f"out/{name}.json": '{"a": 1}' for name in names[:3]}))
    assert found.kind == "extra"


def test_only_files_like_those_of_a_clean_run_are_too_many(tmp_path: Path) -> None:
    """A temporary file may be left; an order that no clean run makes, or a message, may not."""
    clean = _end(tmp_path / "clean", {"order-1": "x", "order-2": "y"})
    learned = learn([clean, clean], clean)

    end = _end(tmp_path / "end", {"order-1": "x", "order-2": "y", "order-3": "z", "order.tmp": "z", "inbox/a": "1"})
    told = [each.text for each in differences(learned, end, before=["inbox/a"])]
    assert told == [
        "inbox/a is still there; an unkilled run removes it",
        "order-3 is there; an unkilled run leaves no such file",
    ]


def test_named_parts_are_not_compared(tmp_path: Path) -> None:
    """A user names a table, a column of it, or a key of JSON."""
    clean = _rows(tmp_path / "clean", [(1, "tea", 0.0)])
    other = _rows(tmp_path / "other", [(2, "tea", 1.0)])

    assert differences(learn([clean, clean], clean), other)
    columns = ["orders.db:orders.id", "*.db:*.created"]
    assert not differences(learn([clean, clean], clean, columns), other)
    assert not differences(learn([clean, clean], clean, ["orders.db:orders"]), other)


def test_output_is_compared_only_in_what_each_complete_run_prints(tmp_path: Path) -> None:
    """What depends on what is there already is no difference; what every run says, is."""
    clean = [_end(tmp_path / f"{run}", {"a": "1"}, output=f"made it\ndone in {run} ms\n") for run in range(2)]
    learned = learn(clean, _end(tmp_path / "again", {"a": "1"}, output="done in 7 ms\n"))

    assert not differences(learned, _end(tmp_path / "fine", {"a": "1"}, output="done in 3 ms\n"), output=True)
    (found,) = differences(learned, _end(tmp_path / "mute", {"a": "1"}), output=True)
    assert found.text == "the output of the restart lacks what each complete run prints: done in # ms"
