"""Agents are real processes: started in every form there is, watched, and told about truthfully."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.agents import tree
from harness.agents.process import OUTPUT_BYTES_MAX, ExitStatus
from harness.errors import AgentError, SpawnError, UsageError, WaitExpired
from harness.model import MarkKind
from tests.harness import targets

if TYPE_CHECKING:
    from harness.agents.marks import Marks
    from harness.run import Run

TARGETS = "tests.harness.targets"


def say_where(marks: Marks) -> None:
    """Say in which file this function was found by the agent."""
    marks.ack("file", value=__file__)


@pytest.mark.parametrize(
    "target",
    [f"{TARGETS}:count_up", f"{Path(__file__).with_name('targets.py')}:count_up", targets.count_up],
    ids=["module", "file", "function"],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
def test_a_python_agent_starts_in_every_form(run: Run, target: str, fresh: bool) -> None:  # noqa: FBT001 - a parameter
    """Module, file or function, forked or in a fresh interpreter: its marks come, and it ends with code 0."""
    agent = run.spawn(target, kwargs={"total": 3, "operation": "beat"}, fresh=fresh)
    assert [mark.key for mark in agent.wait_for("beat", count=3)] == [1, 2, 3]
    assert agent.wait_exit() == ExitStatus(0, None)
    assert {mark.pid for mark in agent.marks} == {agent.pid} != {os.getpid()}


def test_a_function_of_a_test_file_is_found_by_its_file(run: Run) -> None:
    """A test module that cannot be imported by name is an agent's target all the same."""
    (mark,) = run.spawn(say_where).wait_for("file")
    assert Path(mark.value) == Path(__file__)


def test_an_argv_runs_any_program(run: Run) -> None:
    """A program that is not Python is an agent, and its output is kept."""
    agent = run.spawn(["/bin/sh", "-c", "echo hello from $CHAOS_AGENT; exit 3"], name="shell")
    assert agent.wait_exit() == ExitStatus(3, None)
    assert agent.output() == "hello from shell\n"


def test_a_shell_writes_marks(run: Run) -> None:
    """A mark is a line in a file, so an agent in any language can write it; a torn one costs only itself."""
    line = r'{"kind":"ack","operation":"put","key":%d,"agent":"%s","pid":%d}'
    script = f"""printf '{line}\\n' 7 "$CHAOS_AGENT" $$ >> "$CHAOS_MARKS"
    printf '{{"kind":"ack","oper' >> "$CHAOS_MARKS"
    printf '\\n{line}\\n' 8 "$CHAOS_AGENT" $$ >> "$CHAOS_MARKS"; read forever"""
    marks = run.spawn(["/bin/sh", "-c", script.replace("read forever", "kill -STOP $$")], name="shell")
    assert [mark.key for mark in marks.wait_for("put", count=2)] == [7, 8]
    assert len(run.history.torn) == 1


def test_an_agent_is_a_process_of_its_own(run: Run) -> None:
    """It leads its own process group, works in the run's folder, and is told apart by pid and start time."""
    agent = run.spawn(targets.tell)
    pid, group, directory = agent.wait_for("pid")[0].value
    assert pid == group == agent.pid
    assert Path(directory) == run.directory.resolve()
    assert agent.start_ticks > 0


@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
def test_environment_and_folder_are_the_agents_own(run: Run, tmp_path: Path, fresh: bool) -> None:  # noqa: FBT001 - a parameter
    """Variables are added and unset, and it starts where it was told to."""
    os.environ["CHAOS_TEST_PRESENT"] = "1"
    try:
        agent = run.spawn(
            f"{TARGETS}:tell",
            kwargs={"variables": ["CHAOS_TEST_PRESENT", "CHAOS_TEST_ADDED", "CHAOS_AGENT"]},
            env={"CHAOS_TEST_PRESENT": None, "CHAOS_TEST_ADDED": "ö"},
            cwd=tmp_path,
            name="told",
            fresh=fresh,
        )
        values = {mark.key: mark.value for mark in agent.wait_for("variable", count=3)}
    finally:
        del os.environ["CHAOS_TEST_PRESENT"]
    assert values == {"CHAOS_TEST_PRESENT": None, "CHAOS_TEST_ADDED": "ö", "CHAOS_AGENT": "told"}
    assert agent.wait_for("pid")[0].value[2] == str(tmp_path)


def test_a_forked_agent_has_one_thread_and_nobody_elses_arguments(run: Run) -> None:
    """What an agent finds does not depend on pytest's own threads."""
    assert run.spawn(targets.tell).wait_for("interpreter")[0].value["threads"] == 1
