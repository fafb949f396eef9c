"""Checks of an agent's own state, read with nothing but files and sqlite3."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_chaos import Finding
from pytest_chaos.checkers import durability, exactly_once

from scenarios.judging import check_tables
from scenarios.model.cycles import Cycles
from scenarios.model.states import Moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_chaos import History
    from pytest_chaos.model.values import Mark


NOW = Moment(0, 0)


@dataclass(frozen=True)
class Expected:
    """The status that a start-up must give a workspace, in the registry and on disk.

    None for a workspace that it leaves alone.
    """

    registry: str | None
    file: str | None
    is_live: bool = False
    file_wins: bool = False


def read_group(root: Path, group: str) -> dict[str, Any]:
    """Return a group of the state store."""
    with contextlib.closing(sqlite3.connect(root / ".core" / "db.sqlite")) as connection:
        rows = connection.execute("SELECT key, value FROM state_entries WHERE group_name = ?", (group,)).fetchall()
    return {key: json.loads(value) for key, value in rows}


def read_file(root: Path, name: str) -> str:
    """Return the status that a workspace's file says, or ``torn``, or ``none``."""
    file = root / "workspace" / name / "status.json"
    try:
        return str(json.loads(file.read_bytes())["status"])
    except FileNotFoundError:
        return "none"
    except ValueError:
        return "torn"


def check_workspaces(root: Path, expected: Mapping[str, Expected]) -> Iterator[Finding]:
    """Find living workspaces that were failed, ghosts that still run, and disagreement.

    Disk and store must both have the expected status.
    """
    registry = read_group(root, "registry")
    for name, wanted in expected.items():
        stored = registry.get(name, {}).get("status")
        on_disk = read_file(root, name)
        if stored != wanted.registry:
            text = f"{name} is {stored} in the registry, expected {wanted.registry}"
            yield Finding(signature=f"workspaces:{_kind(wanted, stored)}", text=text, checker="check_workspaces")
        if wanted.file is not None and on_disk != wanted.file:
            kind = "torn" if on_disk == "torn" else "disk-differs"
            text = f"{name} is {on_disk} on disk, expected {wanted.file}"
            yield Finding(signature=f"workspaces:{kind}", text=text, checker="check_workspaces")
    for file in sorted((root / "workspace").rglob("status.json")):
        name = str(file.parent.relative_to(root / "workspace"))
        if name not in expected and read_file(root, name) == "torn":
            text = f"{name}, which nobody had acknowledged, is half there"
            yield Finding(signature="workspaces:torn", text=text, checker="check_workspaces")
    yield from _check_groups(root, registry)


def _kind(wanted: Expected, stored: str | None) -> str:
    if wanted.is_live and stored == "failed":
        return "live-failed"
    if wanted.registry == "failed" and stored == "running":
        return "ghost-running"
    return "store-won" if wanted.file_wins else "registry-differs"


def _check_groups(root: Path, registry: Mapping[str, Any]) -> Iterator[Finding]:
    """Find wrong rows in the queue, the counts and the dispatch history."""
    waiting = {name for name, entry in registry.items() if entry["status"] == "queued"}
    queue = set(read_group(root, "queue"))
    if queue != waiting:
        text = f"the queue has {sorted(queue)}, and {sorted(waiting)} wait"
        yield Finding(signature="workspaces:queue-differs", text=text, checker="check_workspaces")
    running: dict[str, int] = {}
    for entry in registry.values():
        kind = entry["agent"].partition(":")[0] or "?"
        running[kind] = running.get(kind, 0) + (entry["status"] == "running")
    stored = {kind: value["running"] for kind, value in read_group(root, "concurrency").items()}
    for kind, count in running.items():
        if stored.get(kind, 0) != count:
            text = f"{count} of {kind} run, and the store counts {stored.get(kind, 0)}"
            yield Finding(signature="workspaces:miscounted", text=text, checker="check_workspaces")


def read_cycles(root: Path) -> dict[str, tuple[str, list[Any]]]:
    """Return the history of cycles: name and entries by id."""
    with contextlib.closing(sqlite3.connect(root / ".core" / "db.sqlite")) as connection:
        cycles = connection.execute("SELECT cycle_id, name FROM cycles ORDER BY cycle_id").fetchall()
        found: dict[str, tuple[str, list[Any]]] = {cycle_id: (name, []) for cycle_id, name in cycles}
        for cycle_id, value in connection.execute("SELECT cycle_id, value FROM cycle_entries ORDER BY cycle_id, place"):
            found[cycle_id][1].append(json.loads(value))
    return found


def check_cycles(history: History, root: Path) -> Iterator[Finding]:
    """Find cycles that are half there, were acknowledged and lost, or belong to no agent."""
    found = read_cycles(root)
    yield from durability.acknowledged_present(history, "cycle", found)
    yield from durability.nothing_invented(history, "cycle", found)
    yield from durability.whole(
        (
            durability.FoundItem(cycle_id, whole=_is_whole(entries), reason=f"{name} has {len(entries)} entries")
            for cycle_id, (name, entries) in found.items()
        ),
        "cycle",
    )


def check_cycles_by_model(history: History, root: Path, beside: str = "") -> Iterator[Finding]:
    """Find a history that is not the model's, and orphans that were dealt with otherwise.

    An owner lives as long as it has something to say. The agent ``beside`` started while an owner
    stood still, which may have said all: it may leave its buffer. Whether a cycle without an ack
    was committed is read from the history, and that it is whole is not.
    """
    model, found = Cycles(), read_cycles(root)
    files: dict[str, str] = {}
    last = {mark.agent: mark.order for mark in history.marks}
    for mark in history.marks:
        if mark.kind == "intent" and mark.operation == "cycle":
            name = mark.value["name"]
            model.begin(NOW, str(mark.key), name=name, entries=mark.value["of"])
            files[mark.value["file"].removesuffix(".buffer")] = str(mark.key)
        elif mark.kind == "ack" and mark.operation == "cycle":
            model.commit(NOW, str(mark.key))
        elif mark.kind == "ack" and mark.operation == "start-up":
            yield from _check_ends(history, mark, model, files, last, beside)
    for cycle_id in set(found) & set(model.cycles):
        model.cycles[cycle_id].is_committed = True
    seen = {cycle_id: {"name": name, "entries": len(entries)} for cycle_id, (name, entries) in found.items()}
    yield from check_tables({"history": seen}, [model.tables()])


def _check_ends(
    history: History, start: Mark, model: Cycles, files: Mapping[str, str], last: Mapping[str, int], beside: str
) -> Iterator[Finding]:
    owners = {str(mark.key): mark for mark in history.select("intent", "cycle")}
    for file, disposition in start.value["orphans"]:
        if (cycle_id := files.get(file)) is None:
            continue
        may_live = start.agent == beside and disposition == "left"
        if last[owners[cycle_id].agent] < start.order and not may_live:
            model.die(NOW, cycle_id, is_readable=not owners[cycle_id].value["name"].startswith("damaged"))
        wanted = model.recover(NOW, cycle_id)["disposition"]
        if wanted != disposition:
            text = f"the buffer of {cycle_id} was {disposition}; the model: {wanted}"
            yield Finding(signature=f"model:orphan-{disposition}", text=text, checker="check_cycles_by_model")


def _is_whole(entries: list[Any]) -> bool:
    return bool(entries) and [entry["number"] for entry in entries] == list(range(entries[0]["of"]))


def check_sync(history: History, effects: list[str], arrivals: list[str]) -> Iterator[Finding]:
    """Find pushes that were lost, took effect twice, or overtook an older one."""
    yield from durability.acknowledged_present(history, "enqueue", effects)
    yield from exactly_once.at_most(effects, 1)
    firsts = list(dict.fromkeys(arrivals))
    queued = [str(mark.key) for mark in history.select("intent", "enqueue")]
    order = [name for name in dict.fromkeys(queued) if name in set(firsts)]
    if firsts != order:
        place = next(index for index, (seen, due) in enumerate(zip(firsts, order, strict=False)) if seen != due)
        text = f"{firsts[place]} came when {order[place]} was due, after {firsts[:place][-3:]}"
        yield Finding(signature="sync:out-of-order", text=text, checker="check_sync")
