"""Measure a round of the reconciler over very many tasks of which a few are stuck;
run as a script (``--help``).

Three files take turns in one run: few tasks and many, of which most wait for a person, are fresh,
or are being worked on, and the same many after their end. In each, the same number is stuck behind
green gates and as many behind red ones. Printed are medians over rounds: a round that moves all
that are stuck, and one that finds red gates only; the ratio of many to few; and what SQLite alone
needs for the same: one SELECT of the overdue, one commit of three rows for each.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from durable_agents import DEFAULT_PIPELINE, ManualClock, StageEngine, open_store
from durable_agents.pipeline.handlers import Handlers
from durable_agents.pipeline.reconciler import Reconciler

_TARGET_S: Final = 0.2
_NOW: Final = 10_000_000_000
_KINDS: Final = (("analysis", 1), ("development", _NOW - 1), ("testing", 1), ("done", 1))
"""Waits for a person, is fresh, has a job under way, is done: in turn."""


class Rounds:
    """A file with so many tasks, a reconciler on it, and how long its rounds took."""

    def __init__(self, path: Path, *, tasks: int, stuck: int, have_ended: bool) -> None:
        self.path = path
        self.stuck = stuck
        self.store = open_store(path)
        gates = {stage.gate: (lambda task: task.task_id[0] == "g") for stage in DEFAULT_PIPELINE.stages if stage.gate}
        engine = StageEngine(self.store, gates=gates, clock=ManualClock(_NOW))
        self.reconciler = Reconciler(Handlers(engine), clock=ManualClock(_NOW))
        self.moving_s: list[float] = []
        self.red_s: list[float] = []
        self.bare_s: list[float] = []
        with closing(sqlite3.connect(path)) as connection, connection:
            status = "succeeded" if have_ended else "created"
            for number in range(tasks - 2 * stuck):
                stage, entered_at = _KINDS[number % len(_KINDS)]
                self._insert(connection, f"t{number:07}", status, stage, entered_at)
                if stage == "testing" and not have_ended:
                    connection.execute(
                        "INSERT INTO jobs (agent, repo, task_id, status, attempts, max_attempts, claim, error, "
                        "created_at, updated_at) VALUES ('tester', '', ?, 'queued', 0, 1, 0, '', 1, 1)",
                        (f"t{number:07}",),
                    )
            for number in range(stuck):
                self._insert(connection, f"g{number}", "created", "development", 1)
                self._insert(connection, f"r{number}", "created", "development", 1)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @staticmethod
    def _insert(connection: sqlite3.Connection, task_id: str, status: str, stage: str, entered_at: int) -> None:
        row = (task_id, status, stage, entered_at)
        connection.execute("INSERT INTO tasks VALUES (?, NULL, ?, ?, ?, 1, 1)", row)
        connection.execute("INSERT INTO task_sources VALUES (?, 'shop', ?, '')", (task_id, f"feature/{task_id}"))

    def round(self) -> None:
        """Move what is stuck, look at what is red, and put everything back."""
        began_s = time.perf_counter()
        found = self.reconciler.run_once()
        self.moving_s.append(time.perf_counter() - began_s)
        assert (found.looked, found.unblocked, found.troubles) == (2 * self.stuck, self.stuck, 0)
        began_s = time.perf_counter()
        found = self.reconciler.run_once()
        self.red_s.append(time.perf_counter() - began_s)
        assert (found.looked, found.unblocked) == (self.stuck, 0)
        self._put_back()
        self._do_bare()
        self._put_back()

    def _put_back(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM jobs WHERE agent = 'reviewer'")
            connection.execute("DELETE FROM task_audits")
            connection.execute("UPDATE tasks SET stage = 'development', stage_entered_at = 1 WHERE task_id LIKE 'g%'")

    def _do_bare(self) -> None:
        """Do the same with nothing but SQLite: no gate, no compare-and-set, no second look,
        one commit a task.
        """
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            began_s = time.perf_counter()
            found = connection.execute(
                "SELECT task_id FROM tasks WHERE stage = 'development' AND stage_entered_at <= 1 "
                "AND status IN ('created', 'running')"
            ).fetchall()
            for (task_id,) in found:
                if task_id[0] == "g":
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("UPDATE tasks SET stage = 'review' WHERE task_id = ?", (task_id,))
                    connection.execute(
                        "INSERT INTO task_audits (task_id, event, detail, created_at) VALUES (?, '', '', 1)", (task_id,)
                    )
                    connection.execute(
                        "INSERT INTO jobs (agent, repo, task_id, status, attempts, max_attempts, claim, error, "
                        "created_at, updated_at) VALUES ('reviewer', '', ?, 'queued', 0, 1, 0, '', 1, 1)",
                        (task_id,),
                    )
                    connection.execute("COMMIT")
            self.bare_s.append(time.perf_counter() - began_s)


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Let the files take turns; return the lines to print."""
    few, many, ended = (
        Rounds(folder / f"{number}.db", tasks=tasks, stuck=options.stuck, have_ended=have_ended)
        for number, (tasks, have_ended) in enumerate(
            ((options.few, False), (options.many, False), (options.many, True))
        )
    )
    for _ in range(options.rounds):
        for rounds in (few, many, ended):
            rounds.round()
    lines = []
    for what, times in ((f"moving {options.stuck}", "moving_s"), ("all gates red", "red_s")):
        few_s, many_s, ended_s = (statistics.median(getattr(each, times)) for each in (few, many, ended))
        lines.append(
            f"a round, {what}: {few_s:.3f} s over {options.few} tasks, {many_s:.3f} s over {options.many} "
            f"(target {_TARGET_S} s), ratio {many_s / few_s:.2f}; over {options.many} that have ended {ended_s:.3f} s"
        )
    bare_s = statistics.median(many.bare_s)
    lines.append(f"SQLite alone, the same rows: {bare_s:.3f} s, ratio {bare_s / statistics.median(many.moving_s):.2f}")
    return lines


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=1_000, help="tasks of the first file")
    parser.add_argument("--many", type=int, default=100_000, help="tasks of the other files")
    parser.add_argument("--stuck", type=int, default=100, help="stuck tasks behind green gates, and behind red ones")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in each file")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the files; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for line in measure(Path(folder), options):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
