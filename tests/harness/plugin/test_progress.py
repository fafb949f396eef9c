"""What tells how far a session is: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCENARIOS = """
    import pytest

    @pytest.mark.chaos(id="small", title="Small numbers")
    @pytest.mark.parametrize("number", range(4))
    def test_small(chaos, number):
        chaos.expect("number is small", observed=number, holds=number < 3)
"""
OTHERS = "def test_other():\n    pass\n"
IMPATIENT = "import pytest_chaos.plugin.progress as progress\nprogress.EVERY_S = 0\n"
PLAIN = ("-p", "no:randomly", "--chaos-confirm=0", "--chaos-report=json", "-n", "0")


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    """Return a project of four runs, the last of which does not hold."""
    pytester.makepyfile(test_small=SCENARIOS)
    return pytester.path


def on_a_terminal(project: Path, *arguments: str) -> str:
    """Return what pytest writes to a terminal of 100 columns."""
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-m", "pytest", *PLAIN, *arguments]
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=other_end, stderr=other_end)
    os.close(other_end)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed: Linux says EIO
            break
        written += part
        if not part:
            break
    os.close(terminal)
    process.wait(timeout=60)
    return written.decode()


def through_a_pipe(project: Path, *arguments: str) -> str:
    """Return what pytest writes to a pipe."""
    command = [sys.executable, "-m", "pytest", *PLAIN, *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=120).stdout


def test_a_terminal_has_one_line_and_each_violation(project: Path) -> None:
    """The line names the run and counts verdicts; a violation stays; neither dots nor files."""
    written = on_a_terminal(project, "-m", "chaos")
    assert "\x1b[2Kchaos: 0 of 4 runs; small: test_small[0]" in written
    assert re.search(r"\x1b\[2Kchaos: 3 of 4 runs: 3 held; some \d:\d\d left; small: test_small\[3\]", written)
    assert "\x1b[2KVIOLATED small: test_small[3]: number is small: 3\r\n" in written
    assert "test_small.py ." not in written
    assert "...F" not in written


def test_the_time_left_is_known_from_the_last_session(project: Path) -> None:
    """The second session tells the time left before its first run has ended."""
    assert "0 of 4 runs; small" in on_a_terminal(project, "-m", "chaos")
    assert re.search(r"0 of 4 runs; some 0:\d\d left; small", on_a_terminal(project, "-m", "chaos"))


def test_a_pipe_has_a_line_now_and_then(project: Path) -> None:
    """A log gets whole lines, and none under -q or within ten seconds."""
    assert "of 4 runs" not in through_a_pipe(project, "-m", "chaos")
    (project / "conftest.py").write_text(IMPATIENT)
    lines = through_a_pipe(project, "-m", "chaos").splitlines()
    assert [line.partition(";")[0] for line in lines if line.startswith("chaos: ") and " of 4 runs" in line] == [
        "chaos: 0 of 4 runs",
        "chaos: 1 of 4 runs: 1 held",
        "chaos: 2 of 4 runs: 2 held",
        "chaos: 3 of 4 runs: 3 held",
    ]
    assert " of 4 runs" not in through_a_pipe(project, "-m", "chaos", "-q")


def test_other_tests_keep_their_dots(project: Path) -> None:
    """A session with tests of other kinds looks as pytest makes it."""
    (project / "test_other.py").write_text(OTHERS)
    written = on_a_terminal(project)
    assert "test_other.py " in written
    assert "\x1b[2Kchaos" not in written


def test_what_a_program_said_cannot_steer_the_terminal(pytester: pytest.Pytester) -> None:
    """The failure and its line in the short summary hold no escape sequence of the target."""
    pytester.makepyfile(
        test_hostile="""
        import pytest

        @pytest.mark.chaos(id="hostile", title="Hostile \\x1b[31m")
        def test_hostile(chaos):
            chaos.expect("said \\x1b[31m\\u202e", observed=0, holds=False)
        """
    )
    text = through_a_pipe(pytester.path)
    assert "FAILED test_hostile.py::test_hostile - VIOLATED: said \\x1b[31m" in text
    assert not {"\x1b", "\u202e"} & set(text)
