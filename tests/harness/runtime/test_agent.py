"""Agents are real processes: started in every form there is, watched, and told about truthfully."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import AgentError, SpawnError, UsageError, WaitExpired
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.agent import OUTPUT_BYTES_MAX, ExitStatus

from tests.harness.runtime import targets

if TYPE_CHECKING:
    from pytest_chaos.runtime.marks import Marks
    from pytest_chaos.runtime.run import Run

TARGETS = "tests.harness.runtime.targets"


def say_where(marks: Marks) -> None:
    """Say in which file this function was found by the agent."""
    marks.ack("file", value=__file__)


def write_to_nobody(marks: Marks) -> None:
    """Write into a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.write(writer, b".")
    except BrokenPipeError:
        marks.note("told")


@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
def test_a_peer_that_has_gone_is_an_error_as_in_any_python(run: Run, fresh: bool) -> None:  # noqa: FBT001 - a parameter
    """And no death by SIGPIPE, which only programs that are no Python start with."""
    agent = run.spawn(write_to_nobody, name="writer", fresh=fresh)
    assert agent.wait_exit().ok
    agent.wait_for("told", kind="note")


@pytest.mark.parametrize(
    "target",
    [f"{TARGETS}:count_up", f"{Path(__file__).with_name('targets.py')}:count_up", targets.count_up],
    ids=["module", "file", "function"],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
def test_a_python_agent_starts_in_every_form(run: Run, target: str, fresh: bool) -> None:  # noqa: FBT001 - a parameter
    """Module, file or function, forked or in a fresh interpreter:
    its marks come, and it ends with code 0.
    """
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
    """A mark is a line in a file, so an agent in any language can write it;
    a torn one costs only itself.
    """
    line = r'{"kind":"ack","operation":"put","key":%d,"agent":"%s","pid":%d}'
    script = f"""printf '{line}\\n' 7 "$CHAOS_AGENT" $$ >> "$CHAOS_MARKS"
    printf '{{"kind":"ack","oper' >> "$CHAOS_MARKS"
    printf '\\n{line}\\n' 8 "$CHAOS_AGENT" $$ >> "$CHAOS_MARKS"; kill -STOP $$"""
    marks = run.spawn(["/bin/sh", "-c", script], name="shell")
    assert [mark.key for mark in marks.wait_for("put", count=2)] == [7, 8]
    assert len(run.history.torn) == 1


def test_an_agent_is_a_process_of_its_own(run: Run) -> None:
    """It leads its own process group, works in the run's folder,
    and is told apart by pid and start time.
    """
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


def test_a_wait_that_expires_says_what_was_seen(run: Run) -> None:
    """The error names what was awaited, and has the agent's marks, state and last output."""
    agent = run.spawn(targets.print_and_wait, kwargs={"text": "I am here"}, name="quiet")
    agent.wait_for_output("here")
    with pytest.raises(WaitExpired) as caught:
        agent.wait_for("never", count=2, timeout_s=0.05)
    text = str(caught.value)
    assert re.search(r"waited 0\.05 s for 2 ack mark\(s\) of 'never' from agent 'quiet', and it did not come", text)
    assert "I am here" in text
    assert "state S" in text


def test_a_wait_ends_as_soon_as_the_agent_does(run: Run) -> None:
    """Nobody waits for a mark of an agent that has ended; the error has its traceback."""
    agent = run.spawn(targets.raise_error, kwargs={"text": "no such luck"})
    with pytest.raises(AgentError, match=r"it ended before(.|\n)*ValueError: no such luck"):
        agent.wait_for("anything", timeout_s=10)
    assert agent.exit_status == ExitStatus(1, None)


def test_every_wait_says_that_the_agent_ended(run: Run) -> None:
    """Output, port and state of an agent that is no more are not waited for."""
    agent = run.spawn(targets.exit_with, kwargs={"code": 4})
    assert agent.wait_exit() == ExitStatus(4, None)
    for wait in (
        lambda: agent.wait_for_output("x", timeout_s=10),
        lambda: agent.wait_for_port(1, timeout_s=10),
        lambda: agent.wait_state("T", timeout_s=10),
    ):
        with pytest.raises(AgentError, match="exit code 4"):
            wait()


def test_the_end_is_waited_for_with_a_bound(run: Run) -> None:
    """An agent that goes on makes ``wait_exit`` expire, with its state."""
    agent = run.spawn(targets.print_and_wait, kwargs={"text": ""})
    with pytest.raises(WaitExpired, match="the end of agent 'agent-1'"):
        agent.wait_exit(timeout_s=0.05)


def test_a_port_is_waited_for(run: Run) -> None:
    """An agent that accepts connections is ready; one that does not lets the wait expire."""
    agent = run.spawn(targets.listen)
    port = agent.wait_for("listening")[0].key
    assert isinstance(port, int)
    agent.wait_for_port(port)
    agent.kill()
    other = run.spawn(targets.print_and_wait, kwargs={"text": ""})
    with pytest.raises(WaitExpired, match=f"127.0.0.1:{port}"):
        other.wait_for_port(port, timeout_s=0.05)


def test_output_is_matched_line_by_line(run: Run) -> None:
    """The match is returned, with its groups; the pattern's anchors mean lines."""
    agent = run.spawn(["/bin/sh", "-c", "echo one; echo listening on 4711; kill -STOP $$"])
    assert agent.wait_for_output(r"^listening on (\d+)$")[1] == "4711"
    with pytest.raises(WaitExpired, match="output of agent"):
        agent.wait_for_output("^on 4711", timeout_s=0.05)


def test_a_condition_of_the_tests_own_is_waited_for(run: Run) -> None:
    """Any condition will do, with or without an agent."""
    with pytest.raises(WaitExpired, match=r"for the moon, and it did not come: no agent was started"):
        run.wait_until(lambda: False, timeout_s=0.01, what="the moon")
    agent = run.spawn(targets.count_up)
    run.wait_until(lambda: len(agent.marks) > 10)
    with pytest.raises(WaitExpired, match="agent-1"):
        run.wait_until(lambda: False, timeout_s=0.01)


def test_state_is_the_kernels_word(run: Run) -> None:
    """Stopped, running on, ended: each is read from the kernel."""
    agent = run.spawn(targets.count_up)
    agent.wait_for("step")
    agent.pause()
    assert agent.state == "T"
    agent.resume()
    seen = len(agent.marks)
    agent.wait_for("step", count=seen)
    agent.kill()
    assert agent.state == "signal 9"


def test_output_beyond_the_bound_keeps_beginning_and_end(run: Run) -> None:
    """Of an output without end the first and the last part are kept,
    and what is between is counted.
    """
    lines = OUTPUT_BYTES_MAX // 8
    script = f"echo first; yes 123456789012345 | head -n {lines}; echo last; echo end >&2; kill -STOP $$"
    agent = run.spawn(["/bin/sh", "-c", script])
    agent.wait_state("T")
    agent.kill()
    run.conclude()
    text = agent.output()
    assert text.startswith("first\n")
    assert text.endswith("last\nend\n")
    assert OUTPUT_BYTES_MAX < len(text) < OUTPUT_BYTES_MAX + 70_000
    (left_out,) = re.findall(r"\[\.\.\. (\d+) bytes left out \.\.\.\]", text)
    total = len("first\nlast\nend\n") + 16 * lines
    assert len(text) - len(f"\n[... {left_out} bytes left out ...]\n") + int(left_out) == total
    assert agent.summary().output_bytes == total


@pytest.mark.parametrize(
    ("code", "status"), [(0, "exit code 0"), (7, "exit code 7"), (None, "exit code 0"), ("why", "exit code 1")]
)
def test_sys_exit_means_what_it_means_elsewhere(run: Run, code: int | str | None, status: str) -> None:
    """The exit status of an agent is that of the same program without a harness."""
    agent = run.spawn(targets.exit_with, kwargs={"code": code})
    assert str(agent.wait_exit()) == status
    assert ("why" in agent.output()) == (code == "why")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("no_such_module:function", "No module named 'no_such_module'"),
        ("no/such/file.py:function", "there is no Python file no/such/file.py"),
        (["/no/such/program"], "No such file or directory: /no/such/program"),
        (["/etc/passwd"], "Permission denied: /etc/passwd"),
    ],
)
def test_what_cannot_be_started_says_why(run: Run, target: str | list[str], text: str) -> None:
    """The error names the agent, its command and the reason, and the run goes on."""
    with pytest.raises(SpawnError, match=f"agent 'agent-1' (.|\n)*could not be started: .*{re.escape(text)}"):
        run.spawn(target)
    assert run.spawn(targets.tell, name="next").wait_for("pid")


@pytest.mark.parametrize("target", [f"{TARGETS}:no_such_function", f"{TARGETS}:TYPE_CHECKING"])
def test_a_function_that_is_not_there_is_the_agents_failure(run: Run, target: str) -> None:
    """A module that can be imported without the function in it:
    the agent ends, and its output says so.
    """
    agent = run.spawn(target)
    assert agent.wait_exit() == ExitStatus(1, None)
    assert re.search(r"no attribute 'no_such_function'|a target must be a function", agent.output())


@pytest.mark.parametrize("target", ["a_name", lambda: None, [], ":"], ids=["name", "lambda", "no argv", "colon"])
def test_what_can_never_be_a_target_is_refused(run: Run, target: object) -> None:
    """What is no target at all is a mistake of the call, or cannot be started; nothing hangs."""
    with pytest.raises((UsageError, SpawnError), match=r"target|argv|top level"):
        run.spawn(target)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("name", ["a b", "../up", "new\nline", ""])
def test_an_agents_name_is_a_file_name(run: Run, name: str) -> None:
    """A name that cannot be a log's is refused; none at all is replaced by a number."""
    if not name:
        assert run.spawn(targets.tell, name=name).name == "agent-1"
        return
    with pytest.raises(UsageError, match="the name of an agent must be made of"):
        run.spawn(targets.tell, name=name)


def test_two_running_agents_have_two_names(run: Run) -> None:
    """A name says who a mark is from, so it is not given twice at a time;
    after the end it may be.
    """
    agent = run.spawn(targets.print_and_wait, kwargs={"text": ""}, name="one")
    with pytest.raises(UsageError, match="the name of an agent must be free; got 'one', which is running"):
        run.spawn(targets.tell, name="one")
    agent.kill()
    assert run.spawn(targets.tell, name="one").wait_for("pid")


def test_kwargs_are_json(run: Run) -> None:
    """An object that is not JSON is refused with its type, and nothing was started."""
    with pytest.raises(UsageError, match=r"kwargs must be JSON.*object"):
        run.spawn(targets.count_up, kwargs={"operation": object()}, name="one")
    assert run.spawn(targets.tell, name="one").wait_for("pid")


def test_kwargs_have_a_bound(run: Run) -> None:
    """What does not fit into a message belongs into a file; 100 kB fit."""
    with pytest.raises(UsageError, match=r"must be small; got \d+ bytes, more than \d+\. Pass the path of a file"):
        run.spawn(targets.print_and_wait, kwargs={"text": "x" * 1_000_000}, name="one")
    agent = run.spawn(targets.print_and_wait, kwargs={"text": "x" * 100_000}, name="one")
    agent.wait_for_output("x{1000}")


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, float("inf"), True, float("nan")])
def test_every_bound_is_a_positive_number(run: Run, timeout_s: float) -> None:
    """A wait that is over before it began, or never ends, is a mistake of the call."""
    for call in (
        lambda: run.spawn(targets.tell, timeout_s=timeout_s),
        lambda: run.wait_until(lambda: True, timeout_s=timeout_s),
    ):
        with pytest.raises(UsageError, match="timeout_s must be a positive, finite number of seconds"):
            call()
    agent = run.spawn(targets.tell)
    for wait in (lambda: agent.wait_for("pid", timeout_s=timeout_s), lambda: agent.wait_exit(timeout_s=timeout_s)):
        with pytest.raises(UsageError, match="timeout_s must be a positive, finite number of seconds"):
            wait()


def test_a_module_that_starts_threads_is_not_forked(run: Run, tmp_path: Path) -> None:
    """A fork would lose the thread, so its agents come from a fresh interpreter,
    and the record says why.
    """
    (tmp_path / "threaded.py").write_text(
        "import threading\nstop = threading.Event()\n"
        "threading.Thread(target=stop.wait, daemon=True).start()\n"
        "def count(marks):\n    marks.ack('threads', value=threading.active_count())\n"
    )
    agent = run.spawn(f"{tmp_path / 'threaded.py'}:count")
    assert agent.wait_for("threads")[0].value == 2
    assert "importing it started 1 thread(s), which a fork would lose" in agent.note
    assert "thread" in str(run.conclude().notes)


def test_a_module_that_opens_sqlite_is_not_forked(run: Run, tmp_path: Path) -> None:
    """A connection must not be carried across a fork:
    it would corrupt the file; each agent imports afresh.
    """
    (tmp_path / "opened.py").write_text(
        "import sqlite3\nfrom pathlib import Path\n"
        "connection = sqlite3.connect(Path(__file__).with_name('opened.db'), isolation_level=None)\n"
        "connection.execute('CREATE TABLE IF NOT EXISTS rows (number INTEGER)')\n"
        "def insert(marks):\n"
        "    connection.execute('INSERT INTO rows VALUES (1)')\n    marks.ack('insert')\n"
    )
    first = run.spawn(f"{tmp_path / 'opened.py'}:insert")
    first.wait_for("insert")
    assert "importing it opened the SQLite file" in first.note
    second = run.spawn(f"{tmp_path / 'opened.py'}:insert", timeout_s=10)
    second.wait_for("insert")
    assert "opened.db" in second.note


def test_a_module_whose_import_hangs_is_given_up(run: Run, tmp_path: Path) -> None:
    """The bound of a spawn holds for the import, too, and what hangs is ended with the run."""
    (tmp_path / "hanging.py").write_text("import signal\nsignal.pause()\ndef never():\n    pass\n")
    run.spawn(targets.tell).wait_exit()
    before = _descendants_of_the_guardian(run)
    with pytest.raises(SpawnError, match=r"did not start within 0\.2 s \(an import that hangs\?\)"):
        run.spawn(f"{tmp_path / 'hanging.py'}:never", timeout_s=0.2)
    assert len(_descendants_of_the_guardian(run)) == len(before) + 1
    run.conclude()
    assert _descendants_of_the_guardian(run) == before


def test_a_restarted_agent_is_a_new_process_with_the_old_arguments(run: Run) -> None:
    """The next incarnation has name, arguments and environment of the first;
    each has its own log and exit status.
    """
    first = run.spawn(["/bin/sh", "-c", 'echo "$CHAOS_AGENT in $$"; kill -STOP $$'], name="server")
    first.wait_for_output("server in")
    second = first.restart()
    assert second.wait_for_output(r"server in (\d+)")[1] == str(second.pid) != str(first.pid)
    assert run.agent("server") is second
    assert (str(first.ended), first.exit_status) == ("signal 9", None)
    assert [path.name for path in (first.output_path, second.output_path)] == ["server.log", "server.2.log"]
    third = second.restart()
    assert third.output_path.name == "server.3.log"
    summaries = run.conclude().agents
    assert [(summary.name, summary.pid) for summary in summaries] == [
        ("server", agent.pid) for agent in (first, second, third)
    ]


def test_what_an_agent_used_is_in_its_summary(run: Run) -> None:
    """CPU time, memory and output of a finished process are the kernel's figures."""
    agent = run.spawn(["/bin/sh", "-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo done"], name="busy")
    agent.wait_exit()
    summary = agent.summary()
    assert summary.exit_status == "exit code 0"
    assert summary.output_bytes == 5
    assert 0 < summary.cpu_s <= summary.duration_s + 0.1
    assert 100_000 < summary.memory_bytes_max < 1_000_000_000


def _descendants_of_the_guardian(run: Run) -> list[int]:
    assert run._client is not None
    return [process.pid for process in processes.descendants(run._client.pid) if process.alive]
