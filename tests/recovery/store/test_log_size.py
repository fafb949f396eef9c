"""A log that a reader keeps from being emptied: a warning with its pid,
in the log and in the status.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from durable_agents import DEFAULT_PIPELINE, TaskManager, open_store
from durable_agents.pipeline.application import Application
from durable_agents.store.sqlite import log_size
from durable_agents.webhooks.signatures import github

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents.jobs.gates import Gate
    from durable_agents.store import Store

LIMIT = 8 * 1024 * 1024  # an untroubled log has half of it
ROW_BYTES = 256 * 1024
READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM tasks").fetchone()
print("reads", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Give a store with a small bound, which is looked at after each commit."""
    monkeypatch.setattr(log_size, "LOG_BYTES_MAX", LIMIT)
    monkeypatch.setattr(log_size, "LOOK_S", 0.0)
    with open_store(tmp_path / "core.db") as found:
        yield found


def grow(store: Store, what: str, commits: int) -> None:
    """Write so many rows, in a commit each."""
    tasks = TaskManager(store)
    for number in range(commits):
        tasks.create(f"{what} {number} {'x' * ROW_BYTES}")


def test_a_reader_that_stays_is_named(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its pid is in the log and in the status; when it has gone,
    the log is small again and the warning is over.
    """
    gates: dict[str, Gate] = {stage.gate: lambda _: False for stage in DEFAULT_PIPELINE.stages if stage.gate}
    application = Application(store, gates=gates, schemes={"github": github("g" * 32)})
    command = [sys.executable, "-c", READER, str(tmp_path / "core.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        grow(store, "a", 16)
        (shown,) = application.describe()["store"]["warnings"]
        assert f"Processes that read it: pid {reader.pid}." in shown
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert f"pid {reader.pid}." in said[0]
        assert len(said) <= 2, "one for each doubling, not one for each commit"
        reader.communicate()
    grow(store, "b", 4)
    assert application.describe()["store"]["warnings"] == []
    assert (tmp_path / "core.db-wal").stat().st_size <= LIMIT


def test_no_reader_is_accused_when_none_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound that any log passes, the sentence says that none is seen."""
    monkeypatch.setattr(log_size, "LOG_BYTES_MAX", 0)
    grow(store, "a", 4)
    (shown,) = store.warnings()
    assert "No process is seen that reads it all the time." in shown


def test_a_look_costs_nothing_in_between(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many commits there are, the file is looked at once in a while."""
    looks: list[str] = []
    monkeypatch.setattr(log_size, "LOOK_S", 1000.0)

    def look(path: str) -> int:
        looks.append(path)
        return 0

    monkeypatch.setattr(log_size, "_size", look)
    for number in range(20):
        TaskManager(store).create(f"t{number}")
    assert len(looks) <= 1
