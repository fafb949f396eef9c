"""The ways to a state: each step that an audit trail tells is one that the model allows.

For scenarios whose agents do what they like, so that no script says what has to come out. Each row
of a trail begins where the one before it has ended, a status is one that may follow, and the
newest row is what the task is now. A job was tried as often as it has runs.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos import Finding

from scenarios.model.states import FOLLOWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_STEPS: Final = ("created", "status_changed", "stage_changed")


def check_ways(database: Path) -> Iterator[Finding]:
    """Find rows of tasks and jobs to which no way leads that the model allows."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tasks = connection.execute("SELECT task_id, status, stage FROM tasks").fetchall()
        audits = connection.execute(
            "SELECT task_id, event, before, after FROM task_audits ORDER BY audit_id"
        ).fetchall()
        jobs = connection.execute(
            "SELECT job_id, status, attempts, max_attempts, claim, "
            "(SELECT count(*) FROM agent_runs AS r WHERE r.job_id = j.job_id) FROM jobs AS j"
        ).fetchall()
    for task_id, status, stage in tasks:
        trail = [row[1:] for row in audits if row[0] == task_id and row[1] in _STEPS]
        for signature, text in _of_trail(trail, status, stage):
            yield Finding(signature=f"model:{signature}", text=f"{task_id}: {text}", checker="check_ways")
    for job_id, status, attempts, attempts_max, claim, runs in jobs:
        if not attempts == runs <= min(attempts_max, claim) or (status == "running" and not runs):
            text = f"job {job_id} is {status} after {attempts} of {attempts_max} attempts, {runs} runs, {claim} claims"
            yield Finding(signature="model:attempts-are-not-the-runs", text=text, checker="check_ways")


def _of_trail(trail: Sequence[tuple[str, Any, Any]], status: str, stage: str) -> Iterator[tuple[str, str]]:
    now: dict[str, Any] = {}
    for event, before, after in trail:
        what = "stage" if event == "stage_changed" else "status"
        if now.get(what, before) != before:
            yield "trail-has-a-gap", f"the {what} was {now[what]} and is left as {before}"
        if event == "status_changed" and after not in FOLLOWS.get(before, ()):
            yield "status-may-not-follow", f"{before} became {after}"
        now[what] = after
    for what, seen in (("status", status), ("stage", stage)):
        if now.get(what, seen) != seen:
            yield "trail-ends-elsewhere", f"the {what} is {seen}, and its trail ends at {now[what]}"
