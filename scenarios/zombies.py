"""Zombies at every point: what the world does while an agent stands still, and when it wakes.

A zombie that stands within a transaction has the write lock of the database, so the others wait for
it. Then it wakes as soon as they have started. Everywhere else they come to their ends before.
"""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_chaos import Agent, Run

LONG_S: Final = 3600.0
"""Longer than any lease; the world's clock moves so far."""
END_S: Final = 30.0
SAMPLE: Final = 2
"""Places of a sweep in the default run; ``--chaos-all-points`` takes all."""


def has_write_lock(database: Path) -> bool:
    """Tell whether a process is within a writing transaction; not without a database."""
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database, timeout=0.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


def _never(_: Agent) -> bool:
    return False


def _is_over(agent: Agent, waits: Callable[[Agent], bool]) -> bool:
    return not agent.running or waits(agent)


def asks_for_the_same(agent: Agent, zombie: Agent, operation: str) -> bool:
    """Tell whether both have asked for one thing and have no answer yet, so that one waits."""

    def open_keys(of: Agent) -> set[object]:
        said = [(mark.kind, mark.key) for mark in of.marks if mark.operation == operation]
        return {key for kind, key in said if kind == "intent" and ("ack", key) not in said}

    return bool(open_keys(agent) & open_keys(zombie))


def waits_or_has_ended(agent: Agent) -> bool:
    """Tell whether an agent waits for the lock of a file, as the kernel has it, or has ended."""
    waiting = (line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines() if "->" in line)
    return not agent.running or str(agent.pid) in {fields[5] for fields in waiting}


def outlive(
    chaos: Run,
    zombie: Agent,
    others: Callable[[], Iterable[Agent]],
    *,
    database: Path,
    waits: Callable[[Agent], bool] = _never,
) -> bool:
    """Let others work while an agent stands still, wake it, and return whether it stood.

    Each of the others is started when the one before it has ended. In the first execution of a
    sweep the agent has ended by itself. ``waits`` tells whether one of the others waits for it in
    another way than for the write lock.
    """
    stood = stands = zombie.wait_stopped(timeout_s=END_S)
    is_locked = stood and has_write_lock(database)
    for agent in others():
        if stands and is_locked:
            zombie.resume()
            stands = False
        what = f"agent {agent.name!r} to end, or to wait for the one that stands"
        chaos.wait_until(partial(_is_over, agent, waits if stands else _never), timeout_s=END_S, what=what)
    if stands:
        zombie.resume()
    zombie.wait_exit(timeout_s=END_S)
    return stood
