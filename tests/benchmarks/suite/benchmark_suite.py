"""The speed of a suite: what the plugin adds to a test and to a session, and the goals.

Run by hand: ``python tests/benchmarks/suite/benchmark_suite.py``; with ``--suite`` it also runs the
scenarios of this repository, which takes minutes. Sessions are interleaved, and the least of them
counts. Processor time is that of a session with all its processes. A ratio is what was measured
to the goal: 1 or less reaches it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[3]
TESTS: Final = 200
SESSIONS: Final = 7
QUIET: Final = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")

PLAIN: Final = f"""
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_plain(number):
    assert number >= 0
"""
CHAOS: Final = f"""
import pytest

@pytest.mark.chaos(id="cost", title="A run with an expectation and nothing else")
@pytest.mark.parametrize("number", range({TESTS}))
def test_run(chaos, number):
    chaos.expect("number", observed=number, holds=True)
"""


class Took(NamedTuple):
    """The time of a session, in seconds: by the clock, and of all its processes."""

    wall_s: float
    cpu_s: float


def session(folder: Path, *arguments: str) -> Took:
    """Run pytest in a folder, and return what it took."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=folder, env=os.environ, stdout=subprocess.DEVNULL, check=False
    ).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        print(f"  the session of {' '.join(arguments)} ended with {code}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.perf_counter() - began_s, cpu_s)


def least(sessions: list[Took]) -> Took:
    """Return the least wall and processor time of some sessions."""
    return Took(min(each.wall_s for each in sessions), min(each.cpu_s for each in sessions))


def tell(what: str, measured: Took, goal_s: float) -> None:
    """Print a figure beside its goal."""
    ratio = measured.wall_s / goal_s
    print(f"  {what:50} {measured.wall_s:9.4f} s  {measured.cpu_s:9.4f} s of processor  {ratio:5.2f} of {goal_s:g} s")


def plugin_costs() -> None:
    """Measure what the plugin adds to a plain session, and to each chaos test."""
    with tempfile.TemporaryDirectory() as name:
        plain, chaos, one = (Path(name, each) for each in ("plain", "chaos", "one"))
        for folder, text in ((plain, PLAIN), (chaos, CHAOS), (one, CHAOS.replace(f"range({TESTS})", "range(1)"))):
            folder.mkdir()
            (folder / "pytest.ini").write_text("[pytest]\n")
            (folder / "test_it.py").write_text(text)
        found: dict[str, list[Took]] = {}
        for _ in range(SESSIONS):
            found.setdefault("without", []).append(session(plain, *QUIET, "-p", "no:chaos", "-p", "no:chaos-reports"))
            found.setdefault("with", []).append(session(plain, *QUIET))
            found.setdefault("one", []).append(session(one, *QUIET))
            found.setdefault("chaos", []).append(session(chaos, *QUIET))
        without, with_, one_, all_ = (least(found[key]) for key in ("without", "with", "one", "chaos"))
        added = Took(with_.wall_s - without.wall_s, with_.cpu_s - without.cpu_s)
        tell("added to a suite without chaos tests", added, 0.020)
        others = TESTS - 1
        test = Took((all_.wall_s - one_.wall_s) / others, (all_.cpu_s - one_.cpu_s) / others)
        tell("a chaos test without agents, its record included", test, 0.005)


def suite_goals() -> None:
    """Measure the scenarios of this repository against their goals."""
    results = tempfile.mkdtemp(prefix="chaos-benchmark-")
    arguments = ("-q", "-m", "chaos", "-n", "2", f"--chaos-results={results}")
    tell("one quick run of each scenario, -n 2", session(ROOT, *arguments, "--chaos-quick-forms"), 15)
    tell("all scenarios, -n 2", session(ROOT, *arguments), 45)
    tell("10 of 50 iterations, -n 2", session(ROOT, *arguments, "--chaos-iterations", "10"), 60)


def main() -> None:
    """Measure all."""
    print("what the plugin adds (by the clock, of the processor, to the goal):")
    plugin_costs()
    if "--suite" in sys.argv[1:]:
        print("the scenarios:")
        suite_goals()


if __name__ == "__main__":
    main()
