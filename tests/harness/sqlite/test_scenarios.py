"""``chaos.watch_sqlite()``: what the agents of a scenario do, killed and held as the plan says."""

from __future__ import annotations

import os
import sqlite3
import sys
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import after_mark, at_step, kill, pause, resume
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Verdict

from tests.harness.sqlite import programs

if TYPE_CHECKING:
    from pytest_chaos.model.values import RunRecord
    from pytest_chaos.runtime.marks import Marks
    from pytest_chaos.runtime.run import Run


def put(folder: str, marks: Marks, *, peeks: bool = False, stays: bool = False) -> None:
    """Commit some values to the database in a folder."""
    os.chdir(folder)
    marks.note("begun")
    connection = programs.connected()
    for number in range(4):
        connection.execute("INSERT INTO kept VALUES (?)", (number,))
        marks.ack("put", number)
        if peeks:
            assert programs.is_sqlite(programs.DATABASE)
    if stays:
        os.kill(os.getpid(), 9)


def signatures(record: RunRecord) -> list[str]:
    """Return the signatures of what was found."""
    return [finding.signature for finding in record.findings]


def test_agents_that_are_killed_paused_and_sound_hold(run: Run) -> None:
    """A kill leaves the log, and SQLite recovers; a stop holds the lock, and the other waits."""
    run.plan(
        kill("first", when=after_mark("put", count=2)),
        pause("second", at_step("write", path="*-wal", occurrence=3)),
        resume("second", after_mark("begun", kind="note", agent="third")),
    )
    run.watch_sqlite()
    arguments = {"folder": str(run.directory)}
    run.spawn(put, kwargs=arguments, name="first").wait_exit()
    second = run.spawn(put, kwargs=arguments, name="second")
    second.wait_stopped()
    third = run.spawn(put, kwargs=arguments, name="third")
    for agent in (second, third):
        agent.wait_exit()
    run.expect("values", observed="kept", holds=True)
    found = [signature for signature in signatures(run.conclude()) if signature.startswith("sqlite:")]
    assert found == []


def test_an_agent_is_found_by_its_line_and_name(run: Run) -> None:
    """The sound agent beside it is not."""
    run.watch_sqlite()
    run.spawn(put, kwargs={"folder": str(run.directory)}, name="sound").wait_exit()
    run.spawn(put, kwargs={"folder": str(run.directory), "peeks": True}, name="careless").wait_exit()
    record = run.conclude()
    assert signatures(record) == ["sqlite:locks-cancelled:state.db:programs.py in is_sqlite"]
    assert "in is_sqlite (careless) closes state.db" in record.findings[0].text
    assert record.verdict is Verdict.VIOLATED
    (assertion,) = record.assertions
    assert (assertion.name, assertion.holds) == ("nothing corrupts a SQLite database", False)


def test_two_agents_are_told_apart(run: Run) -> None:
    """One writes and dies; the other, a command, copies the database without its log."""
    run.watch_sqlite()
    run.spawn(put, kwargs={"folder": str(run.directory), "stays": True}, name="writer", may_fail=True).wait_exit()
    copy = "import shutil; shutil.copy('state.db', 'backup.db')"
    run.spawn([sys.executable, "-c", copy], name="backup").wait_exit()
    (finding,) = run.conclude().findings
    assert finding.signature.startswith("sqlite:copied-without-log:state.db")
    assert "backup" in finding.text
    assert "in put (writer)" in finding.text


def test_a_run_without_a_database_is_undecided(run: Run) -> None:
    """Unless the whole session is watched, whatever its runs do."""
    run.watch_sqlite()
    run.spawn(["true"]).wait_exit()
    assert signatures(run.conclude()) == ["harness:not-watched"]


def test_a_session_may_be_watched(run: Run) -> None:
    """``--chaos-watch sqlite`` finds what there is, and needs no database."""
    run.watch_sqlite(if_any=True)
    run.spawn(["true"]).wait_exit()
    run.expect("it ended", observed=True, holds=True)
    assert run.conclude().verdict is Verdict.HELD


def test_a_watch_begins_before_the_first_agent(run: Run) -> None:
    """Or what that one did would not be seen."""
    run.spawn(["true"]).wait_exit()
    with pytest.raises(UsageError, match=r"Call chaos.watch_sqlite\(\) first"):
        run.watch_sqlite()
    run.expect("it ended", observed=sqlite3.sqlite_version, holds=True)
