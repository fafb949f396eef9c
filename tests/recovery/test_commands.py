"""Commands: every ending is kept as it was, and nothing of the group is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from durable_agents import commands
from durable_agents.commands import CommandLine, run
from durable_agents.errors import InvalidRequest, InvalidSetting, OutputTooLarge, ToolNotStarted

from tests.recovery.interrupts import Interrupt

if TYPE_CHECKING:
    from pathlib import Path


def shell(text: str, **options: Any) -> CommandLine:
    """Return a shell command."""
    return CommandLine(("sh", "-c", text), **options)


def test_bytes_come_back_as_they_were() -> None:
    """Not UTF-8, with zeros, without a newline at the end, on both streams, apart."""
    output = run(shell(r"printf 'a\000\377'; printf 'b\200' >&2"))
    assert (output.exit_code, output.signal, output.stdout, output.stderr) == (0, None, b"a\0\xff", b"b\x80")
    assert not output.has_failed
    assert output.duration_us > 0


@pytest.mark.parametrize("code", [0, 1, 127, 137, 255])
def test_exit_codes_are_those_of_the_command(code: int) -> None:
    """137 is an exit code and not a signal."""
    output = run(shell(f"exit {code}"))
    assert (output.exit_code, output.signal, output.has_failed) == (code, None, code != 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_signals_are_those_that_ended_the_command(number: signal.Signals) -> None:
    """There is no exit code then."""
    output = run(shell(f"printf out; kill -{int(number)} $$"))
    assert (output.exit_code, output.signal, output.stdout) == (None, int(number), b"out")
    assert output.has_failed


def test_input_directory_and_environment_reach_the_command(tmp_path: Path) -> None:
    """The environment is that of this process with what was added."""
    command = shell('cat; pwd; printf "%s" "$ADDED"', directory=str(tmp_path), environment=(("ADDED", "ж"),))
    output = run(CommandLine(command.argv, command.directory, command.environment, b"\0in\n"))
    assert output.stdout == b"\0in\n" + f"{tmp_path}\nж".encode()


def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    """The child of the command too, though it ignores what it can;
    what was put out before is kept.
    """
    pids = tmp_path / "pids"
    child = f"sh -c 'trap \"\" TERM HUP; echo $$ > {pids}; echo ready; while :; do sleep 300; done'"
    output = run(shell(f"{child} & wait", timeout_s=8))  # in which a shell starts on any machine
    assert output.has_timed_out
    assert (output.exit_code, output.signal, output.stdout) == (None, signal.SIGKILL, b"ready\n")
    _gone(int(pids.read_text()))


def _gone(pid: int) -> None:
    """Expect that the process ends within a while; whoever inherited it reaps it, or does not."""
    pause = threading.Event()
    for _ in range(3000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        pause.wait(0.01)
    pytest.fail(f"Expected process {pid} to end within 30 s.")


def test_what_a_command_leaves_in_its_group_is_ended_with_it() -> None:
    """A background job does not keep the caller waiting, though it has the output open."""
    output = run(shell("sleep 300 & echo $!"))
    assert output.exit_code == 0
    _gone(int(output.stdout))


def test_a_daemon_keeps_nobody_waiting() -> None:
    """It has left the group and goes on; the output is what was there at the end of the command."""
    output = run(shell("echo before; setsid sh -c 'echo $$; exec sleep 300' & wait_for=$!; sleep 0.3; echo after"))
    assert output.exit_code == 0
    first, pid, last = output.stdout.split()
    assert (first, last) == (b"before", b"after")
    daemon = psutil.Process(int(pid))
    daemon.kill()


def test_an_output_of_any_size_comes_back() -> None:
    """A pipe would have stopped the command at 64 KiB."""
    output = run(shell("head -c 20000000 /dev/zero; head -c 100000 /dev/zero >&2"))
    assert (len(output.stdout), len(output.stderr)) == (20_000_000, 100_000)


def test_an_output_is_read_to_its_end_however_often_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the kernel gives two gigabytes at most: here, seven bytes stand for them."""
    monkeypatch.setattr(commands, "_READ_BYTES", 7)
    assert run(shell("seq 1 100")).stdout == subprocess.check_output(["seq", "1", "100"])


def test_no_room_for_input_and_output_is_an_error_before_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no effect, and the error says where room is missing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ToolNotStarted, match="missing"):
        run(shell(f"touch {tmp_path}/effect"))
    assert not (tmp_path / "effect").exists()


def test_too_large_an_output_is_an_error_that_says_the_command_ran() -> None:
    """Each stream has its own bound."""
    with pytest.raises(
        OutputTooLarge, match=r"standard error of a command must have at most 9 bytes; got 10\. It has run"
    ):
        run(shell("printf 0123456789 >&2"), bytes_max=9)


@pytest.mark.parametrize(
    "command",
    [
        CommandLine(("/no/such/program",)),
        CommandLine(("/etc/passwd",)),
        CommandLine(("sh",), "/no/such/folder"),
        CommandLine(("sh", "\ud800")),
    ],
    ids=["missing", "not executable", "no folder", "not text"],
)
def test_a_command_that_cannot_be_started_had_no_effect(command: CommandLine) -> None:
    """The error says so."""
    with pytest.raises(ToolNotStarted, match="It did not run"):
        run(command)


@pytest.mark.parametrize(
    "command",
    [
        CommandLine(()),
        CommandLine(("",)),
        CommandLine(("a\0b",)),
        CommandLine(("sh",), timeout_s=0),
        CommandLine(("sh",), timeout_s=-1),
        CommandLine(("sh",), timeout_s=float("nan")),
        CommandLine(("sh",), timeout_s=1e9),
        CommandLine((7,)),  # type: ignore[arg-type]
    ],
    ids=lambda command: f"{command.argv} {command.timeout_s}",
)
def test_a_command_that_cannot_be_meant_is_refused(command: CommandLine) -> None:
    """Before anything is started."""
    with pytest.raises(InvalidRequest):
        run(command)


@pytest.mark.parametrize("bytes_max", [-1, float("nan"), True, None])
def test_a_bound_that_cannot_be_meant_is_refused(bytes_max: Any, tmp_path: Path) -> None:
    """Before anything is started."""
    with pytest.raises(InvalidSetting, match="bytes_max"):
        run(shell(f"touch {tmp_path}/effect"), bytes_max=bytes_max)
    assert not (tmp_path / "effect").exists()


def test_an_interrupt_leaves_when_the_whole_group_has_ended(tmp_path: Path) -> None:
    """Nobody would ever ask for it again; the child of the command,
    which ignores the terminal's end, goes with it.
    """
    program = f"""
import psutil
from durable_agents.commands import CommandLine, run
text = "trap '' HUP; sh -c 'trap \"\" TERM HUP; echo $$ > {tmp_path}/child; kill -INT $0; sleep 300' $PPID & wait"
try:
    run(CommandLine(("sh", "-c", text)))
except KeyboardInterrupt:
    child = int(open("{tmp_path}/child").read())
    print("interrupted", psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "interrupted False\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that the collector closes
def test_an_interrupt_anywhere_leaves_nothing_running() -> None:
    """Wherever Ctrl-C comes, between the start of the program and the note of its number too."""
    files = ("recovery/durable_agents/commands.py", "recovery/durable_agents/commands.py")
    number, was_interrupted, ended = 0, True, 0
    while was_interrupted:
        number += 1
        variables = (("INTERRUPTED", f"{os.getpid()}.{number}"),)
        try:
            with Interrupt(number, *files):
                run(shell("sleep 0.1 & wait", environment=variables))
            was_interrupted = False
        except KeyboardInterrupt:
            ended += 1
        assert not _with_variable(*variables[0])
    assert ended > 40, "the interrupts did not come at all"


def _with_variable(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes that were started with this variable,
    and those of ours that are no program yet.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_interrupts_that_follow_an_interrupt_do_not_cut_its_end_short() -> None:
    """Who presses Ctrl-C again and again gets out when the command has ended, and not before."""
    program = """
import signal, threading
from durable_agents import commands
from durable_agents.commands import CommandLine, run
see_dead = commands.ChildRunner._see_dead
def slowly(runner, pid):
    for _ in range(20):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    see_dead(runner, pid)
    print("seen")
commands.ChildRunner._see_dead = slowly
try:
    run(CommandLine(("sh", "-c", "kill -INT $PPID; exec sleep 300")))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "seen\ninterrupted\n"
