"""Secrets that a test, its agents and its command line hold are in nothing that is written.

They are drawn when the tests run. The searched output is all of it: the terminal, JUnit XML,
records, matrix, packs. The copies of databases are left out, as the manifest says.
"""

from __future__ import annotations

import random
import re
import signal
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from pytest_chaos.evidence import records

if TYPE_CHECKING:
    from collections.abc import Mapping

_RANDOM: Final = random.Random(20261129)  # noqa: S311 - test data, the same on every machine
QUIET: Final = ("-p", "no:randomly", "-p", "no:cacheprovider", "-n", "0")

CHAOS: Final = (sys.executable, "-c", "from pytest_chaos.cli.main import main; main()")

SCENARIO: Final = """
import os, pytest, sys

def serve(password, marks):
    print("connecting with", password, "and --token {token_printed}", flush=True)
    marks.note("login", value={{"password": password, "user": "app"}})
    marks.note("password", value="{mark}")
    raise RuntimeError("login failed: api_key={raised}")

@pytest.mark.chaos(id="01-planted", title="Has secrets everywhere")
def test_planted(chaos):
    print("a captured line: secret={captured}")
    local = {{"password": "{local}"}}
    print("Authorization: Bearer {bearer}", file=sys.stderr)
    agent = chaos.spawn(serve, kwargs={{"password": "{kwarg}"}}, name="server",
                        env={{"APP_TOKEN": "{variable}", "PLAIN": os.environ["UNREMARKABLE"]}})
    agent.wait_exit()
    program = "import sys; print(sys.argv)"
    chaos.spawn([sys.executable, "-c", program, "--password", "{argv}", "-p{short}"], name="argv").wait_exit()
    chaos.note("settings", {{"client_secret": "{note}"}})
    chaos.check(["a row holds password={checked}"])
    chaos.expect("the password", observed=os.environ["SEEN"], holds=False)
    chaos.expect("the url", observed="postgresql://app:{url}@db/x", holds=False)
    chaos.inconclusive("the token is {inconclusive}")
    try:
        raise ValueError("caused by api_key={cause}")
    except ValueError as error:
        assert not "password={asserted}", "the secret was {said}"

@pytest.mark.chaos(id="02-too-large", title="An agent that cannot be started")
def test_too_large(chaos):
    chaos.spawn([sys.executable, "-c", "pass"], env={{"PLAIN": os.environ["UNREMARKABLE"] + "x" * 300_000}})

@pytest.mark.chaos(id="03-missing", title="A program that is not there")
def test_missing(chaos):
    chaos.spawn(["/no/such/program", "--api-key", "{missing}"], env={{"PLAIN": os.environ["UNREMARKABLE"]}})
"""

NAMES: Final = sorted({*re.findall(r"(?<!\{)\{(\w+)\}(?!\})", SCENARIO), "observed", "unremarkable"})


def _planted() -> dict[str, str]:
    """Draw a secret for each place."""
    letters = string.ascii_letters + string.digits
    return {name: f"aB3{''.join(_RANDOM.choice(letters) for _ in range(17))}" for name in NAMES}


def _survivors(planted: Mapping[str, str], text: str) -> list[str]:
    return sorted(name for name, secret in planted.items() if secret in text)


def _written(folder: Path) -> str:
    """Return the content of every file in a folder but byte-exact copies of databases."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "database" not in path.parts]
    assert any(path.name == "records.jsonl" for path in files)
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def test_no_planted_secret_survives(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of argv, environment, output, marks, expectations,
    locals and causes is written nowhere.
    """
    planted = _planted()
    monkeypatch.setenv("UNREMARKABLE", planted["unremarkable"])
    monkeypatch.setenv("SEEN", planted["observed"])
    pytester.makepyfile(test_planted=SCENARIO.format(**planted))
    found = pytester.runpytest_subprocess(
        *QUIET, "-l", "-rA", "-vv", "--tb=long", "--junitxml=junit.xml", "--chaos-confirm=0",
        "--chaos-report=md,html,json", "--chaos-results=results",
    )  # fmt: skip
    assert found.ret == 1
    shown = "\n".join([*found.outlines, *found.errlines])
    assert "[redacted]" in shown
    assert "pytest_chaos/runtime" not in shown, "frames of ours are hidden"
    assert _survivors(planted, shown) == []
    written = _written(Path(pytester.path) / "results")
    assert _survivors(planted, written) == []
    assert _survivors(planted, (Path(pytester.path) / "junit.xml").read_text()) == []


def test_a_replay_has_the_seed_the_plan_and_the_node_id(pytester: pytest.Pytester) -> None:
    """What a replay needs is never masked, even where it looks like a secret;
    the violation repeats.
    """
    pytester.makepyfile(
        test_seeded="""
        import pytest

        @pytest.mark.chaos(id="04-token", title="Fails")
        @pytest.mark.parametrize("password", ["password=hunter2"])
        def test_seeded(chaos, password):
            chaos.expect("the password", observed=password, holds=False)
        """
    )
    seed = "8f14e45fceea167a"
    first = pytester.runpytest_subprocess(*QUIET, f"--chaos-seed={seed}", "--chaos-results=results")
    assert first.ret == 1
    session = records.read(Path(pytester.path) / "results")
    (run,) = session.runs
    assert (session.header.seed, run.seed) == (seed, seed)
    assert run.node_id.endswith("[password=hunter2]")
    assert run.notes["reproduced"].startswith("2/2")
    replayed = pytester.run(*CHAOS, "replay", str(Path(pytester.path) / "results/latest" / run.evidence))
    assert replayed.ret == 1
    assert [(finding.signature, finding.text) for finding in run.findings] == [
        ("expectation:the password", "the password: password=[redacted]")
    ]


@pytest.mark.parametrize("killed", ["pytest", "all"])
def test_what_others_save_has_no_secrets(pytester: pytest.Pytester, killed: str) -> None:
    """A pack that the guardian makes of a killed pytest, or the next session where all were killed,
    is redacted by what pytest knew.
    """
    secret, variable = _planted()["kwarg"], _planted()["variable"]
    pytester.makepyfile(
        test_killed=f"""
        import os, pytest, signal

        def serve(password, marks):
            print("it says", password, flush=True)
            marks.note("said", password)
            import threading
            threading.Event().wait(60)

        def parent(pid):
            return int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])

        @pytest.mark.chaos(id="05-killed", title="Is killed")
        def test_killed(chaos):
            agent = chaos.spawn(serve, kwargs={{"password": "{secret}"}}, name="server")
            argv = ["sh", "-c", "echo its environment has $APP_TOKEN; exec sleep 60"]
            other = chaos.spawn(argv, name="other", env={{"APP_TOKEN": "{variable}"}})
            agent.wait_for("said", kind="note")
            other.wait_for_output("environment")
            guardians = [parent(other.pid), parent(parent(other.pid))] if "{killed}" == "all" else []
            for pid in reversed(guardians):
                os.kill(pid, signal.SIGSTOP)
            for pid in (*guardians, os.getpid()):
                os.kill(pid, signal.SIGKILL)
        """
    )
    scratch = Path(pytester.path) / "scratch"
    scratch.mkdir()
    found = pytester.runpytest_subprocess(*QUIET, "--chaos-results=results", f"--chaos-scratch={scratch}")
    assert found.ret == -signal.SIGKILL
    assert killed == "pytest" or list(scratch.rglob("run.json")), "somebody has saved it before the next session"
    pytester.makepyfile(test_after="import pytest\ndef test_after(chaos): chaos.expect('x', observed=1, holds=True)")
    pytester.runpytest_subprocess(*QUIET, "--chaos-results=after", f"--chaos-scratch={scratch}", "test_after.py")
    pack = Path(pytester.path) / "results"
    written = _written(pack)
    assert "it says [redacted]" in written
    assert "its environment has [redacted]" in written
    assert _survivors({"kwarg": secret, "variable": variable}, written) == []


EXPLORED: Final = """
class Target:
    def run(self, directory, marks):
        (directory / "a").write_text("1")
        (directory / "b").write_text("2")

    def check(self, directory, marks):
        if not (directory / "b").exists():
            return ["password={found} is lost", "the token is {said}"]
        return []
"""


def test_an_exploration_writes_no_secrets(pytester: pytest.Pytester) -> None:
    """What a check says is redacted in the table, in the JSON, and beside the kept states."""
    planted = {name: _planted()["kwarg"][:-1] + name for name in ("found", "said")}
    Path(pytester.path, "target.py").write_text(EXPLORED.format(**planted))
    words = ["target.py:Target", "--seed", "1", "--faults", "crash", "--json", "found.json", "--results", "results"]
    found = pytester.run(*CHAOS, "explore", *words)
    assert found.ret == 1
    shown = found.stdout.str() + found.stderr.str() + Path(pytester.path, "found.json").read_text()
    kept = [path for path in Path(pytester.path, "results").rglob("*") if path.is_file() and path.suffix != ".py"]
    assert kept
    shown += "\n".join(path.read_bytes().decode(errors="replace") for path in kept)
    assert "password=[redacted] is lost" in shown
    assert _survivors(planted, shown) == []
