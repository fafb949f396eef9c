"""The parts that the state machines share: crashes, rivals, a folder, and how a machine is run.

A crash is an exception out of a named crash point, and a process that does nothing after it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from durable_agents import SqliteStore
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.store.sqlite.store import SqliteTransaction

_MEMORY = Path("/dev/shm")  # crashes of a process lose no page cache, so nothing is to be learnt from a disk


def rarely(points: tuple[str, ...]) -> st.SearchStrategy[str | None]:
    """Draw a point to crash at, mostly none."""
    return st.sampled_from([*[None] * 2 * len(points), *points])


class CrashError(BaseException):
    """The process dies here."""


class Crashes:
    """An audit hook that raises once at the armed point.
    Hooks stay for ever, so there is one for all machines.
    """

    armed: str | None = None
    error: type[BaseException] = CrashError
    is_dead = False
    installed = False

    @classmethod
    def install(cls) -> None:
        """Install the hook, unless it is."""
        if not cls.installed:
            cls.installed = True
            sys.addaudithook(cls._hook)

    @classmethod
    def _hook(cls, event: str, _: object) -> None:
        if event == cls.armed:
            cls.armed = None
            cls.is_dead = cls.error is CrashError  # who is interrupted lives, and cleans up
            raise cls.error

    @classmethod
    def refuse_the_dead(cls) -> None:
        """Raise where a process that has crashed would go on:
        what cleans up after an exception is dead, too.
        """
        if cls.is_dead:
            raise CrashError


class Intruding(SqliteStore):
    """A store that lets an intruder in before a transaction begins, and refuses the dead."""

    intruder: Callable[[], object] | None = None
    passed = 0
    """Transactions that begin undisturbed before the intruder comes."""

    def transaction(self) -> SqliteTransaction:
        """Begin, after the intruder if it is his turn."""
        Crashes.refuse_the_dead()
        if self.intruder is not None and not self.passed:
            intruder, self.intruder = self.intruder, None
            intruder()
        self.passed = max(0, self.passed - 1)
        return super().transaction()


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the store of one run, in memory where that is possible."""
    return tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)


def bounded(steps: int, examples: int) -> settings:
    """Return settings under which every run of a machine draws the same steps."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        stateful_step_count=steps,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
    )


def require_failure(
    machine: type[RuleBasedStateMachine],
    part: str,
    variant: type,
    found: settings,
    *errors: type[BaseException],
) -> None:
    """Fail unless the machine finds a difference when a defective variant replaces a part."""
    defective = type(f"MachineWith{variant.__name__}", (machine,), {part: variant})
    generate_only = settings(found, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, pytest.fail.Exception, *errors)):
        run_state_machine_as_test(defective, settings=generate_only)
