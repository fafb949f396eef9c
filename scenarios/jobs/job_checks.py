"""The states of jobs, tasks and executors after a run.

Jobs and tasks are read with nothing but sqlite3, executors from their ledger and locks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def rows(database: Path | sqlite3.Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Return what a statement finds, in a database or over a connection.

    To open a database takes most of the time of a look, so what is looked at often has one.
    """
    if isinstance(database, sqlite3.Connection):
        return database.execute(statement, parameters).fetchall()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement, parameters).fetchall()


def check_jobs(database: Path, jobs: int, *, statuses: tuple[str, ...] = ("done",)) -> Iterator[Finding]:
    """Find jobs that have another end than expected, or more than one."""
    found = dict(rows(database, "SELECT job_id, status FROM jobs WHERE job_id <= ?", jobs))
    wrong = {job_id: status for job_id, status in found.items() if status not in statuses}
    if wrong or len(found) != jobs:
        text = f"{len(wrong)} of {len(found)} jobs are not {' or '.join(statuses)}: {dict(list(wrong.items())[:10])}"
        yield Finding(signature="jobs:not-ended", text=text, kind="liveness", checker="check_jobs")
    ends = Counter(
        detail.partition(" of ")[0]
        for (detail,) in rows(
            database, "SELECT detail FROM task_audits WHERE event = 'job_ended' AND after <> 'queued'"
        )
    )
    if repeated := {job: times for job, times in ends.items() if times > 1}:
        yield Finding(signature="jobs:ended-twice", text=f"ends by job: {repeated}", checker="check_jobs")


def check_ends(database: Path, jobs: int) -> Iterator[Finding]:
    """Find jobs whose claim was ended more often than once, or never."""
    ends = Counter(
        (job, claim.split(":")[0])
        for job, _, claim in (
            detail.partition(", claim ")
            for (detail,) in rows(database, "SELECT detail FROM task_audits WHERE event = 'job_ended'")
        )
    )
    if repeated := {end: times for end, times in ends.items() if times > 1}:
        text = f"{len(repeated)} claims were ended more than once: {dict(list(repeated.items())[:10])}"
        yield Finding(signature="jobs:claim-ended-twice", text=text, checker="check_ends")
    if len(ends) != jobs:
        text = f"{len(ends)} of {jobs} claims were ended"
        yield Finding(signature="jobs:claim-not-ended", text=text, kind="liveness", checker="check_ends")


def check_stages(database: Path, tasks: list[str], *, moved: bool = True) -> Iterator[Finding]:
    """Find tasks that did not leave the stage build exactly once, with one next job."""
    stages = dict(rows(database, "SELECT task_id, stage FROM tasks"))
    moves = Counter(task for (task,) in rows(database, "SELECT task_id FROM task_audits WHERE event = 'stage_changed'"))
    following = Counter(task for (task,) in rows(database, "SELECT task_id FROM jobs WHERE agent = 'checker'"))
    for task in tasks:
        for signature, is_wrong in (
            ("stages:not-advanced", moved and stages[task] == "build"),
            ("stages:advanced-twice", moves[task] > moved or stages[task] == "end"),
            ("jobs:next-missing", moved and following[task] < 1),
            ("jobs:next-twice", following[task] > moved),
        ):
            if is_wrong:
                text = f"{task} is in {stages[task]} after {moves[task]} moves, with {following[task]} next jobs"
                yield Finding(signature=signature, text=text, checker="check_stages")
    if left := rows(database, "SELECT kind, job_id FROM outbox"):
        yield Finding(signature="outbox:left", text=f"still to be done: {left[:10]}", kind="liveness")


def ledger(folder: Path) -> list[tuple[int, int, int, str]]:
    """Return the ledger of the executors, in order: job, claim, pid and event."""
    try:
        lines = (folder / "ledger").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [(int(job), int(claim), int(pid), what) for job, claim, pid, what in (line.split() for line in lines)]


def check_executors(folder: Path) -> Iterator[Finding]:
    """Find executors that met a living one of their job, and claims executed twice."""
    lines = ledger(folder)
    if met := [(job, claim) for job, claim, _, what in lines if what == "overlap"]:
        text = f"(job, claim) that began while another executor of the job lived: {met[:10]}"
        yield Finding(signature="executors:two-at-once", text=text, checker="check_executors")
    begun = Counter((job, claim) for job, claim, _, what in lines if what == "begin")
    if repeated := {each: times for each, times in begun.items() if times > 1}:
        text = f"claims that were executed more than once: {repeated}"
        yield Finding(signature="executors:claim-executed-twice", text=text, checker="check_executors")


def alerts(folder: Path) -> list[str]:
    """Return the keys of the alerts that were told."""
    try:
        return (folder / "alerts").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
