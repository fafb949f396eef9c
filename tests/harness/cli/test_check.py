"""``chaos check``: published histories get the published verdict, by exit code and sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli.main import run

from tests.harness.checkers.published import published

if TYPE_CHECKING:
    from pathlib import Path

CASES = [
    (1, "cas-register", "knossos/cas-register/bad/bad-analysis.edn"),
    (1, "cas-register", "knossos/cas-register/bad/cas-failure.edn"),
    (1, "cas-register", "knossos/cas-register/bad/mongodb-v0-ack-rollback-6.edn"),
    (1, "cas-register", "knossos/cas-register/bad/rethink-fail.edn"),
    (1, "cas-register", "knossos/cas-register/bad/rethink-fail-minimal.edn"),
    (1, "cas-register", "knossos/cas-register/bad/rethink-fail-smaller.edn"),
    (0, "cas-register", "knossos/cas-register/good/memstress3-9.edn"),
    (0, "cas-register", "knossos/cas-register/good/memstress3-9.json"),
    (1, "mutex", "knossos/mutex/bad/etcd.edn"),
    (3, "mutex", "knossos/mutex/bad/etcd.json"),  # elle-cli has 1: this copy is cut off in the middle of an event
    (0, "rw-register", "elle/rw-register.edn"),
    (0, "rw-register", "elle/rw-register.json"),
    (1, "list-append", "elle/paper-example.edn"),
    (1, "list-append", "elle/paper-example.json"),
    (1, "list-append", "elle/list-append-gh-30.edn"),
    (2, "counter", "jepsen/counter.edn"),  # elle-cli has 0: it has no read, so nothing could have been wrong
    (2, "counter", "jepsen/counter.json"),
    (1, "set-full", "jepsen/set_full.edn"),
    (1, "set-full", "jepsen/set_full.json"),
    (0, "set", "jepsen/set.edn"),
    (0, "bank", "jepsen/bank.edn"),
    (0, "bank", "jepsen/bank.json"),
    (1, "bank", "jepsen/bank-tidb.edn"),
    (0, "bank", "jepsen/bank-neg.edn"),
    (1, "bank", "jepsen/bank-negative-balances.json"),
    (1, "long-fork", "jepsen/long-fork.edn"),
    (1, "comments", "custom/comments.edn"),
]


@pytest.mark.parametrize(("code", "model", "name"), CASES, ids=[name for _, _, name in CASES])
def test_the_cases_of_elle_cli(code: int, model: str, name: str) -> None:
    """The expected results of elle-cli's own ``test.sh``, for the models that we have."""
    options = ["--level", "serializable"] if "gh-30" in name else ["--group-size", "3"] if "fork" in name else []
    assert run(["check", str(published("elle") / name), "--model", model, *options]) == code


WRITTEN = """{"type": "invoke", "f": "write", "value": 1, "process": 0}
{"type": "ok", "f": "write", "value": 1, "process": 0}
"""
MARK = '\n{"kind": "intent", "operation": "write", "key": "x", "value": 1, "agent": "a", "pid": 1}\n'
ACK = MARK.replace("intent", "ack")
TIMED = MARK.replace('"pid"', '"time": 3, "pid"')
STALE = f"""{WRITTEN}{{"type": "invoke", "f": "read", "process": 1}}
{{"type": "ok", "f": "read", "value": null, "process": 1}}
"""


def test_a_history_is_judged_and_the_answer_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line has verdict, file and model; the counter-example follows."""
    history = tmp_path / "history.json"
    history.write_text(STALE)
    assert run(["check", str(history), "--model", "register"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"VIOLATED: {history} (2 operations) by register",
        "  [linearizability:no-order] read() -> None by 1 cannot follow (register; 1 of 2 operations are in order)",
        "      the order ends: write(1) -> None by 0",
        "      the state is then: 1",
    ]
    assert run(["check", str(history), "--model", "register", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["operations"]) == ("VIOLATED", 2)


def test_a_history_is_written_in_another_notation(tmp_path: Path) -> None:
    """``--write`` gives EDN that is judged alike."""
    history, again = tmp_path / "history.json", tmp_path / "history.edn"
    history.write_text(WRITTEN)
    assert run(["check", str(history), "--model", "register", "--write", str(again)]) == 0
    assert again.read_text().startswith("{:type :invoke, :f :write, :process 0, :value 1, :index 0}\n")
    assert run(["check", str(again), "--model", "register"]) == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("hello", ["--model", "register"], "history: line 1 must hold events (maps); got 'hello'"),
        (WRITTEN, ["--model", "queue"], "line 1: \"f\" must be one of dequeue, enqueue; got 'write'"),
        (WRITTEN, ["--model", "list-append"], "the input of a transaction must be a list of"),
        (WRITTEN, ["--model", "register", "--initial", "x"], "--initial must be JSON"),
        (WRITTEN, ["--model", "register", "--write", "x.txt"], "--write must name a file that ends in .edn or .json"),
        (WRITTEN, ["--model", "rw-register", "--level", "acid"], "the level must be one of"),
        (WRITTEN, ["--model", "register", "--memory", "1"], "must fit the memory"),
        (WRITTEN, ["--model", "register", "--total", "3"], "--total must be given for bank; got it for register"),
        (WRITTEN, ["--model", "list-append", "--assume", "wfr-keys"], "--assume must be given for rw-register"),
        (MARK + WRITTEN, ["--model", "register"], "must hold marks, or events of another tool; got both"),
        (MARK * 2 + TIMED, ["--model", "register"], "line 6 must be a mark with kind, operation"),
        (MARK + ACK * 2, ["--model", "register"], "line 6: the ack of write 'x' by 'a' (pid 1) must follow an intent"),
    ],
)
def test_a_mistake_is_a_sentence(
    text: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be judged exits 3 with a sentence, and no verdict."""
    history = tmp_path / "history"
    history.write_text(text)
    assert run(["check", str(history), *options]) == 3
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_a_history_that_is_larger_than_its_memory_ends_in_a_sentence(tmp_path: Path) -> None:
    """The command says that --memory is too small, while it reads or judges, and takes no more."""
    history = tmp_path / "history.json"
    with history.open("w") as lines:
        for nth in range(30_000):
            steps = f'[["append", {nth % 500}, {nth}]]'
            lines.write(f'{{"type": "invoke", "f": "txn", "process": {nth % 9}, "value": {steps}}}\n')
            lines.write(f'{{"type": "ok", "f": "txn", "process": {nth % 9}, "value": {steps}}}\n')
    program = (
        "from pytest_chaos.cli.main import main\n"
        "try: main()\n"
        "finally: print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", program, "check", str(history), "--model", "list-append", "--memory", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {2, 3}, done.stderr
    assert "(--memory)" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert int(done.stdout.split()[-1]) < 150_000  # of this process alone, in kB: wait4 counts what it was forked from
