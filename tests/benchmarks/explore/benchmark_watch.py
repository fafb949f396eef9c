"""What ``--watch sqlite`` costs: one watched run, against an exploration without it.

The program is that of the other benchmarks: checkpoints in SQLite (WAL, FULL). Both are explored in
turn, in the same rounds; the figure is the ratio of processor times, of this process and all its
children. Run it as a script (``--help``).
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.target import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

TARGET: Final = 1.10
_CHECKPOINTS: Final = 10


class Checkpoints:
    """Ten checkpoints of 4 kB."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Commit one after the other."""
        connection = sqlite3.connect(directory / "work.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE kept (number, value)")
        for number in range(_CHECKPOINTS):
            connection.execute("INSERT INTO kept VALUES (?, ?)", (number, "x" * 4000))
            marks.ack("put", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find what is not there."""
        connection = sqlite3.connect(directory / "work.db")
        found: set[int] = set()
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            found = {number for (number,) in connection.execute("SELECT number FROM kept")}
        for mark in marks:
            if mark.key not in found:
                yield f"{mark.key} is gone"


def processor_s(watch: tuple[str, ...]) -> float:
    """Explore once; return the processor time of all processes."""
    before = os.times()
    launch(subject_of(Checkpoints), Options(seed="s", watch=watch))
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Print the ratio of each round, and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    ratios = []
    for _ in range(rounds):
        plain, watched = processor_s(()), processor_s(("sqlite",))
        ratios.append(watched / plain)
        print(f"explored {plain:.2f} s of processor, watched {watched:.2f} s: {ratios[-1]:.3f}")
    print(f"median {statistics.median(ratios):.3f} (target: at most {TARGET:.2f})")


if __name__ == "__main__":
    main()
