"""``--watch sqlite``, as a user meets it: findings with lines, and no blind spot."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.explore.watched import NOT_WATCHED
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

MIGRATION = """
import sqlite3
c = sqlite3.connect("m.db", isolation_level=None)
c.execute("CREATE TABLE IF NOT EXISTS version (number)")
if not c.execute("SELECT count(*) FROM version").fetchone()[0]:
    {begin}
    c.execute("CREATE TABLE orders (id)")
    c.execute("ALTER TABLE orders ADD COLUMN note")
    c.execute("INSERT INTO version VALUES (1)")
    {end}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)


class Store:
    """Keeps numbers in a database, and looks at its first bytes if it is careless."""

    name = "store"
    peeks = False
    synchronous = "FULL"

    def run(self, directory: Path, marks: Marks) -> None:
        """Put some numbers."""
        path = directory / "state.db"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self.synchronous}")
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value)")
        for number in range(2):
            connection.execute("INSERT INTO kept VALUES (?)", (number,))
            connection.commit()
            marks.ack("put", number)
            if self.peeks:
                with path.open("rb") as file:
                    file.read(16)
        connection.close()

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find nothing: this is about the watch."""
        del directory, marks
        return []


class Careless(Store):
    """Looks."""

    peeks = True


class Hasty(Store):
    """Acknowledges what is not flushed."""

    synchronous = "NORMAL"


class NoDatabase(Store):
    """Keeps a file."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write it."""
        (directory / "state").write_text("1")
        marks.ack("put", 1)


def explored(target: type[Store], *families: Family, source: str | None = None) -> Exploration:
    """Explore a target, watched."""
    options = Options(seed="s", families=families or (Family.CRASH,), watch=("sqlite",), source=source)
    return launch(subject_of(target), options)


def test_a_careless_program_is_violated_though_its_states_hold() -> None:
    """The finding names the line of the close, and that of the connection."""
    found = explored(Careless)
    assert found.families[0].verdict is Verdict.HELD
    (finding,) = found.findings
    assert finding.signature == "sqlite:locks-cancelled:state.db:test_watched.py in run"
    assert finding.text.startswith("test_watched.py:")
    assert found.verdict is Verdict.VIOLATED
    assert "watched for SQLite: state.db" in found.notes


def test_a_sound_program_holds() -> None:
    """And the report says what was watched."""
    found = explored(Store)
    assert (found.findings, found.verdict) == ((), Verdict.HELD)
    assert "watched for SQLite: state.db" in found.notes


def test_an_ack_is_asked_for_its_flush_if_power_is_explored() -> None:
    """A kill needs none."""
    assert explored(Hasty).findings == ()
    (finding,) = explored(Hasty, Family.POWER).findings
    assert finding.signature.startswith("sqlite:acknowledged-unflushed:state.db")


@pytest.mark.parametrize("source", [None, "audit"])
def test_what_cannot_be_watched_is_never_held(source: str | None) -> None:
    """A program without a database, and a machine that shows no system calls."""
    found = explored(NoDatabase, source=source)
    assert NOT_WATCHED in {finding.signature for finding in found.findings}
    assert found.verdict is Verdict.INCONCLUSIVE


def test_what_can_be_watched_is_named() -> None:
    """For an unknown one."""
    with pytest.raises(UsageError, match=r"^watch must be sqlite; got 'redis'$"):
        Options(seed="s", watch=("redis",))


@pytest.mark.parametrize("is_one", [False, True])
def test_a_migration_in_several_transactions_is_tried(tmp_path: Path, *, is_one: bool) -> None:
    """Killed half-way, it never runs again; in one transaction it does. Lines are of a command."""
    script = tmp_path / "migrate.py"
    begin, end = ('c.execute("BEGIN IMMEDIATE")', 'c.execute("COMMIT")') if is_one else ("pass", "pass")
    script.write_text(MIGRATION.format(begin=begin, end=end))
    arguments = ["explore", "--run", f"{sys.executable} {script}", "--check", "true", "--seed", "s"]
    code = run([*arguments, "--faults", "crash", "--watch", "sqlite", "--json", "found.json"])
    findings = json.loads(Path("found.json").read_text())["findings"]
    if is_one:
        assert (code, findings) == (0, [])
        return
    (finding,) = findings
    assert code == 1
    assert finding["signature"] == "sqlite:schema-half-way:m.db:migrate.py in <module>"
    assert "migrate.py:7 in <module> and migrate.py:8 in <module>" in finding["text"]
    assert "table orders already exists" in finding["text"]
