"""What a state costs, from 1,000 to 1,000,000, and a cluster of two against our pool of two;
run it as a script (``--help``).

    curve    our pool of two, for each number of states: processor time of all processes per state,
             states a second, and memory (proportional set sizes of all processes, at their most).
             The program overwrites four files of 2 kB in turn, as long as it takes to have so many
             power-loss states, and its check reads them: little beside what is ours.
    ratio    the same exploration by our pool of two and by a LocalCluster of two, in turns: states
             a second, from the first state that is handed in to the last that came back. The
             workload is that of the prototypes, at a size that stays: ten rows of 4 kB in SQLite
             (WAL, FULL), replaced in turn; a check opens the database, runs its integrity check and
             reads all rows.

The cluster's start is not in the ratio: a session of pytest pays it once. The two must judge the
same number of states.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.cluster.engine import close_clusters, engine_of
from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.runtime import processes as tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.explore.session import Progress
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

CURVE: Final = (1_000, 10_000, 100_000, 1_000_000)
RATIO_STATES: Final = 100_000
RATIO_MIN: Final = 0.8
CLUSTER: Final = "local:2"
_ROWS: Final = 10
_SLOTS: Final = 4
_GROWS_MAX: Final = 1.5
_SAMPLE_S: Final = 0.5


class Agent:
    """Rows of 4 kB, replaced in turn, each in a transaction."""

    name = "agent"
    states_a_round = 125

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def run(self, directory: Path, marks: Marks) -> None:
        """Replace the rows."""
        connection = sqlite3.connect(directory / "a.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=20")
        connection.execute("CREATE TABLE IF NOT EXISTS ck (seq INTEGER PRIMARY KEY, number INTEGER, body BLOB)")
        for number in range(self._rounds):
            connection.execute("BEGIN IMMEDIATE")
            row = (number % _ROWS, number, (b"%06d" % number) * 700)
            connection.execute("REPLACE INTO ck VALUES (?, ?, ?)", row)
            connection.execute("COMMIT")
            marks.ack("put", number)
        connection.close()

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Open it, check its integrity, and read every row."""
        with contextlib.closing(sqlite3.connect(directory / "a.db")) as connection:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                yield "damaged"
                return
            there = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ck'").fetchone()[0]
            found = {row[0] for row in connection.execute("SELECT number FROM ck")} if there else set()
        if marks and max(found, default=-1) < int(marks[-1].key or 0):
            yield "the newest is lost"


class Slots:
    """Files that are overwritten in turn, flushed and acknowledged once all have been."""

    name = "slots"
    states_a_round = 25

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def run(self, directory: Path, marks: Marks) -> None:
        """Write, and flush all of them each time that the last was written."""
        slots = [os.open(directory / f"slot-{number}", os.O_RDWR | os.O_CREAT, 0o644) for number in range(_SLOTS)]
        folder = os.open(directory, os.O_RDONLY)
        os.fsync(folder)
        for number in range(self._rounds):
            os.pwrite(slots[number % _SLOTS], (b"%08d" % number) * 256, 0)
            if number % _SLOTS == _SLOTS - 1:
                for slot in slots:
                    os.fsync(slot)
                marks.ack("all", number)
        for descriptor in (*slots, folder):
            os.close(descriptor)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find a slot that is older than what was acknowledged."""
        oldest = int(marks[-1].key or 0) - _SLOTS if marks else -1
        for number in range(_SLOTS):
            content = (directory / f"slot-{number}").read_bytes() if marks else b""
            if any(int(content[at : at + 8]) <= oldest for at in range(0, len(content), 512)):
                yield "an older slot"


class Spent(NamedTuple):
    """What an exploration took."""

    states: int
    real_s: float
    cpu_s: float
    memory_bytes: int

    @property
    def rate(self) -> float:
        """States a second."""
        return self.states / self.real_s


class _Memory(threading.Thread):
    """The most memory that the children of this process had at one time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Look, until it has ended."""
        while not self.ended.wait(_SAMPLE_S):
            pids = [os.getpid(), *(process.pid for process in tree.descendants(os.getpid()))]
            self.most_bytes = max(self.most_bytes, sum(map(_proportional, pids)))


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return 0


def explored(program: type[Agent | Slots], states: int, seed: str, *, cluster: str = "") -> Spent:
    """Explore the power-loss states of a workload."""
    times: list[float] = []

    def listen(progress: Progress) -> None:
        if progress.states and not times:
            times.append(time.perf_counter())

    options = Options(
        seed=seed, families=(Family.POWER,), jobs=2, power_states=states * 10, run_timeout_s=3600, cluster=cluster
    )
    memory = _Memory()
    memory.start()
    before_s = _cpu_s()
    found = launch(subject_of(program(max(1, states // program.states_a_round))), options, listen=listen)
    real_s = time.perf_counter() - times[0]
    memory.ended.set()
    memory.join()
    if found.verdict.name != "HELD":
        message = f"the sound workload did not hold: {[str(each.text) for each in found.all_findings][:3]}"
        raise SystemExit(message)
    judged = sum(family.states for family in found.families)
    return Spent(judged, real_s, _cpu_s() - before_s, memory.most_bytes)


def _cpu_s() -> float:
    """Return the processor time of this process, and of all below it that live or were reaped."""
    pids = [os.getpid(), *(process.pid for process in tree.descendants(os.getpid()))]
    return sum(map(_used_s, pids))


def _used_s(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _line(what: str, spent: Spent) -> str:
    cost_us = spent.cpu_s / spent.states * 1e6
    return (
        f"{what:12} {spent.states:10,} states: {cost_us:7.0f} us of processor time each, {spent.rate:7,.0f} a second, "
        f"{spent.memory_bytes >> 20:5,} MB"
    )


def curve(sizes: Sequence[int]) -> bool:
    """Print the cost of a state for each number of states; return whether it stays the same."""
    costs: list[float] = []
    for states in sizes:
        spent = explored(Slots, states, "curve")
        costs.append(spent.cpu_s / spent.states)
        print(_line("pool of 2", spent), flush=True)
    grown = costs[-1] / min(costs[1:] or costs)
    print(f"a state costs {grown:.2f} x from the cheapest size to the largest (at most {_GROWS_MAX:g})")
    return grown <= _GROWS_MAX


def ratio(states: int, rounds: int) -> bool:
    """Print the rates of pool and cluster; return whether the cluster has its share."""
    ratios: list[float] = []
    try:
        with contextlib.closing(engine_of(CLUSTER)) as engine:
            engine.open()
        for number in range(rounds):
            pool = explored(Agent, states, f"ratio-{number}")
            cluster = explored(Agent, states, f"ratio-{number}", cluster=CLUSTER)
            print(_line("pool of 2", pool), _line(CLUSTER, cluster), sep="\n", flush=True)
            if pool.states != cluster.states:
                message = f"the pool judged {pool.states:,} states, and the cluster {cluster.states:,}"
                raise SystemExit(message)
            ratios.append(cluster.rate / pool.rate)
    finally:
        close_clusters()
    middle = statistics.median(ratios)
    print(f"{CLUSTER} makes {middle:.2f} x the rate of our pool of 2 (at least {RATIO_MIN:g})")
    return middle >= RATIO_MIN


def main() -> int:
    """Measure, print, and return 0 when every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", type=int, nargs="*", default=CURVE, help="numbers of states; none leaves it out")
    parser.add_argument("--ratio", type=int, default=RATIO_STATES, help="states of the comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    is_met = True
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if options.ratio:
            is_met &= ratio(options.ratio, options.rounds)
        if options.curve:
            is_met &= curve(options.curve)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
