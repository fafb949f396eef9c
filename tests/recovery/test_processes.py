"""A process is the one that was started: number, start and state, judged against real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from durable_agents import processes as liveness
from durable_agents.errors import ExecutorNotEnded
from durable_agents.processes import Liveness, ProcessLine, ProcessTable, end_group, look, read_process, start_of

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534
_TIMEOUT_S = 20


@pytest.fixture(name="sleeper")
def _sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def look_both(pid: int | None, start: str | None) -> Liveness:
    """Look at one process alone and in a table of all, which must agree."""
    alone = look(pid, start)
    assert ProcessTable.read().look(pid, start) is alone
    return alone


def test_a_living_process_is_alive_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    """Alive, then a zombie, then gone: the last two are dead,
    though a signal 0 reaches the zombie (D18).
    """
    start = start_of(sleeper.pid)
    assert look_both(sleeper.pid, start) is Liveness.ALIVE
    assert look_both(sleeper.pid, None) is Liveness.ALIVE
    sleeper.kill()
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    os.kill(sleeper.pid, 0)
    assert look_both(sleeper.pid, start) is Liveness.DEAD
    assert look_both(sleeper.pid, None) is Liveness.DEAD
    sleeper.wait()
    assert look_both(sleeper.pid, start) is Liveness.DEAD
    assert start_of(sleeper.pid) is None


def test_a_stopped_process_lives(sleeper: subprocess.Popen[bytes]) -> None:
    """It is told apart, and is not dead."""
    sleeper.send_signal(signal.SIGSTOP)
    until(lambda: look(sleeper.pid, start_of(sleeper.pid)) is Liveness.STOPPED)
    assert look_both(sleeper.pid, start_of(sleeper.pid)) is Liveness.STOPPED


def test_a_number_that_somebody_else_has_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    """D18: with another start, of another boot too,
    a living process is not the one that was meant.
    """
    start = start_of(sleeper.pid)
    assert start is not None
    boot, _, ticks = start.rpartition(":")
    assert look_both(sleeper.pid, f"{boot}:{int(ticks) - 1}") is Liveness.DEAD
    assert look_both(sleeper.pid, f"another-boot:{ticks}") is Liveness.DEAD
    assert look_both(sleeper.pid, "") is Liveness.DEAD


@pytest.mark.parametrize("pid", [None, 0, -1, -(2**40), 2**22 + 1, 2**40])
def test_what_is_no_process_is_dead(pid: int | None) -> None:
    """No pid, pid 0, negative ones and ones that the kernel never gives out;
    nobody is signalled to find out.
    """
    assert look_both(pid, None) is Liveness.DEAD


def test_a_process_of_another_user_is_seen(sleeper: subprocess.Popen[bytes]) -> None:
    """Whose a process is makes no difference to whether it lives."""
    assert look_both(1, start_of(1)) is Liveness.ALIVE
    assert look_both(1, start_of(sleeper.pid)) is Liveness.DEAD


def test_the_start_does_not_depend_on_the_clock(sleeper: subprocess.Popen[bytes]) -> None:
    """It is the kernel's count of ticks, equal for every reader,
    and in another process's eyes too.
    """
    source = f"from durable_agents.processes import start_of; print(start_of({sleeper.pid}))"
    output = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.strip() == start_of(sleeper.pid)


def test_a_name_with_brackets_confuses_nobody() -> None:
    """The kernel's line holds the program's name as it is,
    and it may look like the rest of the line.
    """
    source = "import os; open('/proc/self/comm', 'w').write(') R 1 (2 '); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = read_process(process.pid)
    process.communicate(b"\n")
    assert found is not None
    assert (found.state in "RS", found.group) == (True, os.getpgid(0))


_FAMILY = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
if sys.argv[1] == "stays":
    child.wait()
"""


@pytest.mark.parametrize("leader", ["stays", "goes"])
def test_a_group_is_ended_whole(leader: str) -> None:
    """The leader, if it lives, and what it started in its group,
    even when it has long ended itself.
    """
    command = [sys.executable, "-c", _FAMILY, leader]
    environment = {**os.environ, "COLOUR": "red"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True, env=environment)
    start = start_of(process.pid)
    assert start is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    child_start = start_of(child)
    if leader == "goes":
        process.wait()
        for variable in (None, ("COLOUR", "re"), ("COLOUR", "blue")):  # somebody else's by now, for all one knows
            assert end_group(process.pid, start, variable=variable) == 0
    assert end_group(process.pid, start, variable=("COLOUR", "red")) == (2 if leader == "stays" else 1)
    until(lambda: look(child, child_start) is Liveness.DEAD)  # killed, and dead as soon as the kernel comes to it
    until(lambda: look(process.pid, start) is Liveness.DEAD)
    process.communicate()
    assert end_group(process.pid, start, variable=("COLOUR", "red")) == 0


_LEADS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=0, env={})
print(child.pid, flush=True)
"""

_BECOMES = """
import os, sys
print("at it", flush=True)
sys.stdin.readline()
if {becomes}:
    os.execve("/bin/sleep", ["sleep", "600"], {{"COLOUR": "red"}})
sys.stdin.readline()
"""


@pytest.mark.parametrize("becomes", [True, False], ids=["becomes another", "has none for good"])
def test_a_process_without_an_environment_is_looked_at_again(*, becomes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be about to become another program; what has none for good is somebody else's,
    and lives.
    """
    if becomes:  # it does so in a moment, and nobody knows how long that is on a busy machine
        monkeypatch.setattr(liveness, "_EXEC_S", float(_TIMEOUT_S))
    command = [sys.executable, "-c", _LEADS, _BECOMES.format(becomes=becomes)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    start = start_of(process.pid)
    assert start is not None
    assert process.stdin is not None
    assert process.stdout is not None
    said = {process.stdout.readline().strip() for _ in range(2)}
    assert "at it" in said
    child = int(next(line for line in said if line != "at it"))
    child_start = start_of(child)
    process.wait()
    process.stdin.write("\n")
    process.stdin.flush()
    try:
        ended = end_group(process.pid, start, variable=("COLOUR", "red"), timeout_s=_TIMEOUT_S)
        assert ended == (1 if becomes else 0)
        assert (look(child, child_start) is Liveness.ALIVE) == (not becomes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


def test_somebody_elses_group_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """A number that went round is not killed."""
    start = start_of(sleeper.pid)
    assert start is not None
    boot, _, ticks = start.rpartition(":")
    assert end_group(sleeper.pid, f"{boot}:{int(ticks) - 1}") == 0
    assert look(sleeper.pid, start) is Liveness.ALIVE


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_process_that_may_not_be_signalled_is_an_error(sleeper: subprocess.Popen[bytes]) -> None:
    """Another user's process is not ended, and that is said in a typed error."""
    source = f"""
import contextlib
import os
from durable_agents.errors import ExecutorNotEnded
from durable_agents.processes import end_group, start_of
start_of(1)  # what another user cannot import any more
os.setgid({_NOBODY}); os.setuid({_NOBODY})
try:
    end_group({sleeper.pid}, {start_of(sleeper.pid)!r})
except ExecutorNotEnded as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert "got one of another user" in done.stdout, done.stderr
    assert look(sleeper.pid, start_of(sleeper.pid)) is Liveness.ALIVE


def test_what_does_not_end_is_an_error(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an effect of the signal the wait is bounded, and the error names who is left."""
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    start = start_of(sleeper.pid)
    assert start is not None
    with pytest.raises(ExecutorNotEnded, match=f"got {sleeper.pid} still there"):
        end_group(sleeper.pid, start, timeout_s=0.01)


def test_a_table_may_be_made_by_hand() -> None:
    """Reapers are tested without processes: a table is data."""
    table = ProcessTable([ProcessLine(5, "b:1", "S", 5), ProcessLine(6, "b:2", "T", 6), ProcessLine(7, "b:3", "X", 7)])
    assert [table.look(pid, f"b:{pid - 4}") for pid in (5, 6, 7)] == [
        Liveness.ALIVE,
        Liveness.STOPPED,
        Liveness.DEAD,
    ]
