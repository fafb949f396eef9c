"""The programs of the scenarios about an agent's own state:
executors, writers that die half-way, start-ups.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durable_agents import Buffers, Roots, StateStore, Workspaces, WorkspaceStatus
from durable_agents.processes import start_of
from durable_agents.state.startup import startup

from scenarios.work.agents import made

if TYPE_CHECKING:
    from pytest_chaos import Marks

HALF = "scenario.half_written"


def execute(marks: Marks) -> None:
    """Be the executor of a workspace, until the end of the run or an earlier one."""
    marks.ack("executor", value=named(os.getpid()))
    while True:
        signal.pause()


def execute_and_leave_a_zombie(marks: Marks) -> None:
    """Start an executor that ends at once, and never reap it."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    marks.ack("executor", value=named(child))
    while True:
        signal.pause()


def named(pid: int) -> dict[str, Any]:
    """Return pid and start of a process, which tell it from all others."""
    return {"pid": pid, "pid_start": start_of(pid)}


def write_by_halves(marks: Marks, file: str, content: str) -> None:
    """Write a file in place, in two halves with a crash point between them.

    Many programs write files so.
    """
    with Path(file).open("w") as opened:
        opened.write(content[: len(content) // 2])
        opened.flush()
        sys.audit(HALF)
        opened.write(content[len(content) // 2 :])
    marks.ack("written")


def track(marks: Marks, root: str, statuses: dict[str, dict[str, Any]], parts: dict[str, str]) -> None:
    """Be an agent that tracks these workspaces."""
    roots = Roots(root)
    with StateStore(db_path=roots.database) as state:
        workspaces: Workspaces = made(parts["workspaces"], roots, state)
        for name, fields in statuses.items():
            marks.intent("track", name)
            workspaces.track(name, WorkspaceStatus(**fields))
            marks.ack("track", name)


def start_up(marks: Marks, root: str, parts: dict[str, str]) -> None:
    """Start as an agent does, and mark what the start-up found."""
    roots = Roots(root)
    with StateStore(db_path=roots.database) as state:
        workspaces: Workspaces = made(parts["workspaces"], roots, state)
        buffers: Buffers = made(parts["buffers"], roots, state)
        marks.intent("start-up")
        found = startup(workspaces, buffers, state)
        value = {
            "ghosts": list(found.hydration.ghosts),
            "live": list(found.hydration.live),
            "problems": [f"{each.workspace}: {each.problem}" for each in found.hydration.problems],
            "registry": {name: status.status for name, status in workspaces.all().items()},
            "orphans": [[each.file, str(each.disposition)] for each in found.orphans.found],
        }
        marks.ack("start-up", value=value)


def recover(marks: Marks, root: str, parts: dict[str, str]) -> None:
    """Recover orphans without a start, as a cleaner does that runs by itself."""
    roots = Roots(root)
    with StateStore(db_path=roots.database) as state:
        buffers: Buffers = made(parts["buffers"], roots, state)
        marks.intent("start-up")
        found = buffers.recover_orphans().found
        marks.ack("start-up", value={"orphans": [[each.file, str(each.disposition)] for each in found]})


def run_cycle(marks: Marks, root: str, name: str, entries: int, parts: dict[str, str]) -> None:
    """Do one cycle: mark its id, put findings, mark that half of them are put, commit."""
    roots = Roots(root)
    with StateStore(db_path=roots.database) as state:
        buffers: Buffers = made(parts["buffers"], roots, state)
        with buffers.begin(name) as cycle:
            marks.intent("cycle", cycle.cycle_id, value={"name": name, "file": cycle.path.name, "of": entries})
            for number in range(entries):
                if number == entries // 2:
                    marks.ack("half", cycle.cycle_id)
                cycle.put("finding", {"number": number, "of": entries})
            if cycle.commit():
                marks.ack("cycle", cycle.cycle_id)
