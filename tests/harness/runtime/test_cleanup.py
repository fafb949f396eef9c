"""Nothing survives a run: no process and no file, whatever ends it;
and of what was cut short, the evidence is saved.

Each test runs pytest on a small project of its own, in a process that it can kill. Every process
that descends from it carries a variable of the test's in its environment, whatever it does with its
session and its parent: so they can be counted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from pytest_chaos import evidence
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict
from pytest_chaos.runtime import processes as tree

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_chaos.model.values import RunRecord

TARGETS = Path(__file__).with_name("targets.py")
BOUND_S = 30.0

TEST_FILE = """
import os
import signal
import threading
from pathlib import Path
import pytest

TARGETS = {targets!r}

def begin(chaos):
    chaos.spawn(TARGETS + ":family", name="family").wait_for("ready")
    chaos.spawn(TARGETS + ":count_up", name="frozen").wait_for("step")
    chaos.agent("frozen").pause()
    chaos.expect("the family is there", observed="ready", holds=True)
    ready = Path({folder!r}) / "ready"
    ready.with_suffix(".new").write_text(str(os.getpid()))
    ready.with_suffix(".new").rename(ready)

def wait(chaos):
    chaos.wait_until(lambda: False, timeout_s=600)

def expire():  # the time limit of pytest-timeout, once everything is there
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    for timer in [each for each in threading.enumerate() if isinstance(each, threading.Timer)]:
        threading.Thread(target=timer.function, args=timer.args).start()

@pytest.mark.chaos(id="90-cleanup", title="Nothing survives")
{marker}
def test_family(chaos):
    begin(chaos)
    {ending}
"""


class Session:
    """A pytest session in a process of its own; ``folder`` holds its project,
    its results and its scratch files.
    """

    def __init__(self, folder: Path, *, ending: str = "wait(chaos)", marker: str = "", more: str = "") -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.results = folder / "results"
        self.scratch.mkdir()
        self.project = folder / "project"
        self.project.mkdir()
        (self.project / "pytest.ini").write_text("[pytest]\n")
        source = TEST_FILE.format(targets=str(TARGETS), folder=str(folder), marker=marker, ending=ending)
        (self.project / "test_family.py").write_text(source + more)
        self.token = f"CHAOS_TEST_TOKEN={secrets.token_hex(8)}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **variables: str) -> None:
        """Start pytest, in a session that no signal of ours reaches by accident."""
        name, value = self.token.split("=")
        environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")}
        own = ["-p", "no:cacheprovider", "-p", "no:randomly", "--chaos-confirm=0"]
        folders = [f"--chaos-scratch={self.scratch}", f"--chaos-results={self.results}"]
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *own, *folders, *arguments],
                cwd=self.project,
                env=environment | {name: value} | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return what pytest has printed."""
        return (self.folder / "output").read_text(errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, with a bound, and say what pytest printed if it does not come."""
        until(condition, lambda: f"{what} did not come; there are {self.left() or 'no processes'}: {self.output()}")

    def until_ready(self) -> int:
        """Wait until all agents and their descendants are there;
        return the pid of the process that runs the test.
        """
        self.wait_until((self.folder / "ready").exists, "the agents")
        return int((self.folder / "ready").read_text())

    def until_ended(self) -> int:
        """Wait for the end of pytest and return its exit status;
        a signal is negative, as in subprocess.
        """
        assert self.process is not None
        return self.process.wait(BOUND_S)

    def process_id(self) -> int:
        """Return the pid of pytest itself."""
        assert self.process is not None
        return self.process.pid

    def processes(self) -> list[int]:
        """Return every live process that descends from this session."""
        return sorted(pid for pid in _pids() if self.token.encode() in _environment(pid))

    def left(self) -> str:
        """Return the live processes of this session with their parents, states and commands."""
        told = []
        for pid in self.processes():
            with contextlib.suppress(OSError, IndexError):
                state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                where = Path(f"/proc/{pid}/wchan").read_text()
                told.append(f"{pid} (of {parent}) {state} {where} {command[-150:]}")
        return "; ".join(told)

    def guardian(self) -> int:
        """Return the pid of the guardian: the first process that its stand-in has forked."""
        return tree.descendants(self.stand_in())[0].pid

    def stand_in(self) -> int:
        """Return the pid of the guardian's parent, which is told by its command line and leads a
        session.
        """
        (pid,) = [pid for pid in self.processes() if _is_stand_in(pid)]
        return pid

    def files(self) -> list[Path]:
        """Return everything that is left in the scratch folder."""
        return sorted(self.scratch.rglob("*"))

    def assert_nothing_is_left(self) -> None:
        """Wait, with a bound, until no process and no file is left."""
        self.wait_until(lambda: not self.processes(), "the end of all processes")
        self.wait_until(lambda: not self.files(), "the removal of all files")

    def records(self) -> tuple[RunRecord, ...]:
        """Return the records of the newest session."""
        return records.read(self.results).runs

    def packs(self) -> list[Path]:
        """Return the session's evidence packs; each is whole, or this fails."""
        found = sorted(self.results.glob("sessions/*/evidence/*"))
        assert all(evidence.verify(pack) == [] for pack in found)
        return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _is_stand_in(pid: int) -> bool:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"pytest_chaos.runtime.guardian" in command and os.getsid(pid) == pid
    return False


class Starter(Protocol):
    """Starts a session of pytest in the test's own folder."""

    def __call__(self, *arguments: str, ending: str = ..., marker: str = ..., more: str = ...) -> Session:
        """Return the session, started with these arguments."""
        ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start a session, and end whatever is left of one whose test failed."""
    sessions: list[Session] = []

    def start_one(*arguments: str, ending: str = "wait(chaos)", marker: str = "", more: str = "") -> Session:
        session = Session(tmp_path, ending=ending, marker=marker, more=more)
        sessions.append(session)
        session.start(*arguments)
        return session

    yield start_one
    for session in sessions:
        for pid in session.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        session.until_ended()


def test_a_run_that_held_leaves_nothing(start: Starter) -> None:
    """After a pass there is no process, no scratch file and no evidence: nothing went wrong."""
    session = start(ending="pass")
    assert session.until_ended() == 0, session.output()
    session.assert_nothing_is_left()
    assert session.packs() == []


def test_the_run_before_is_gone_when_the_next_one_begins(start: Starter) -> None:
    """Every process of a run is ended with it, not with the session."""
    more = """
def test_after(chaos):
    marker = os.environ["CHAOS_TEST_TOKEN"].encode()
    mine = [pid for pid in map(str, os.listdir("/proc")) if pid.isdigit() and marker in environment(pid)]
    chaos.expect("pytest, guardian, stand-in, the import", observed=len(mine), holds=len(mine) == 4)

def environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
"""
    session = start("-p", "no:xdist", ending="pass", more=more)
    assert session.until_ended() == 0, session.output()


def test_a_failed_run_leaves_only_its_evidence(start: Starter) -> None:
    """After a failure the agents are gone, and the pack holds what they said."""
    session = start(ending="assert 0, 'as it was meant to'")
    assert session.until_ended() == 1, session.output()
    session.assert_nothing_is_left()
    (pack,) = session.packs()
    assert "as it was meant to" in (pack / "failure.txt").read_text()
    assert [record.verdict for record in session.records()] == [Verdict.VIOLATED]


def test_a_timeout_by_signal_leaves_only_its_evidence(start: Starter) -> None:
    """When pytest-timeout interrupts the test, the run is inconclusive, and everything is ended."""
    session = start(marker='@pytest.mark.timeout(600, method="signal")', ending="expire(); wait(chaos)")
    assert session.until_ended() == 1, session.output()
    session.assert_nothing_is_left()
    assert len(session.packs()) == 1
    assert [record.verdict for record in session.records()] == [Verdict.INCONCLUSIVE]


def test_a_timeout_by_thread_leaves_only_its_evidence(start: Starter) -> None:
    """When pytest-timeout ends pytest on the spot, the guardian ends the rest and saves pack and
    record.
    """
    session = start(marker='@pytest.mark.timeout(600, method="thread")', ending="expire(); wait(chaos)")
    assert session.until_ended() == 1, session.output()
    session.assert_nothing_is_left()
    assert_salvaged(session)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_that_ends_pytest_leaves_only_the_evidence(start: Starter, number: signal.Signals) -> None:
    """When pytest itself is killed, the guardian ends the rest and saves pack and record."""
    session = start()
    os.kill(session.until_ready(), number)
    assert session.until_ended() == -number, session.output()
    session.assert_nothing_is_left()
    assert_salvaged(session)


def assert_salvaged(session: Session) -> None:
    """See that pack and record of the run were made,
    though nobody was left who could have waited for them.
    """
    (pack,) = session.packs()
    assert len(list((pack / "database").iterdir())) >= 1
    (record,) = session.records()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.evidence == f"evidence/{pack.name}"
    assert record.failure
    command = [sys.executable, "-m", "chaos_reports", str(session.results), "--output", str(session.folder / "report")]
    rendered = subprocess.run(command, check=False, capture_output=True, timeout=BOUND_S)
    assert rendered.returncode == 2, rendered.stderr
    assert "INCONCLUSIVE" in (session.folder / "report" / "matrix.md").read_text()


def test_an_interrupt_leaves_nothing(start: Starter) -> None:
    """Ctrl-C reaches the agents of a run as its orderly end."""
    session = start()
    os.kill(session.until_ready(), signal.SIGINT)
    assert session.until_ended() == pytest.ExitCode.INTERRUPTED, session.output()
    session.assert_nothing_is_left()


def test_a_killed_worker_leaves_evidence_and_a_record(start: Starter) -> None:
    """When an xdist worker dies, its guardian cleans up and the controller records the run with its
    evidence.
    """
    session = start("-n1", "--max-worker-restart=0", "-p", "xdist")
    os.kill(session.until_ready(), signal.SIGKILL)
    assert session.until_ended() == 1, session.output()
    session.assert_nothing_is_left()
    (pack,) = session.packs()
    (record,) = session.records()
    assert (record.verdict, record.evidence) == (Verdict.INCONCLUSIVE, f"evidence/{pack.name}")


def test_a_killed_controller_leaves_evidence_and_a_record(start: Starter) -> None:
    """When xdist's controller dies, the guardian of the worker notices, ends everything,
    and records the run.
    """
    session = start("-n1", "-p", "xdist")
    assert session.until_ready() != session.process_id()
    os.kill(session.process_id(), signal.SIGKILL)
    session.until_ended()
    session.assert_nothing_is_left()
    assert_salvaged(session)


def test_a_killed_guardian_leaves_nothing_and_has_a_successor(start: Starter) -> None:
    """Without its guardian a run is inconclusive and ended all the same;
    the next run has a new guardian.
    """
    more = """
def test_after(chaos):
    agent = chaos.spawn(TARGETS + ":count_up", name="next", kwargs={"total": 3})
    chaos.expect("the next agent ends well", observed=agent.wait_exit(), holds=agent.wait_exit().code == 0)
"""
    session = start("-p", "no:xdist", more=more)
    session.until_ready()
    os.kill(session.guardian(), signal.SIGKILL)
    assert session.until_ended() == 1, session.output()
    session.assert_nothing_is_left()
    assert [record.verdict for record in session.records()] == [Verdict.INCONCLUSIVE, Verdict.HELD], session.output()
    assert len(session.packs()) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["pytest-first", "guardian-first"])
def test_pytest_and_its_guardian_killed_at_once_leave_only_the_evidence(start: Starter, order: tuple[int, int]) -> None:
    """The process that stands in for the guardian ends the daemons of the run, too,
    and saves pack and record.
    """
    session = start("-p", "no:xdist")
    both = (session.until_ready(), session.guardian())
    os.kill(both[0], signal.SIGSTOP)  # so that it cannot clean up between the two
    for index in order:
        os.kill(both[index], signal.SIGKILL)
    assert session.until_ended() == -signal.SIGKILL
    session.assert_nothing_is_left()
    assert_salvaged(session)


def test_a_killed_stand_in_is_no_loss(start: Starter) -> None:
    """The guardian works on alone, and cleans up as ever."""
    session = start("-p", "no:xdist")
    pytest_pid = session.until_ready()
    os.kill(session.stand_in(), signal.SIGKILL)
    os.kill(pytest_pid, signal.SIGKILL)
    assert session.until_ended() == -signal.SIGKILL
    session.assert_nothing_is_left()
    assert_salvaged(session)


def test_a_session_whose_stand_in_was_killed_ends_well(start: Starter) -> None:
    """Its end waits for the guardian, not for the process that was to stand in for it."""
    ending = "os.kill(int(open('/proc/thread-self/children').read().split()[0]), 9)"
    session = start("-p", "no:xdist", ending=ending)
    assert session.until_ended() == 0, session.output()
    session.assert_nothing_is_left()
    assert session.packs() == []


def test_the_next_session_sweeps_what_was_left_when_all_were_killed(start: Starter) -> None:
    """Where pytest, the guardian and its stand-in are killed,
    the next session ends the rest and saves evidence.
    """
    session = start("-p", "no:xdist", ending="wait(chaos) if not os.environ.get('SECOND') else None")
    pids = (session.until_ready(), session.stand_in(), session.guardian())
    for pid in pids[:2]:
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)
    assert session.until_ended() == -signal.SIGKILL
    assert session.processes(), "nothing was left to be swept"
    session.start("-p", "no:xdist", SECOND="1")
    assert session.until_ended() == 0, session.output()
    session.assert_nothing_is_left()
    found = [record for path in session.results.glob("sessions/*") for record in records.read(path).runs]
    assert {record.verdict for record in found} == {Verdict.INCONCLUSIVE, Verdict.HELD}
    assert len(session.packs()) == 1


def test_sessions_of_two_containers_leave_each_other_alone(start: Starter) -> None:
    """In another PID namespace no pid of ours means anything:
    what is in use there is told by its lock.
    """
    enter = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*enter, "true"], check=False, capture_output=True, timeout=BOUND_S).returncode:
        pytest.skip("a PID namespace cannot be made here")
    session = start("-p", "no:xdist", ending="wait(chaos) if not os.environ.get('SECOND') else None")
    pytest_pid = session.until_ready()
    before = session.files()
    inner = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "--chaos-confirm=0"]
    folders = [f"--chaos-scratch={session.scratch}", f"--chaos-results={session.folder / 'inner'}"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*enter, *inner, *folders], cwd=session.project, env=environment | {"SECOND": "1"}, check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert session.files() == before
    assert session.packs() == []
    os.kill(pytest_pid, signal.SIGKILL)
    session.until_ended()
    session.assert_nothing_is_left()
    assert_salvaged(session)
