"""The tool ledger: one effect, one outcome, the same for everybody; and what happens in doubt.

It is long because a call can end in many ways, and each is a test.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import LeaseManager, ManualClock, TaskManager
from durable_agents.commands import CommandOutput
from durable_agents.errors import (
    ArtifactNotWritten,
    DatabaseLocked,
    InDoubt,
    InProgress,
    InvalidKey,
    InvalidRequest,
    InvalidResult,
    InvalidSetting,
    LeaseExpired,
    LeaseLost,
    OutputLost,
    OutputTooLarge,
    ProbeFailed,
    RecursiveExecution,
    RequestConflict,
    ToolNotStarted,
)
from durable_agents.once.tool_ledger import INLINE_BYTES_MAX, RAISE, RUN_AGAIN, Happened, Probe, ToolLedger, ToolRun
from durable_agents.store.conformance.keys import key_counts
from durable_agents.store.rows import KeyStatus

from tests.recovery.interrupts import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents import SqliteStore
    from durable_agents.once.tool_ledger import DoubtPolicy

CRASHER = """
import os, signal, sys
from durable_agents.once.tool_ledger import RUN_AGAIN
from durable_agents.once.tool_ledger import ToolLedger
path, effects, point = sys.argv[1:4]
def hook(event, _):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with ToolLedger(db_path=path) as ledger:
    ledger.run_command(["sh", "-c", f"echo effect >> {effects}; echo out"], key="k", in_doubt=RUN_AGAIN)
"""

DIES_WITH_TOOL_RUNNING = """
import os, signal, sys, threading
from durable_agents.once.tool_ledger import RUN_AGAIN
from durable_agents.once.tool_ledger import ToolLedger
path, started, tool = sys.argv[1:4]
def die():
    open(started).read()
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=die, daemon=True).start()
ToolLedger(db_path=path).run_command(["sh", "-c", tool], key="k", in_doubt=RUN_AGAIN)
"""


@pytest.fixture(name="ledger")
def _ledger(store: SqliteStore, clock: ManualClock) -> Iterator[ToolLedger]:
    with ToolLedger(store, clock=clock, wait_s=0) as ledger:
        yield ledger


@pytest.fixture(name="effects")
def _effects(tmp_path: Path) -> Path:
    return tmp_path / "effects"


def never() -> object:
    """Fail, as a tool that must not run."""
    pytest.fail("Expected no tool to run.")


def count(effects: Path) -> int:
    """Return how many effects the world has seen."""
    return len(effects.read_text().splitlines()) if effects.exists() else 0


def crashed(path: str, effects: Path, point: str) -> None:
    """Run the tool in a process that is killed at the point."""
    command = [sys.executable, "-c", CRASHER, path, str(effects), point]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL


def again(ledger: ToolLedger, effects: Path, in_doubt: DoubtPolicy) -> ToolRun:
    """Ask for what the crashed process asked for."""
    return ledger.run_command(["sh", "-c", f"echo effect >> {effects}; echo out"], key="k", in_doubt=in_doubt)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"\0\xff not utf-8",
        b"x" * (INLINE_BYTES_MAX + 1),
        {"b": 1, "a": [None, 1.5, "ж"]},
        "text",
        "x" * 200_000,
        None,
        0,
        False,
        [],
    ],
    ids=lambda output: f"{output!r:.12}",
)
def test_the_first_caller_and_later_ones_get_the_same(ledger: ToolLedger, output: object) -> None:
    """D8: equal, and of the same type, whether it is small or large."""
    first = ledger.run("tool", {"n": 1}, lambda: output, in_doubt=RAISE)
    second = ledger.run("tool", {"n": 1}, never, in_doubt=RAISE)
    assert (first.output, type(first.output), first.is_replay) == (output, type(output), False)
    assert (second.output, type(second.output), second.is_replay) == (output, type(output), True)


@pytest.mark.parametrize("size_bytes", [0, 10, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 3_000_000])
def test_a_command_is_replayed_byte_for_byte(ledger: ToolLedger, effects: Path, size_bytes: int) -> None:
    """Both streams, of any size, and it ran once."""
    argv = ["sh", "-c", f"echo effect >> {effects}; head -c {size_bytes} /dev/urandom; printf '\\377' >&2"]
    first = ledger.run_command(argv, in_doubt=RAISE)
    second = ledger.run_command(argv, in_doubt=RAISE)
    assert isinstance(first.output, CommandOutput)
    assert (len(first.output.stdout), first.output.stderr) == (size_bytes, b"\xff")
    assert second == ToolRun(first.output, is_replay=True)
    assert count(effects) == 1


def test_a_large_output_is_stored_once(ledger: ToolLedger) -> None:
    """Two calls with the same output share a file, whose name is its hash."""
    content = bytes(range(256)) * 1000
    for number in range(3):
        ledger.run("tool", number, lambda: content, in_doubt=RAISE)
    files = [file for file in ledger.outputs.folder.rglob("*") if file.is_file()]
    assert [file.read_bytes() for file in files] == [content]


def test_an_output_of_a_hundred_megabytes(store: SqliteStore, ledger: ToolLedger) -> None:
    """It comes back, and the database stays small."""
    argv = ["head", "-c", "100000000", "/dev/zero"]
    assert ledger.run_command(argv, in_doubt=RAISE).output.stdout == bytes(100_000_000)
    second = ledger.run_command(argv, in_doubt=RAISE)
    assert second.is_replay
    assert second.output.stdout == bytes(100_000_000)
    assert isinstance(ledger.store, object)
    assert (
        sum(file.stat().st_size for file in Path(ledger.outputs.folder).parent.glob("store.db*") if file.is_file())
        < 10**7
    )


def test_a_damaged_or_missing_output_is_an_error_and_no_other_output(ledger: ToolLedger) -> None:
    """It is compared with its hash whenever it is read."""
    ledger.run("tool", 1, lambda: b"x" * 100_000, in_doubt=RAISE)
    (file,) = (file for file in ledger.outputs.folder.rglob("*") if file.is_file())
    file.write_bytes(b"y" * 100_000)
    with pytest.raises(OutputLost, match="with another hash"):
        ledger.run("tool", 1, never, in_doubt=RAISE)
    ledger.run("tool", 2, lambda: b"x" * 100_000, in_doubt=RAISE)
    assert ledger.run("tool", 1, never, in_doubt=RAISE).output == b"x" * 100_000
    file.unlink()
    with pytest.raises(OutputLost, match="No such file"):
        ledger.run("tool", 1, never, in_doubt=RAISE)


def test_a_failure_is_not_recorded_unless_asked(ledger: ToolLedger, effects: Path) -> None:
    """D8: exit 1 runs again, and is kept with its exit code by who wants that."""
    argv = ["sh", "-c", f"echo effect >> {effects}; echo bad >&2; exit 3"]
    for number in (1, 2):
        run = ledger.run_command(argv, in_doubt=RAISE)
        assert (run.output.exit_code, run.output.stderr, run.is_replay, count(effects)) == (3, b"bad\n", False, number)
    kept = [ledger.run_command(argv, in_doubt=RAISE, keeps_failures=True) for _ in range(2)]
    assert [run.is_replay for run in kept] == [False, True]
    assert kept[0].output == kept[1].output
    assert count(effects) == 3
    assert key_counts(ledger.store, "tool") == {KeyStatus.FAILED: 1}


@pytest.mark.parametrize("ending", ["kill -9 $$", "exec sleep 300"])
def test_a_command_that_was_ended_is_in_doubt(ledger: ToolLedger, effects: Path, ending: str) -> None:
    """A signal and a time limit say nothing about what had happened by then."""
    argv = ["sh", "-c", f"echo effect >> {effects}; {ending}"]
    timeout_s = 2 if "sleep" in ending else 60
    first = ledger.run_command(argv, in_doubt=RAISE, timeout_s=timeout_s)
    assert (first.output.exit_code, first.output.signal) == (None, signal.SIGKILL)
    assert first.output.has_timed_out == ("sleep" in ending)
    with pytest.raises(InDoubt):
        ledger.run_command(argv, in_doubt=RAISE)
    assert len(ledger.in_doubt()) == 1
    ledger.run_command(argv, in_doubt=RUN_AGAIN, timeout_s=timeout_s)
    assert count(effects) == 2


def test_an_interrupt_anywhere_is_decided_as_the_caller_says(ledger: ToolLedger) -> None:
    """Wherever Ctrl-C comes, the next call is told of the doubt or runs the tool, once in all,
    and need not wait.
    """
    number, was_interrupted = 0, True
    endings: set[bool | None] = set()
    while was_interrupted:
        number += 1
        ran: list[int] = []
        try:
            with Interrupt(
                number,
                "recovery/durable_agents/once/tool_ledger.py",
                "recovery/durable_agents/once/claims.py",
                "recovery/durable_agents/once/tool_ledger.py",
            ):
                ledger.run("tool", number, lambda: ran.append(1), in_doubt=RAISE)  # noqa: B023 - called in this turn
            was_interrupted = False
        except KeyboardInterrupt:
            pass
        try:
            endings.add(ledger.run("tool", number, lambda: ran.append(2), in_doubt=RAISE).is_replay)  # noqa: B023 - likewise
        except InDoubt:
            endings.add(None)
            ledger.run("tool", number, lambda: None, in_doubt=RUN_AGAIN)
        assert len(ran) <= 1
    assert endings == {True, False, None}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that the collector closes
def test_an_interrupt_anywhere_in_a_command_is_decided_as_the_caller_says(ledger: ToolLedger, effects: Path) -> None:
    """Wherever Ctrl-C comes: a command that may have begun is in doubt,
    and runs at no time besides the next one.
    """
    number, was_interrupted = 0, True
    endings: set[bool | None] = set()
    files = (
        "recovery/durable_agents/once/tool_ledger.py",
        "recovery/durable_agents/commands.py",
        "recovery/durable_agents/commands.py",
        "recovery/durable_agents/once/claims.py",
    )
    while was_interrupted:
        number += 1
        effects.unlink(missing_ok=True)
        command = ["sh", "-c", f"echo {number} >> {effects}"]
        try:
            with Interrupt(number, *files):
                ledger.run_command(command, in_doubt=RAISE)
            was_interrupted = False
        except KeyboardInterrupt:
            pass
        try:
            endings.add(ledger.run_command(command, in_doubt=RAISE).is_replay)
            assert count(effects) == 1
        except InDoubt:
            endings.add(None)
            assert count(effects) <= 1
            ledger.forget(ledger.in_doubt()[0])
    assert endings == {True, False, None}


def test_an_interrupted_command_has_ended_and_is_in_doubt(tmp_path: Path, effects: Path) -> None:
    """Ctrl-C while it runs: nothing of its group is left when the interrupt leaves,
    and the next call is told so.
    """
    program = f"""
import psutil
from durable_agents.once.tool_ledger import RAISE
from durable_agents.errors import InDoubt
from durable_agents.once.tool_ledger import ToolLedger
command = ["sh", "-c", "echo $$ >> {effects}; sh -c 'echo $$ >> {effects}; kill -INT $0; sleep 300' $PPID & wait"]
with ToolLedger(db_path="{tmp_path}/store.db") as ledger:
    try:
        ledger.run_command(command, key="k", in_doubt=RAISE)
    except KeyboardInterrupt:
        pids = [int(line) for line in open("{effects}")]
        living = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        print(len(pids), living, ledger.in_doubt())
    try:
        ledger.run_command(command, key="k", in_doubt=RAISE)
    except InDoubt:
        print("in doubt")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2 [] ['k']\nin doubt\n"
    assert count(effects) == 2


@pytest.mark.parametrize(
    ("point", "happened"),
    [
        ("recovery.claim.before_claim", 0),
        ("recovery.claim.after_claim_update", 0),
        ("recovery.claim.after_claim", 0),
        ("recovery.tool.before_effect", 0),
        ("recovery.tool.after_effect", 1),
        ("recovery.claim.before_end", 1),
        ("recovery.claim.after_end_update", 1),
        ("recovery.claim.after_end", 1),
    ],
)
def test_a_call_that_died_is_decided_as_the_caller_says(tmp_path: Path, point: str, happened: int) -> None:
    """At every point: with a probe exactly one effect, running again at most two,
    raising at most one.
    """
    for name, policy, effects_expected in (
        ("probe", "probe", 1),
        ("again", RUN_AGAIN, happened + (point != "recovery.claim.after_end")),
        ("raise", RAISE, None),
    ):
        path, effects = str(tmp_path / f"{name}.db"), tmp_path / name
        crashed(path, effects, point)
        assert count(effects) == happened
        with ToolLedger(db_path=path, wait_s=0) as ledger:
            if policy == "probe":

                def check(effects: Path = effects) -> Happened | None:
                    return Happened(CommandOutput(exit_code=0, stdout=b"out\n")) if count(effects) else None

                assert again(ledger, effects, Probe(check)).output.stdout == b"out\n"
                assert count(effects) == effects_expected
            elif policy == RUN_AGAIN:
                assert again(ledger, effects, RUN_AGAIN).output.stdout == b"out\n"
                assert count(effects) == effects_expected
            else:
                _raised(ledger, effects, point)


def _raised(ledger: ToolLedger, effects: Path, point: str) -> None:
    """Expect InDoubt where an intent has no outcome, and never a second effect."""
    if point in {"recovery.claim.before_claim", "recovery.claim.after_claim_update", "recovery.claim.after_end"}:
        assert again(ledger, effects, RAISE).output.stdout == b"out\n"
        assert count(effects) == 1
        return
    before = count(effects)
    assert ledger.in_doubt() == ["k"]
    for _ in range(2):
        with pytest.raises(InDoubt, match="'k'"):
            again(ledger, effects, RAISE)
    assert count(effects) == before
    ledger.resolve("k", CommandOutput(exit_code=0, stdout=b"found"))
    assert again(ledger, effects, RAISE).output.stdout == b"found"
    assert ledger.in_doubt() == []


def test_a_person_may_say_that_nothing_happened(tmp_path: Path, effects: Path) -> None:
    """Then the next call runs the tool."""
    path = str(tmp_path / "s.db")
    crashed(path, effects, "recovery.tool.before_effect")
    with ToolLedger(db_path=path) as ledger:
        ledger.forget("k")
        assert not again(ledger, effects, RAISE).is_replay
        for call in (ledger.forget, lambda key: ledger.resolve(key, 1)):
            for key in ("k", "no such key"):
                with pytest.raises(RequestConflict, match="Nothing was changed"):
                    call(key)
    assert count(effects) == 1


def test_a_probe_that_raises_leaves_the_call_in_doubt(tmp_path: Path, effects: Path) -> None:
    """So does one that gives no answer; another probe, later, decides."""
    path = str(tmp_path / "s.db")
    crashed(path, effects, "recovery.tool.after_effect")

    def broken() -> Happened | None:
        raise ConnectionError

    def vague() -> Any:
        return True

    with ToolLedger(db_path=path, wait_s=0) as ledger:
        for check in (broken, vague):
            with pytest.raises(ProbeFailed):
                again(ledger, effects, Probe(check))
        assert ledger.in_doubt() == ["k"]
        assert again(ledger, effects, Probe(lambda: Happened(b"it did"))).output == b"it did"
    assert count(effects) == 1


def test_a_tool_that_outlives_its_executor_is_in_progress(tmp_path: Path, effects: Path) -> None:
    """Nobody runs a second one beside it, as long as the claim lasts;
    when it ends, the call is in doubt at once.
    """
    path, started, go = str(tmp_path / "s.db"), tmp_path / "started", tmp_path / "go"
    os.mkfifo(started)
    os.mkfifo(go)
    tool = f"echo > {started}; read line < {go}; echo effect >> {effects}"
    with go.open("r+b", buffering=0) as writer, ToolLedger(db_path=path, wait_s=0) as ledger:
        command = [sys.executable, "-c", DIES_WITH_TOOL_RUNNING, path, str(started), tool]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
        with pytest.raises(InProgress):
            ledger.run_command(["sh", "-c", tool], key="k", in_doubt=RUN_AGAIN)
        writer.write(b"go\n")
        with pytest.raises(InDoubt):
            ledger.run_command(["sh", "-c", tool], key="k", in_doubt=RAISE, wait_s=30)
        assert count(effects) == 1


def test_an_exception_of_a_tool_is_its_failure(ledger: ToolLedger) -> None:
    """It goes to the caller, and the next call runs the tool."""

    def fail() -> object:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        ledger.run("tool", 1, fail, in_doubt=RAISE)
    assert ledger.run("tool", 1, lambda: 2, in_doubt=RAISE).output == 2


def test_an_interrupted_tool_is_in_doubt(ledger: ToolLedger) -> None:
    """Nobody knows how far it came."""

    def interrupted() -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run("tool", 1, interrupted, in_doubt=RAISE, key="k")
    with pytest.raises(InDoubt):
        ledger.run("tool", 1, never, in_doubt=RAISE, key="k")


@pytest.mark.parametrize("result", [(1,), object(), float("nan"), {1: 1}], ids=lambda it: type(it).__name__)
def test_an_outcome_that_cannot_be_recorded_is_in_doubt(ledger: ToolLedger, result: object) -> None:
    """The tool has run, so it must not simply run again."""
    with pytest.raises(InvalidResult):
        ledger.run("tool", 1, lambda: result, in_doubt=RAISE, key="k")
    with pytest.raises(InDoubt):
        ledger.run("tool", 1, never, in_doubt=RAISE, key="k")


def test_too_large_an_output_is_in_doubt(store: SqliteStore) -> None:
    """Of a command, and of a function."""
    with ToolLedger(store, output_bytes_max=1000, wait_s=0) as ledger:
        argv = ["head", "-c", "1001", "/dev/zero"]
        with pytest.raises(OutputTooLarge):
            ledger.run_command(argv, in_doubt=RAISE)
        with pytest.raises(InDoubt):
            ledger.run_command(argv, in_doubt=RAISE)
        with pytest.raises(OutputTooLarge):
            ledger.run("tool", 1, lambda: bytes(1001), in_doubt=RAISE)
        with pytest.raises(InDoubt):
            ledger.run("tool", 1, never, in_doubt=RAISE)


def test_a_large_output_that_cannot_be_written_is_in_doubt(ledger: ToolLedger) -> None:
    """Something is where the folder should be; nothing refers to what is not there."""
    folder = ledger.outputs.folder.parent
    folder.write_text("in the way")
    with pytest.raises(ArtifactNotWritten):
        ledger.run("tool", 1, lambda: bytes(100_000), in_doubt=RAISE)
    with pytest.raises(InDoubt):
        ledger.run("tool", 1, never, in_doubt=RAISE)
    folder.unlink()
    assert len(ledger.run("tool", 1, lambda: bytes(100_000), in_doubt=RUN_AGAIN).output) == 100_000


@pytest.mark.parametrize("busy_timeout_s", [0.2])
def test_a_database_that_locks_during_the_tool_leaves_it_in_doubt(store: SqliteStore, ledger: ToolLedger) -> None:
    """The outcome could not be recorded; no second run without being asked for."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        with pytest.raises(DatabaseLocked):
            ledger.run("tool", 1, lambda: other.execute("BEGIN IMMEDIATE") and 1, in_doubt=RAISE)
        other.execute("ROLLBACK")
    with pytest.raises(InDoubt):
        ledger.run("tool", 1, never, in_doubt=RAISE)


def test_a_command_that_could_not_be_started_is_not_in_doubt(ledger: ToolLedger) -> None:
    """It had no effect, so the next call starts it."""
    for _ in range(2):
        with pytest.raises(ToolNotStarted):
            ledger.run_command(["/no/such/program"], in_doubt=RAISE)
    assert key_counts(ledger.store, "tool") == {}


def test_another_call_under_one_key_is_a_conflict(ledger: ToolLedger) -> None:
    """Other arguments, another tool, another command, another input."""
    ledger.run("tool", {"a": 1}, lambda: 1, in_doubt=RAISE, key="k")
    with pytest.raises(RequestConflict):
        ledger.run("tool", {"a": 2}, never, in_doubt=RAISE, key="k")
    with pytest.raises(RequestConflict):
        ledger.run("other", {"a": 1}, never, in_doubt=RAISE, key="k")
    with pytest.raises(RequestConflict):
        ledger.run_command(["true"], in_doubt=RAISE, key="k")
    assert ledger.run("tool", {"a": 1}, never, in_doubt=RAISE, key="k").output == 1


def test_commands_are_known_by_all_that_decides_what_they_do(ledger: ToolLedger, tmp_path: Path) -> None:
    """Arguments, folder, added environment and input; and not by the time limit."""
    calls: list[dict[str, Any]] = [{}, {"directory": str(tmp_path)}, {"environment": {"A": "1"}}, {"stdin": b"x"}]
    runs = [ledger.run_command(["true"], in_doubt=RAISE, **options) for options in calls]
    assert [run.is_replay for run in runs] == [False] * 4
    assert ledger.run_command(["true"], in_doubt=RAISE, timeout_s=5).is_replay


def test_a_tool_that_calls_itself_is_told(ledger: ToolLedger) -> None:
    """It would wait for itself."""

    def nested() -> object:
        with pytest.raises(RecursiveExecution):
            ledger.run("tool", 1, never, in_doubt=RAISE, wait_s=3600)
        return 1

    assert ledger.run("tool", 1, nested, in_doubt=RAISE).output == 1


def test_callers_at_once_run_a_command_once(store: SqliteStore, effects: Path) -> None:
    """The others wait, and get the same bytes."""
    argv = ["sh", "-c", f"echo effect >> {effects}; head -c 100 /dev/urandom"]
    with ToolLedger(store, wait_s=60) as ledger, ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: ledger.run_command(argv, in_doubt=RAISE), range(8)))
        assert {run.output.stdout for run in runs} == {runs[0].output.stdout}
        assert sorted(run.is_replay for run in runs) == [False] + [True] * 7
    assert count(effects) == 1


def test_a_lease_that_was_lost_keeps_the_tool_from_running(
    store: SqliteStore, ledger: ToolLedger, clock: ManualClock
) -> None:
    """Lost before the intent: nothing runs. Lost during the tool:
    the outcome is not recorded, the call in doubt.
    """
    TaskManager(store, clock=clock).create("t")
    leases = LeaseManager(store, clock=clock)
    for _ in range(2):
        leases.enqueue("t", "work")
    lease, other = leases.acquire_many("h", limit=2, ttl_s=10)
    assert ledger.run("tool", 0, lambda: 0, in_doubt=RAISE, lease=lease).output == 0
    with pytest.raises(LeaseLost):
        ledger.run("tool", 1, lambda: leases.release(other), in_doubt=RAISE, lease=other)
    with pytest.raises(InDoubt):
        ledger.run("tool", 1, never, in_doubt=RAISE)
    leases.release(lease)
    with pytest.raises(LeaseLost):
        ledger.run("tool", 2, never, in_doubt=RAISE, lease=lease)
    clock.advance(60)
    with pytest.raises(LeaseExpired):
        ledger.run("tool", 2, never, in_doubt=RAISE, lease=lease)
    assert ledger.run("tool", 0, never, in_doubt=RAISE, lease=lease).is_replay
    assert ledger.run("tool", 2, lambda: 2, in_doubt=RAISE).output == 2


def test_an_outcome_expires_and_its_output_is_discarded(store: SqliteStore, clock: ManualClock) -> None:
    """A file that something refers to stays, and so does one that is young."""
    with ToolLedger(store, clock=clock, ttl_s=100) as ledger, ToolLedger(store, clock=clock, scope="other") as other:
        ledger.run("tool", "a", lambda: b"a" * 100_000, in_doubt=RAISE)
        ledger.run("tool", "b", lambda: b"b" * 100_000, in_doubt=RAISE)
        clock.advance(99)
        ledger.run("tool", "c", lambda: b"c" * 100_000, in_doubt=RAISE)
        clock.advance(1)
        files = {file.read_bytes()[:1]: file for file in ledger.outputs.folder.rglob("*") if file.is_file()}
        os.utime(files[b"a"], (1, 1))
        os.utime(files[b"c"], (1, 1))
        assert ledger.discard_expired() == 2
        assert [files[name].exists() for name in (b"a", b"b", b"c")] == [False, True, True]
        assert other.discard_expired() == 0
        assert ledger.run("tool", "c", never, in_doubt=RAISE).is_replay
        assert not ledger.run("tool", "a", lambda: 1, in_doubt=RAISE).is_replay


def test_statistics_count_runs_and_replays(store: SqliteStore) -> None:
    """Those of all ledgers on the file, once each; the rate of none is 0."""
    with ToolLedger(store) as ledger:
        assert ledger.statistics().replay_rate == 0
        for _ in range(3):
            for number in range(5):
                ledger.run("tool", number, lambda: 1, in_doubt=RAISE)
    with ToolLedger(store) as ledger:
        ledger.run("tool", 0, never, in_doubt=RAISE)
        for _ in range(2):
            found = ledger.statistics()
            assert (found.executions, found.replays, found.replay_rate) == (5, 11, 11 / 16)
            assert found.time_saved_s > 0


@pytest.mark.parametrize(
    "setting",
    [{"output_bytes_max": each} for each in (-1, float("nan"), 1.5, True, None, 2**63)]
    + [{"outputs": each} for each in ("", "a\0b", 7, b"folder")],
    ids=repr,
)
def test_settings_that_cannot_be_meant_are_refused(store: SqliteStore, setting: dict[str, Any]) -> None:
    """A bound that is none would be found when the tool has run, and its call be in doubt."""
    with pytest.raises(InvalidSetting, match=next(iter(setting))):
        ToolLedger(store, **setting)


def test_bad_calls_are_refused_before_anything_happens(ledger: ToolLedger) -> None:
    """No intent is written."""
    with pytest.raises(InvalidSetting, match="in_doubt"):
        ledger.run("tool", 1, never, in_doubt=None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        ledger.run("tool", {"a": b"bytes"}, never, in_doubt=RAISE)
    with pytest.raises(InvalidKey):
        ledger.run("tool", 1, never, in_doubt=RAISE, key="k" * 10**6)
    with pytest.raises(InvalidRequest):
        ledger.run_command([], in_doubt=RAISE)
    with pytest.raises(InvalidRequest):
        ledger.run_command(["true"], in_doubt=RAISE, timeout_s=-1)
    with pytest.raises(InvalidRequest, match="seconds"):
        ledger.run_command(["true"], in_doubt=RAISE, timeout_s="5")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="sh"):
        ledger.run_command("true", in_doubt=RAISE)
    with pytest.raises(InvalidRequest, match="encode"):
        ledger.run_command(["cat"], in_doubt=RAISE, stdin="text")  # type: ignore[arg-type]
    for name in ("A=B", ""):
        with pytest.raises(InvalidRequest, match="environment"):
            ledger.run_command(["true"], in_doubt=RAISE, environment={name: "value"})
    assert key_counts(ledger.store, "tool") == {}
