"""Checks of tasks that webhooks and a reconciler moved, read with nothing but sqlite3."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from durable_agents import DEFAULT_PIPELINE
from pytest_chaos import Finding

from scenarios.jobs.job_checks import rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

STAGES: Final = tuple(stage.name for stage in DEFAULT_PIPELINE.stages)
AGENTS: Final = {stage.name: stage.starts for stage in DEFAULT_PIPELINE.stages}


def stage_of(database: Path | sqlite3.Connection, key: str) -> str:
    """Return the stage of the task of an issue, ``-`` while there is none."""
    return next((str(stage) for (stage,) in rows(database, "SELECT stage FROM tasks WHERE tracker_key = ?", key)), "-")


def write(database: Path, statement: str, *parameters: Any) -> None:
    """Write to the database as another program does."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(statement, parameters)


def written(database: Path) -> str:
    """Return the rows of tasks, jobs and audit trails as one text."""
    tables = ("tasks", "task_audits", "task_sources", "jobs", "outbox", "agent_runs")
    return "\n".join(repr(row) for table in tables for row in rows(database, f"SELECT * FROM {table}"))  # noqa: S608 - the names are ours


def is_quiet(database: Path | sqlite3.Connection) -> bool:
    """Tell whether no delivery waits, no job is active, and the outbox is empty."""
    statement = (
        "SELECT (SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')) + (SELECT count(*) FROM outbox) "
        "+ (SELECT count(*) FROM webhook_inbox WHERE status = 'pending')"
    )
    return rows(database, statement) == [(0,)]


def check_tasks(database: Path, stages: Mapping[str, str]) -> Iterator[Finding]:
    """Find issues without exactly one task in the expected stage."""
    found = Counter(key.strip() for (key,) in rows(database, "SELECT tracker_key FROM tasks"))
    for key, stage in stages.items():
        if found[key] != 1:
            text = f"{key} has {found[key]} tasks"
            yield Finding(signature="tasks:created-twice" if found[key] else "tasks:missing", text=text)
        elif (seen := stage_of(database, key)) != stage:
            is_behind = STAGES.index(seen) < STAGES.index(stage)
            signature = "stages:stuck" if is_behind else "stages:advanced-too-far"
            text = f"{key} is in {seen} and should be in {stage}"
            yield Finding(signature=signature, text=text, kind="liveness" if is_behind else "safety")
    if strange := set(found) - set(stages):
        yield Finding(signature="tasks:invented", text=f"nobody asked for tasks of {sorted(strange)[:10]}")


def check_moves(database: Path) -> Iterator[Finding]:
    """Find stages that were left more than once, or that have not exactly one job."""
    moves = Counter(rows(database, "SELECT task_id, before FROM task_audits WHERE event = 'stage_changed'"))
    if repeated := {move: times for move, times in moves.items() if times > 1}:
        text = f"stages that were left more often than once: {dict(list(repeated.items())[:10])}"
        yield Finding(signature="stages:advanced-twice", text=text, checker="check_moves")
    jobs = Counter(rows(database, "SELECT task_id, agent FROM jobs"))
    for task, stage in rows(database, "SELECT task_id, stage FROM tasks"):
        entered = STAGES[: STAGES.index(stage) + 1]
        wanted = Counter(AGENTS[name] for name in entered if AGENTS[name] is not None)
        seen = {agent: jobs[task, agent] for agent in {*wanted, *(agent for each, agent in jobs if each == task)}}
        for agent, number in seen.items():
            if number != wanted[agent]:
                signature = "jobs:repeated" if number > wanted[agent] else "jobs:missing"
                text = f"{task} in {stage} has {number} jobs of {agent}, not {wanted[agent]}"
                yield Finding(signature=signature, text=text, checker="check_moves")


def check_executions(folder: Path) -> Iterator[Finding]:
    """Find stages whose work was done more than once, by the ledger of the executors."""
    ledger = folder / "ledger"
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    if repeated := {line: times for line, times in Counter(lines).items() if times > 1}:
        text = f"work that was done more often than once: {dict(list(repeated.items())[:10])}"
        yield Finding(signature="executors:done-twice", text=text, checker="check_executions")


def check_unbegun(database: Path) -> Iterator[Finding]:
    """Find tasks that were cancelled before their job began, and whose job began later."""
    statement = "SELECT tracker_key, agent FROM tasks JOIN agent_runs USING (task_id) WHERE status = 'cancelled'"
    if begun := rows(database, statement):
        text = f"jobs of cancelled tasks that were begun: {begun[:10]}"
        yield Finding(signature="jobs:begun-when-cancelled", text=text, checker="check_unbegun")


def check_inbox(database: Path, sent: Sequence[tuple[str, str, str, str]], *, proxy_lost: int = 0) -> Iterator[Finding]:
    """Find deliveries (source, event, id, answer) that were acknowledged and are not in the inbox,
    or are there twice.

    So many as ``proxy_lost`` were acknowledged by the proxy and never carried: none of them is
    there. One that comes again under another id has the same body, and no two of a scenario have.
    """
    found = rows(database, "SELECT source, delivery_id, body, status FROM webhook_inbox")
    acknowledged = {delivery for _, _, delivery, answer in sent if answer in {"200", "202"}}
    if len(lost := sorted(acknowledged - {delivery for _, delivery, _, _ in found})) != proxy_lost:
        text = f"{len(lost)} acknowledged deliveries are not in the inbox: {lost[:5]}"
        yield Finding(signature="durability:acknowledged-lost", text=text, checker="check_inbox")
    bodies = Counter((source, body) for source, _, body, _ in found)
    if repeated := [source for (source, _), times in bodies.items() if times > 1]:
        text = f"{len(repeated)} deliveries are in the inbox more often than once: of {repeated[:10]}"
        yield Finding(signature="inbox:accepted-twice", text=text, checker="check_inbox")
    if failed := sorted(delivery for _, delivery, _, status in found if status == "failed"):
        yield Finding(signature="inbox:set-aside", text=f"deliveries that were not handled: {failed[:5]}")


def check_times(seen: Sequence[float], bounds: Sequence[tuple[float, float]]) -> Iterator[Finding]:
    """Find durations in the world's time that are out of their bounds."""
    for number, (passed_s, (low_s, high_s)) in enumerate(zip(seen, bounds, strict=True), 1):
        if not low_s <= passed_s <= high_s:
            is_late = passed_s > high_s
            text = f"part {number} took {passed_s:g} s, and may take {low_s:g} to {high_s:g}"
            signature = "time:too-late" if is_late else "time:too-early"
            yield Finding(
                signature=signature, text=text, kind="liveness" if is_late else "safety", checker="check_times"
            )


def check_stays(database: Path, key: str, stage: str, signature: str) -> Iterator[Finding]:
    """Find, under this signature, a task that has left the stage in which it must stay."""
    if (seen := stage_of(database, key)) != stage:
        yield Finding(signature=signature, text=f"{key} is in {seen}, not in {stage}", checker="check_stays")


def check_answers(answers: Mapping[str, tuple[str, str]]) -> Iterator[Finding]:
    """Find requests whose answer is not the documented one."""
    for name, (seen, wanted) in answers.items():
        if seen != wanted:
            is_accepted = seen in {"200", "202"}
            signature = "receiver:forgery-accepted" if is_accepted else "receiver:undocumented-answer"
            yield Finding(signature=signature, text=f"{name}: {seen}, not {wanted}", checker="check_answers")
