"""Measure the pages: time, memory and size of the matrix, of a failure page, and of opening both.

Run it as a script. The matrix is rendered by ``python -m chaos_reports`` in a process of its own,
from records on a disk: 10,000 runs of 100 scenarios (one in twenty violated), and 1,000 runs of 18
with a history of 30 sessions. The failure page is that of a pack of 10,000 operations. Opening is
the time from the address to the end of loading, with filters that work, in a Chromium that runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.values import Finding, RunRecord, Scenario, Verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.reports.browsing import ARGUMENTS, CHROMIUM
from tests.reports.failure.packs import pack
from tests.reports.samples import HEADER, run, write_session

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEGABYTE: Final = 1_000_000
_SESSIONS: Final = 30


class Rendered(NamedTuple):
    """What a process that rendered took: seconds, of them of processor, and bytes of memory."""

    seconds: float
    cpu_s: float
    memory_bytes_max: int

    def __str__(self) -> str:
        """Return the times; on a busy machine the first one is longer."""
        return f"{self.seconds:.2f} s, {self.cpu_s:.2f} s of processor"


def runs_of(count: int, scenarios: int) -> tuple[RunRecord, ...]:
    """Make runs of so many scenarios, one in twenty violated, with a text of its own."""
    found = []
    for place in range(count):
        number = place % scenarios
        scenario = Scenario(
            id=f"{number:03}-scenario", title=f"Promise {number} of a program holds whatever is killed", why="It must."
        )
        lost = Finding(signature=f"durability.lost-{number % 5}", text=f"order {place} was acknowledged and is lost")
        verdict = Verdict.VIOLATED if place % 20 == 0 else Verdict.HELD
        kind = ("kill", "pause", "restart", "hold-lock", "deliver")[place % 5]
        found.append(run(scenario, verdict, place // scenarios, finding=lost if place % 20 == 0 else None, kind=kind))
    return tuple(found)


def session(results: Path, count: int, scenarios: int, *, day: int) -> Path:
    """Write a session of a day."""
    header = msgspec.structs.replace(HEADER, session=f"day-{day:02}", started=f"2026-10-{day:02}T04:00:00Z")
    return write_session(results, Records(header, runs_of(count, scenarios)))


def rendered(arguments: Sequence[str]) -> Rendered:
    """Render in a process of its own."""
    begun = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "chaos_reports", *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) not in {0, 1, 2}:
        msg = f"rendering failed: {arguments}"
        raise RuntimeError(msg)
    return Rendered(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def opened(pages: Sequence[Path]) -> list[float]:
    """Return the seconds that each page takes to open; nothing where there is no Chromium."""
    if CHROMIUM is None:
        return []
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        browser.new_page().goto("data:text/html,warm")
        for page in pages:
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            begun = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            found.append(time.perf_counter() - begun)
            tab.close()
        browser.close()
    return found


def measure(folder: Path, runs: int, operations: int) -> list[str]:
    """Render and open all pages; return lines with a figure and its target each."""
    many = session(folder / "many", runs, 100, day=1)
    large = rendered([str(many), "--format", "html"])
    for day in range(1, _SESSIONS + 1):
        few = session(folder / "few", 1_000, 18, day=day)
    small = rendered([str(few), "--format", "html"])
    begun = time.perf_counter()
    failed = pack(folder, operations=operations)
    packed_s = time.perf_counter() - begun
    failure = rendered([str(failed)])
    pages = [many / "matrix.html", few / "matrix.html", folder / "failures" / f"{failed.name}.html"]
    times = opened(pages)
    size = [page.stat().st_size / _MEGABYTE for page in pages]
    memory = large.memory_bytes_max / _MEGABYTE
    lines = [
        f"matrix of {runs:,} runs: {large} (target 5), {memory:.0f} MB of memory (target 300), {size[0]:.2f} MB",
        f"matrix of 1,000 runs with {_SESSIONS} sessions: {small}, {size[1]:.2f} MB (target 2)",
        f"failure page of {operations:,} operations: {failure}, {size[2]:.2f} MB (target 1), pack {packed_s:.2f} s",
    ]
    names = ("the large matrix", "the small matrix", "the failure page")
    lines += [f"opened: {name} in {seconds:.2f} s (target 2)" for name, seconds in zip(names, times, strict=False)]
    return lines


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the large matrix")
    parser.add_argument("--operations", type=int, default=10_000, help="operations of the failure page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-report-") as folder:
        lines = measure(Path(folder), options.runs, options.operations)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
