"""Checks of the files after a run, read with nothing but sqlite3.

The core has no say in its own verdict.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_chaos import Finding, History
from pytest_chaos.checkers import durability

from scenarios.work.agents import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One checkpoint as it is in the file; ``iteration`` is ``None`` where the snapshot cannot be
    read.
    """

    sequence_number: int
    iteration: int | None
    problem: str


def read_rows(database: Path, task_id: str) -> tuple[list[str], list[Row]]:
    """Open the file as a new process would; return what is wrong with its integrity,
    and the task's checkpoints.
    """
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        integrity = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
        rows = connection.execute(
            "SELECT sequence_number, snapshot, content_hash FROM checkpoints WHERE task_id = ? ORDER BY 1",
            (task_id,),
        ).fetchall()
    return integrity, [_row(*row) for row in rows]


def _row(number: int, snapshot: str, content_hash: str) -> Row:
    if hashlib.sha256(snapshot.encode()).hexdigest() != content_hash:
        return Row(number, None, f"its hash is not that of its {len(snapshot)} characters")
    state = json.loads(snapshot)
    if state != snapshot_of(state["iteration"]):
        return Row(number, state["iteration"], "its state is not what was saved")
    return Row(number, state["iteration"], "")


def check_checkpoints(history: History, database: Path, task_id: str) -> Iterator[Finding]:
    """Find checkpoints that are lost, torn, invented, doubled or missing in between."""
    integrity, rows = read_rows(database, task_id)
    for text in integrity:
        yield Finding(signature="sqlite:integrity", text=text, checker="integrity_check")
    iterations = [row.iteration for row in rows if row.iteration is not None]
    yield from durability.whole(
        (durability.FoundItem(row.sequence_number, whole=not row.problem, reason=row.problem) for row in rows),
        "checkpoint",
    )
    yield from durability.acknowledged_present(history, "checkpoint", iterations)
    yield from durability.nothing_invented(history, "checkpoint", iterations)
    yield from durability.found_once(iterations, "iteration")
    yield from durability.contiguous([row.sequence_number for row in rows], 1, "checkpoint")


def effects_of(database: Path, task_id: str) -> list[tuple[str, int]]:
    """Return holder and token of each effect of a task, in order."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(
            "SELECT snapshot ->> 'effect_by', snapshot ->> 'token' FROM checkpoints"
            " WHERE task_id = ? AND snapshot ->> 'effect_by' IS NOT NULL ORDER BY sequence_number",
            (task_id,),
        ).fetchall()


def check_pragmas(history: History) -> Iterator[Finding]:
    """Find agents that wrote with less than synchronous=FULL.

    No kill shows it, a power loss would.
    """
    for mark in history.select("note", "pragmas"):
        for name, wanted in (("synchronous", "FULL"), ("journal_mode", "wal")):
            if (seen := mark.value[name]) != wanted:
                text = f"agent {mark.agent} writes with {name}={seen}, and what it acknowledges needs {wanted}"
                yield Finding(signature=f"pragma:{name}", text=text, checker="check_pragmas", orders=(mark.order,))


def only(history: History, *agents: str) -> History:
    """Return the history of some agents alone, for a database in which each has its own task."""
    return History(tuple(mark for mark in history.marks if mark.agent in agents))


def check_no_exceptions(history: History) -> Iterator[Finding]:
    """Find agents whose target raised, be it a lock error."""
    for mark in history.select("note", "chaos.raised"):
        kind = str(mark.value).partition(":")[0]
        text = f"agent {mark.agent} ended with {mark.value}"
        yield Finding(signature=f"agent:raised:{kind}", text=text, checker="check_no_exceptions", orders=(mark.order,))
