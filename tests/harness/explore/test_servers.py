"""Servers as targets: a client drives them, a restart is their start on the state,
and what goes wrong with them is told in one sentence.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, Family
from pytest_chaos.explore.target import RECOVERY_FAILS, subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.runtime import processes

from scenarios.targets.databases import LOST
from scenarios.targets.servers import NumberServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.explore.report import Exploration
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

CRASH, RECOVERY, POWER, IO = Family.CRASH, Family.RECOVERY, Family.POWER, Family.IO
HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    before = {process.pid for process in processes.descendants(os.getpid())}
    yield
    assert [each for each in processes.descendants(os.getpid()) if each.pid not in before and each.alive] == []


def _explore(target: object, *families: Family, **options: Any) -> Exploration:
    chosen = {"jobs": 2, "run_timeout_s": 60.0, "check_timeout_s": 30.0} | options
    return launch(subject_of(target), Options(seed="test", families=families or tuple(Family), **chosen))


def _only(explored: Exploration) -> str:
    """Return the signature and the text of the finding that leaves it undecided."""
    assert explored.verdict is Verdict.INCONCLUSIVE, explored.all_findings
    (finding,) = explored.findings
    return f"{finding.signature}: {finding.text}"


class Short(NumberServer):
    """Has one number saved."""

    numbers = 1


def test_a_sound_server_holds_under_everything() -> None:
    """A server that answers when all is synced holds in every family:
    the start on a state is its recovery, and is interrupted, too.
    """
    explored = _explore(Short("sound"))

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.schedules == 1, explored.notes
    crash, recovery, power, io = explored.families
    assert crash.points == crash.points_total == explored.steps
    assert recovery.unexplored  # its start changes nothing
    assert power.states > 0
    assert io.confirmed == io.points_total > 0
    assert explored.marks == 2 * Short.numbers


def test_an_early_answer_is_lost_when_power_fails() -> None:
    """A server that answers and never syncs survives every kill, and loses what it has answered in
    a power loss: the client's marks are in the order of the server's steps.
    """
    explored = _explore(Short("unsynced"), CRASH, POWER)

    crash, power = explored.families
    assert crash.verdict is Verdict.HELD, crash
    assert LOST in {found.signature for found in power.discoveries}


@pytest.mark.nightly
def test_servers_that_save_two_numbers() -> None:
    """The second save replaces the first one's file; an early answer has several schedules."""
    sound = _explore(NumberServer("sound"))
    early = _explore(NumberServer("early"), CRASH, POWER)

    assert sound.verdict is Verdict.HELD, sound.all_findings
    assert sound.schedules == 1, sound.notes
    assert LOST in {found.signature for found in early.families[1].discoveries}
    assert early.families[0].verdict is Verdict.HELD
    assert early.schedules > 1


def test_a_server_that_does_not_come_up_again_is_violated() -> None:
    """A server that cannot read its torn file ends at its start:
    a finding with what it printed, confirmed by a real kill of server and client.
    """
    explored = _explore(Short("in-place"), CRASH)

    (crash,) = explored.families
    found = next(each for each in crash.discoveries if each.signature.startswith(RECOVERY_FAILS))
    assert "it does not start again: the server ended with exit code 1 before it was ready; it printed" in found.text
    assert "ValueError" in found.text
    assert found.label == CONFIRMED_BY_A_KILL


class Forked(Short):
    """Is no command but a function, says that it is ready by a line, and by a file."""

    def __init__(self, ready: str) -> None:
        super().__init__("sound")
        self.ready = ready

    def serve(self, directory: Path) -> Callable[[], None]:  # type: ignore[override]  # the other way
        """Return a function that serves forever."""
        port = self.port

        def serve() -> None:
            path = directory / "number"
            number = path.read_text() if path.exists() else "0"
            with socket.create_server(("127.0.0.1", port)) as listening:
                print("it listens now")
                (directory / "ready").write_text("x")
                while True:
                    with listening.accept()[0] as connection:
                        word, _, given = connection.recv(100).decode().strip().partition(" ")
                        if word == "save":
                            number = given
                            (directory / "new").write_text(number)
                            (directory / "new").rename(path)
                        connection.sendall(b"saved\n" if word == "save" else f"{number}\n".encode())

        return serve


@pytest.mark.parametrize("ready", ["output:listens now", "ready", "port:{port}"])
def test_each_way_of_being_ready(ready: str) -> None:
    """A line of output, a file that is new at each start, and a port: each is waited for.
    The server is a function.
    """
    explored = _explore(Forked(ready), CRASH)

    assert explored.verdict is Verdict.HELD, explored.all_findings


class DiesOfAQuestion(NumberServer):
    """Ends when it is asked for the number that a crash has left."""

    def serve(self, directory: Path) -> list[str]:
        """Return the command of a server that ends at the first ``get``."""
        del directory
        program = (
            "import os, socket, sys\n"
            "with socket.create_server(('127.0.0.1', int(sys.argv[1]))) as listening:\n"
            "    while True:\n"
            "        with listening.accept()[0] as connection:\n"
            "            if connection.recv(100).startswith(b'get'):\n"
            "                sys.exit(f'no number in {os.listdir()}') if not os.path.exists('b') else None\n"
            "                connection.sendall(b'2\\n')\n"
            "            else:\n"
            "                open('a', 'w').close()\n"
            "                open('b', 'w').close()\n"
            "                connection.sendall(b'saved\\n')\n"
        )
        return [sys.executable, "-I", "-S", "-c", program, str(self.port)]


def test_a_server_that_ends_while_it_is_asked_is_violated() -> None:
    """It came up, and ended when the check asked it: the fault is the server's, not the check's."""
    explored = _explore(DiesOfAQuestion("-"), CRASH)

    (crash,) = explored.families
    (found,) = crash.discoveries
    assert "the server, started again, ended with exit code 1 while it was checked" in found.text
    assert "no number in" in found.text


def _server(line: str) -> type[NumberServer]:
    """Return a server whose program is one line."""

    class Line(NumberServer):
        def __init__(self) -> None:
            super().__init__("-")

        def serve(self, directory: Path) -> list[str]:
            """Return the command."""
            del directory
            return [sys.executable, "-I", "-S", "-c", line]

    return Line


def test_a_server_that_ends_by_itself_is_told() -> None:
    """Ended before it was ready: the exit code and the output are shown, and nothing is judged."""
    told = _only(_explore(_server("print('no configuration'); raise SystemExit(3)")))

    assert told == (
        "harness:server-ended: the server ended with exit code 3 before it was ready; "
        "it printed: no configuration; nothing was explored"
    )


def test_a_server_that_goes_to_the_background_is_told() -> None:
    """Its command ends at once, and is happy with that: what it started is no longer its own."""
    told = _only(_explore(_server("")))

    assert "ended with exit code 0 before it was ready: let it stay in the foreground; it printed: nothing" in told


def test_a_server_that_wants_a_terminal_is_told() -> None:
    """It has none, says so, and ends."""
    told = _only(_explore(_server("import os; os.ttyname(0)")))

    assert "harness:server-ended: the server ended with exit code 1 before it was ready" in told
    assert "Inappropriate ioctl" in told


def test_a_server_that_is_never_ready_is_told() -> None:
    """It runs and does not listen: said within the run's timeout."""
    told = _only(_explore(_server("import signal; print('hm', flush=True); signal.pause()"), run_timeout_s=3.0))

    assert "harness:server-not-ready: the server was not ready within" in told
    assert "nothing listens at port" in told
    assert "it printed: hm" in told


def test_a_port_that_is_taken_is_told() -> None:
    """Another program listens at the fixed port: the server is not even started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = _only(_explore(type("Fixed", (NumberServer,), {"ready": port})("sound")))

    assert f"harness:server-port-taken: its port ({port}" in told
    assert "let the server use a free port" in told


def test_a_port_of_its_own_that_is_taken_is_told() -> None:
    """A server that insists on another port, which is taken, is no finding about the server."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = _only(_explore(_server(f"import socket; socket.create_server(('127.0.0.1', {port}))")))

    assert "harness:server-port-taken" in told
    assert "Address already in use" in told


class ClientFails(NumberServer):
    """Has a client that raises."""

    def drive(self, directory: Path, marks: Marks) -> None:
        """Save something, then fail."""
        super().drive(directory, marks)
        dict[str, str]()["no such order"]


def test_a_client_that_fails_is_told() -> None:
    """The client's exception is shown with the line that raised it."""
    told = _only(_explore(ClientFails("sound")))

    assert "harness:client-failed: the client failed: drive() raised KeyError: 'no such order' (at test_serv" in told


def test_a_server_that_ends_while_it_is_driven_is_a_finding() -> None:
    """Without any fault the server crashed at a request: its own doing."""
    listens = "import socket; l = socket.create_server(('127.0.0.1', {port}))"
    line = f"{listens}; l.accept(); open('a', 'w'); raise SystemExit('oh')"

    class Crashes(NumberServer):
        def serve(self, directory: Path) -> list[str]:
            """Return the command."""
            del directory
            return [sys.executable, "-I", "-S", "-c", line.replace("{port}", str(self.port))]

    explored = _explore(Crashes("-"))

    assert explored.verdict is Verdict.VIOLATED
    finding = next(each for each in explored.findings if each.kind == "clean-run")
    assert "the server ended by itself with exit code 1 while it was driven" in finding.text


class Wrong(NumberServer):
    """Has a ready that is none."""

    ready = "http://localhost"


class RunsToo(NumberServer):
    """Is a server and a program."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Do nothing."""


class NoClient:
    """Is a server without a client."""

    def serve(self, directory: Path) -> list[str]:
        """Return a command."""
        del directory
        return ["true"]

    def check(self, directory: Path, marks: Sequence[Mark]) -> None:
        """Find nothing."""


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Wrong("sound"), "ready must be a port number, port:NUMBER, port:{port}, output:TEXT, or a file name"),
        (RunsToo("sound"), "must have either run, or serve and drive; got all of them"),
        (
            NoClient,
            r"must have serve\(directory\), drive\(directory, marks\) and check\(directory, marks\); got no drive",
        ),
    ],
)
def test_a_mistake_in_a_server_target_is_told(target: object, said: str) -> None:
    """Each is a mistake of the user, found before anything runs."""
    with pytest.raises(UsageError, match=said.replace("{", r"\{").replace("}", r"\}")):
        subject_of(target)


CLIENT = """
import os, socket, subprocess, sys
port, *words = sys.argv[1:]
def ask(request):
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(request.encode() + b"\\n")
        return connection.makefile().readline().strip()
def mark(kind, number):
    with open(os.environ["CHAOS_MARKS"], "a") as marks:
        marks.write('{"kind": "%s", "operation": "save", "key": %d}\\n' % (kind, number))
if words:
    acknowledged = sum("ack" in line for line in open(os.environ["CHAOS_MARKS"]))
    if int(ask("get")) < acknowledged:
        sys.exit(print("lost") or 1)
else:
    for number in (1,):
        mark("intent", number)
        ask(f"save {number}")
        mark("ack", number)
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the three commands of a number server."""
    program = Path(sys.modules[NumberServer.__module__].__file__ or "").with_name("number_server.py")
    (tmp_path / "client.py").write_text(CLIENT)
    monkeypatch.chdir(tmp_path)
    python = f"{sys.executable} -I -S"
    return {
        "--serve": f"{python} {program} {{port}} unsynced",
        "--drive": f"{python} client.py {{port}}",
        "--check": f"{python} client.py {{port}} check",
    }


def test_commands_explore_a_server(commands: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Three commands are a server, its client and its check; the line that builds a state again
    finds it again.
    """
    given = [word for pair in commands.items() for word in pair]
    arguments = ["explore", *given, "--seed", "s", "--faults", "crash,power", "--jobs", "2"]
    assert run([*arguments, "--ready", "port:{port}"]) == VIOLATED

    out = capsys.readouterr().out
    assert "crash      HELD" in out
    assert "lost" in out
    state = out.partition("--state '")[2].partition("'")[0]
    assert run([*arguments, "--state", state]) == VIOLATED


@pytest.mark.parametrize(
    ("left_out", "added", "said"),
    [
        ("--drive", [], "--serve must come with --drive, the client that uses the server; got none. Give --drive"),
        ("--check", [], "--serve must come with --check, the command that judges a state; got none. Give --check"),
        ("--serve", ["--run", "true"], "--drive must come with --serve; got --run. Give --serve in place of --run"),
        ("", ["--ready", "tcp:80"], "ready must be a port number"),
        ("", ["--run", "true"], "got several. Give one of them"),
    ],
)
def test_a_mistake_in_the_commands_is_told(
    commands: dict[str, str], left_out: str, added: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing or too much is named, with exit code 3."""
    given = [word for name, command in commands.items() if name != left_out for word in (name, command)]

    assert run(["explore", *given, *added]) == MISTAKE
    assert said in capsys.readouterr().err


def test_a_client_command_that_fails_is_told(commands: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit code and output are shown, and the exit code is that of INCONCLUSIVE."""
    commands["--drive"] = f"{sys.executable} -c 'raise SystemExit(\"no such host\")'"
    given = [word for pair in commands.items() for word in pair]

    assert run(["explore", *given, "--seed", "s"]) == INCONCLUSIVE
    out = capsys.readouterr().out
    assert "the client failed: it ended with exit code 1; server and client printed: no such host" in out
