"""What a user reads when a run does not hold: their own frames, one line a run, short values,
a place for replays.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.evidence import records
from pytest_chaos.evidence.retention import clean
from pytest_chaos.model.values import SessionHeader

SCENARIOS = """
    import pytest

    @pytest.mark.chaos(id="nothing", title="Asserts nothing")
    def test_nothing(chaos):
        chaos.note("seen", 1)

    @pytest.mark.chaos(id="mistake", title="Names an agent that was not started")
    def test_mistake(chaos):
        chaos.agent("worker").kill()

    @pytest.mark.chaos(id="slow", title="Waits for what does not come")
    def test_slow(chaos):
        chaos.wait_until(lambda: False, timeout_s=0.01, what="the moon")

    @pytest.mark.chaos(id="long", title="A long value")
    def test_long(chaos):
        chaos.expect("rows", observed="x" * 5000, holds=False)
"""
QUIET = ("-p", "no:cacheprovider", "-p", "no:randomly", "--chaos-confirm=0", "-n", "0")


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    """A project with runs that do not hold."""
    pytester.makepyfile(test_rows=SCENARIOS)
    return Path(pytester.path)


@pytest.mark.parametrize("arguments", [(), ("-ra",)])
def test_inconclusive_runs_are_in_the_short_summary(
    pytester: pytest.Pytester, project: Path, arguments: tuple[str, ...]
) -> None:
    """Each has its line there, and is counted as what it is."""
    assert project.is_dir()
    result = pytester.runpytest_subprocess(*QUIET, "-k", "nothing", *arguments)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    line = "INCONCLUSIVE test_rows.py::test_nothing - INCONCLUSIVE: the run recorded no*"
    result.stdout.fnmatch_lines(["*short test summary info*", line, "*= *1 inconclusive in *"])
    assert "1 failed" not in result.stdout.str()
    assert "entries are hidden" not in result.stdout.str()


@pytest.mark.parametrize("style", ["auto", "long"])
def test_the_frames_of_this_package_are_hidden(pytester: pytest.Pytester, project: Path, style: str) -> None:
    """A traceback ends at the user's own line; --full-trace has the rest."""
    assert project.is_dir()
    arguments = (*QUIET, "-k", "mistake or slow", f"--tb={style}")
    shown = pytester.runpytest_subprocess(*arguments).stdout.str()
    whole = pytester.runpytest_subprocess(*arguments, "--full-trace").stdout.str()

    assert 'chaos.agent("worker")' in shown
    assert "waited 0.01 s for the moon" in shown
    assert "pytest_chaos/runtime" not in shown
    assert "pytest_chaos/runtime" in whole


def test_a_long_value_is_short_everywhere_and_whole_in_the_pack(pytester: pytest.Pytester, project: Path) -> None:
    """Terminal, Markdown and record have its beginning, and how long it is."""
    result = pytester.runpytest_subprocess(*QUIET, "-k", "long")

    session = project / "chaos-results" / "latest"
    (record,) = records.read(session).runs
    told = [result.stdout.str(), (session / "matrix.md").read_text(), record.assertions[0].observed]
    assert all("x" * 501 not in text for text in told)
    assert "5,000 characters" in told[2]
    (whole,) = session.glob("evidence/*/attachments/value-1.txt")
    assert whole.read_text() == "x" * 5000


def test_a_replay_goes_to_the_session_of_its_pack(pytester: pytest.Pytester, project: Path, tmp_path: Path) -> None:
    """Called elsewhere, which needs --trust, it writes there;
    ``latest`` is still the failed session.
    """
    pytester.runpytest_subprocess(*QUIET, "-k", "long")
    latest = (project / "chaos-results" / "latest").resolve()
    (pack,) = latest.glob("evidence/*")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    command = [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", "replay", "--trust", str(pack)]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=600)

    assert done.returncode == 1, done.stdout + done.stderr
    assert not list(elsewhere.iterdir())
    assert len(list(latest.glob("replays/sessions/*/records.jsonl"))) == 1
    assert (project / "chaos-results" / "latest").resolve() == latest


def _sessions(results: Path, count: int, *, packs: tuple[int, ...] = ()) -> list[str]:
    names = [f"20260101T0000{number:02d}-s-aaaa" for number in range(count)]
    for number, name in enumerate(names):
        folder = records.SessionFolder(results, name)
        folder.create(SessionHeader(session=name, seed="s", started="2026", iterations=1, pass_rate_min=1.0))
        if number in packs:
            (folder.evidence / "run-0").mkdir(parents=True)
    return names


def test_clean_removes_old_sessions_and_keeps_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest stay, and older ones that hold a pack; these go only when it is asked for."""
    names = _sessions(tmp_path, 6, packs=(1,))

    assert run(["clean", str(tmp_path), "--keep", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == [names[1], *names[4:]]
    assert capsys.readouterr().out.splitlines()[0] == f"removed 3 sessions of {tmp_path}"

    assert run(["clean", str(tmp_path), "--keep", "2", "--with-packs"]) == 0
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == names[4:]
    assert "removed 1 session of" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--keep", "-1"], ["--keep", "many"], []])
def test_clean_refuses_a_mistake(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A number below 1, and a folder without sessions, are told in a sentence."""
    results = tmp_path if arguments else tmp_path / "none"
    (tmp_path / "sessions").mkdir()
    assert run(["clean", str(results), *arguments]) == 3

    assert "Traceback" not in capsys.readouterr().err


def test_a_session_with_the_pack_of_a_replay_is_kept(tmp_path: Path) -> None:
    """Evidence in a replay is evidence."""
    names = _sessions(tmp_path, 2)
    (tmp_path / "sessions" / names[0] / "replays" / "sessions" / "r" / "evidence" / "run-0").mkdir(parents=True)

    assert clean(tmp_path, keep=1).kept_for_evidence == (names[0],)
