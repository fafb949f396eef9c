"""What any SQLite file answers, in all conditions."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.evidence.limits import DEFAULT
from pytest_chaos.evidence.sqlite import ask, plain, read_header, read_wal_header

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path, *statements: str) -> Path:
    """Make a database by these statements."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


def test_the_header_says_what_the_pragmas_said(tmp_path: Path) -> None:
    """Page size, journal mode, user version and application id are read from the bytes."""
    path = make(
        tmp_path / "a.db",
        "PRAGMA page_size=8192",
        "PRAGMA journal_mode=WAL",
        "PRAGMA user_version=-7",
        "PRAGMA application_id=1196444487",
        "CREATE TABLE t (x)",
    )
    header = read_header(path.read_bytes()[:100])
    assert (header.page_size_bytes, header.journal_mode) == (8192, "wal")
    assert (header.user_version, header.application_id, header.text_encoding) == (-7, 1196444487, "UTF-8")
    assert header.page_count == path.stat().st_size // 8192
    assert header.written_by == sqlite3.sqlite_version


def test_a_page_of_64_kib_is_written_as_one(tmp_path: Path) -> None:
    """The file format stores 65536 as 1, and a rollback journal as mode 1."""
    header = read_header(make(tmp_path / "a.db", "PRAGMA page_size=65536", "CREATE TABLE t (x)").read_bytes()[:100])
    assert (header.page_size_bytes, header.journal_mode) == (65536, "rollback journal")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"SQLite format 3\0", "the file has 16 bytes, a SQLite header has 100"),
        (b"\0" * 100, "does not begin like a SQLite file"),
    ],
)
def test_a_broken_header_is_told_as_what_it_is(content: bytes, sentence: str) -> None:
    """Empty, cut off and overwritten headers are three different things."""
    with pytest.raises(ValueError, match=sentence):
        read_header(content)


def test_the_write_ahead_log_is_counted_in_frames(tmp_path: Path) -> None:
    """The head of the log tells how many frames its size has room for; anything else is no log."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        content = path.with_name("a.db-wal").read_bytes()
        header = read_wal_header(content[:100], len(content))
    assert header is not None
    assert header.frames == (len(content) - 32) // (4096 + 24) >= 2
    assert read_wal_header(b"\0" * 100, 100) is None
    assert read_wal_header(b"", 0) is None


def test_the_newest_rows_of_each_table_are_kept(tmp_path: Path) -> None:
    """Fifty rows by row id, in the order in which they were written, and the full count."""
    path = make(
        tmp_path / "a.db",
        "CREATE TABLE t (x)",
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<120) SELECT i FROM n",
    )
    (table,) = ask(path, {}, DEFAULT).tables
    assert (table.name, table.row_count, table.order) == ("t", 120, "rowid DESC")
    assert [row["x"] for row in table.rows] == list(range(71, 121))


def test_a_table_without_row_ids_goes_by_its_primary_key(tmp_path: Path) -> None:
    """WITHOUT ROWID and a composite key: the greatest keys are the last rows."""
    path = make(
        tmp_path / "a.db",
        'CREATE TABLE t ("a ""b" TEXT, n INTEGER, PRIMARY KEY ("a ""b", n)) WITHOUT ROWID',
        "INSERT INTO t VALUES ('x', 2), ('x', 1), ('a', 9)",
    )
    (table,) = ask(path, {}, msgspec.structs.replace(DEFAULT, rows_max=2)).tables
    assert table.order == '"a ""b" DESC, "n" DESC'
    assert [tuple(row.values()) for row in table.rows] == [("x", 1), ("x", 2)]


def test_columns_that_are_named_like_row_ids_do_not_mislead(tmp_path: Path) -> None:
    """A column called rowid is data; the next name for the row id is taken,
    and none when all are taken.
    """
    path = make(
        tmp_path / "a.db",
        "CREATE TABLE one (rowid TEXT)",
        "INSERT INTO one VALUES ('z'), ('a')",
        "CREATE TABLE three (rowid TEXT, oid TEXT, _rowid_ TEXT)",
        "INSERT INTO three VALUES ('z', 'y', 'x')",
    )
    one, three = ask(path, {}, DEFAULT).tables
    assert (one.order, [row["rowid"] for row in one.rows]) == ("_rowid_ DESC", ["z", "a"])
    assert (three.order, three.row_count, len(three.rows)) == ("", 1, 1)


def test_strange_table_names_are_read_like_any_other(tmp_path: Path) -> None:
    """Quotes, spaces, semicolons, newlines and non-ASCII in a name are a name."""
    names = ['a "quoted" name', "x; DROP TABLE y", "línea\nnueva", "select", "[]", "'"]
    path = make(tmp_path / "a.db", *('CREATE TABLE "{}" (x)'.format(name.replace('"', '""')) for name in names))
    tables = ask(path, {}, DEFAULT).tables
    assert sorted(table.name for table in tables) == sorted(names)
    assert {(table.row_count, table.error) for table in tables} == {(0, "")}


def test_values_that_json_cannot_hold_are_described(tmp_path: Path) -> None:
    """Blobs become hex and a length, invalid UTF-8 is escaped, infinity is a word,
    a long text is cut.
    """
    path = make(
        tmp_path / "a.db",
        "CREATE TABLE t (b, u, f, n, l)",
        "INSERT INTO t VALUES (zeroblob(1000), CAST(x'61ff62' AS TEXT), 9e999, NULL, printf('%.5000c', 'x'))",
    )
    ((row,),) = [table.rows for table in ask(path, {}, DEFAULT).tables]
    assert row["b"] == {"blob": "00" * 64, "bytes": 1000}
    assert (row["u"], row["f"], row["n"]) == ("a\\xffb", "inf", None)
    assert row["l"].startswith("x" * 4096 + "…")
    assert "5000 characters" in row["l"]
    assert plain(float("nan"), 10) == "nan"


def test_integrity_and_foreign_keys_are_checked(tmp_path: Path) -> None:
    """A whole file says ok; a row that refers to nothing is named."""
    path = make(
        tmp_path / "a.db",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (p REFERENCES parent(id))",
        "INSERT INTO child VALUES (7)",
    )
    contents = ask(path, {}, DEFAULT)
    assert contents.integrity == ("ok",)
    assert contents.foreign_keys == ("row 1 of child refers to nothing in parent",)


def test_a_damaged_page_is_found_and_the_other_tables_are_read(tmp_path: Path) -> None:
    """Corruption is reported by the integrity check and by its own table; the rest answers."""
    path = make(tmp_path / "a.db", "CREATE TABLE bad (x)", "CREATE TABLE good (x)", "INSERT INTO good VALUES (1)",
                "INSERT INTO bad VALUES (2)")  # fmt: skip
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 4096)
    contents = ask(path, {"count": "SELECT count(*) FROM good"}, DEFAULT)
    bad, good = contents.tables
    assert contents.integrity != ("ok",)
    assert "malformed" in bad.error
    assert good.rows == ({"x": 1},)
    assert contents.answers[0].rows == ((1,),)


def test_what_is_no_database_is_an_answer_not_an_error(tmp_path: Path) -> None:
    """A file of rubbish answers with the reason, and every query with it."""
    path = tmp_path / "a.db"
    path.write_bytes(b"rubbish" * 1000)
    contents = ask(path, {"q": "SELECT 1"}, DEFAULT)
    assert "not a database" in contents.error
    assert contents.answers[0].error == "the database cannot be read"


def test_queries_cannot_write_or_reach_another_file(tmp_path: Path) -> None:
    """A query that writes, attaches or is wrong gives an error in its place;
    those after it are asked.
    """
    path = make(tmp_path / "a.db", "CREATE TABLE t (x)")
    other = tmp_path / "other.db"
    answers = ask(
        path,
        {
            "write": "INSERT INTO t VALUES (1)",
            "attach": f"ATTACH '{other}' AS o",
            "wrong": "SELECT nothing FROM nowhere",
            "right": "SELECT count(*) AS n FROM t",
        },
        DEFAULT,
    ).answers
    assert [bool(answer.error) for answer in answers] == [True, True, True, False]
    assert (answers[3].columns, answers[3].rows) == (("n",), ((0,),))
    assert not other.exists()


def test_a_query_without_end_is_interrupted(tmp_path: Path) -> None:
    """The time limit ends a query that would run for ever, and says so."""
    path = make(tmp_path / "a.db", "CREATE TABLE t (x)")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"
    (answer,) = ask(path, {"endless": endless}, msgspec.structs.replace(DEFAULT, database_s_max=0.2)).answers
    assert answer.error.startswith("interrupted")


def test_answers_and_tables_are_bounded_and_say_so(tmp_path: Path) -> None:
    """More tables or rows than the limits are counted as left out."""
    path = make(tmp_path / "a.db", "CREATE TABLE a (x)", "CREATE TABLE b (x)", "INSERT INTO a VALUES (1), (2), (3)")
    limits = msgspec.structs.replace(DEFAULT, tables_max=1, answer_rows_max=2)
    contents = ask(path, {"q": "SELECT x FROM a"}, limits)
    assert (len(contents.tables), contents.tables_left_out) == (1, 1)
    assert (contents.answers[0].rows, contents.answers[0].cut) == (((1,), (2,)), True)
