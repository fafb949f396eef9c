"""How the cost of an exploration grows when a program makes ten times as many steps;
run it as a script (``--help``).

Every family is explored in this process with one worker, for a program with few rounds and for one
with ten times as many. Printed is the processor time of all processes, which other work on this
machine changes little, and the ratio of the two. Two costs are not ours, and grow with the product
of states and data whatever explores. They are measured, and taken off:

    checks     a check that reads ten times as much, for ten times as many states
    rewriting  SQLite removes its log when it is closed, so each state needs all of it again: what
               it takes to write these bytes to new files, and nothing else

Of the families that run the program for each fault (I/O errors, deaths of one process), the
representatives of all call sites are measured, which is what decides within a budget. To make every
error is ten times as many runs, each ten times as long. Recoveries are a sample of 64.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import sqlite3
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from pytest_chaos.explore.explorer import Explorer
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.record import record
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.target import subject_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

BOUND: Final = 12.0
TIMES: Final = 10
MAPPED_BYTES: Final = 1 << 20
_MEMORY: Final = "/dev/shm"
_DOUBLE: Final = struct.Struct("d")


class Meter:
    """Processor time that other processes add to, in shared memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add what this process uses meanwhile."""
        began_s = time.process_time()
        try:
            yield
        finally:
            _DOUBLE.pack_into(self._memory, 0, self.used_s + time.process_time() - began_s)

    @property
    def used_s(self) -> float:
        """The sum so far."""
        return float(_DOUBLE.unpack_from(self._memory)[0])


class Program:
    """A program of so many rounds. Its check is metered."""

    name = "program"

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.meter = Meter()

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Have the state judged."""
        with self.meter.running():
            return list(self.findings(directory, marks))

    def findings(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Yield what is wrong."""
        raise NotImplementedError


class Log(Program):
    """Commits to SQLite's write-ahead log. The check opens the database."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Commit."""
        connection = sqlite3.connect(directory / "a.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, body TEXT)")
        for number in range(self.rounds):
            connection.execute("INSERT INTO kept VALUES (?, ?)", (number, "x" * 100))
            marks.ack("put", number)
        connection.close()

    def findings(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Read every row."""
        with contextlib.closing(sqlite3.connect(directory / "a.db")) as connection:
            there = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'kept'").fetchone()[0]
            found = {row[0] for row in connection.execute("SELECT number FROM kept")} if there else set()
        if len(found) < len(marks):
            yield f"lost {len(marks) - len(found)}"


class Recovered(Log):
    """The same, with a recovery of its own, which writes."""

    def recover(self, directory: Path) -> None:
        """Open the database, and note that it was opened."""
        with contextlib.closing(sqlite3.connect(directory / "a.db")) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS opened (times INTEGER)")
            connection.execute("INSERT INTO opened VALUES (1)")


class Json(Program):
    """Replaces a file again and again, and never flushes its folder."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write a new file and rename it, each time."""
        path, new = directory / "a.json", directory / "a.new"
        for number in range(self.rounds):
            with new.open("w") as file:
                json.dump({"count": number}, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            marks.ack("put", number)

    def findings(self, directory: Path, _: Sequence[Mark]) -> Iterator[str]:
        """Read it. That the newest is lost by a power loss is known, and no finding."""
        with contextlib.suppress(FileNotFoundError):
            json.loads((directory / "a.json").read_text() or "0")  # unflushed, it may be empty
        yield from ()


class Many(Program):
    """Makes files without a flush of anything."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Make a file each time."""
        for number in range(self.rounds):
            (directory / f"{number}").write_text(f"{number}")
            marks.ack("put", number)

    def findings(self, directory: Path, _: Sequence[Mark]) -> Iterator[str]:
        """Look whether there is any file at all."""
        with os.scandir(directory) as entries:
            next(entries, None)
        yield from ()


class Pair(Program):
    """Two processes that append in turns."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Append from a child, and acknowledge each."""
        for number in range(2):
            if not (pid := os.fork()):
                with (directory / f"log-{number}").open("ab", buffering=0) as file:
                    for _ in range(self.rounds // 2):
                        file.write(b"line\n")
                os._exit(0)
            os.waitpid(pid, 0)
            marks.ack("child", number)

    def findings(self, directory: Path, _: Sequence[Mark]) -> Iterator[str]:
        """Look at the sizes."""
        for path in directory.iterdir():
            if path.stat().st_size % 5:
                yield "torn"


class Mapped(Program):
    """Stores to a mapped file, a page at a time, and flushes each."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Store a word each time."""
        with (directory / "mapped").open("w+b") as file:
            file.truncate(MAPPED_BYTES)
            memory = mmap.mmap(file.fileno(), MAPPED_BYTES)
        for number in range(self.rounds):
            place = number * mmap.PAGESIZE % MAPPED_BYTES
            memory[place : place + 8] = struct.pack("Q", number + 1)
            memory.flush()
            marks.ack("put", number)

    def findings(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Read the newest word."""
        with contextlib.suppress(FileNotFoundError), (directory / "mapped").open("rb") as file:
            file.seek(len(marks) * mmap.PAGESIZE % MAPPED_BYTES)
            file.read(8)
        yield from ()


class Row(NamedTuple):
    """What is measured: a family, a program with this many rounds, and the options."""

    name: str
    family: Family
    make: Callable[[int], Program]
    rounds: int
    options: dict[str, Any]
    is_rewritten: bool = False


ROWS: Final = (
    Row("crash, a JSON file", Family.CRASH, Json, 100, {}),
    Row("crash, many files", Family.CRASH, Many, 100, {}),
    Row("crash, mapped memory", Family.CRASH, Mapped, 50, {}),
    Row("crash, SQLite's log", Family.CRASH, Log, 100, {}, is_rewritten=True),
    Row("crash --victim each: representatives", Family.CRASH, Pair, 100, {"victim": "each", "io_runs": 16}),
    Row("power, a JSON file", Family.POWER, Json, 100, {}),
    Row("power, many files", Family.POWER, Many, 10, {}),
    Row("power, mapped memory", Family.POWER, Mapped, 20, {}),
    Row("recovery, SQLite's log", Family.RECOVERY, Recovered, 20, {}),
    Row("io, a JSON file: representatives", Family.IO, Json, 20, {"io_runs": 18}),
)


class Spent(NamedTuple):
    """Processor time of an exploration, and of that in it which is not ours."""

    all_s: float
    check_s: float
    rewriting_s: float
    states: int
    steps: int
    real_s: float

    @property
    def ours_s(self) -> float:
        """All but that."""
        return self.all_s - self.check_s - self.rewriting_s


def spent(row: Row, times: int) -> Spent:
    """Explore a program once."""
    program = row.make(row.rounds * times)
    options = Options(seed="growth", families=(row.family,), run_timeout_s=300.0, **row.options)
    with tempfile.TemporaryDirectory(dir=_MEMORY) as name, tempfile.TemporaryDirectory() as disk:
        began_s, began_cpu_s = time.perf_counter(), _cpu_s()
        explored = Explorer(subject_of(program), step_source(), options, Path(name), disk=Path(disk)).explore()
        took_cpu_s, took_s = _cpu_s() - began_cpu_s, time.perf_counter() - began_s
    if explored.verdict.name != "HELD":
        message = f"{row.name}: a sound program did not hold: {msgspec.json.encode(explored)[:2000]!r}"
        raise SystemExit(message)
    states = sum(each.states for each in explored.families)
    rewriting_s = _rewriting_s(row.make(row.rounds * times)) if row.is_rewritten else 0.0
    return Spent(took_cpu_s, program.meter.used_s, rewriting_s, states, explored.steps, took_s)


def _rewriting_s(program: Program) -> float:
    """Return the processor time of writing the files of all crash states, and removing them."""
    spent_s = 0.0
    with tempfile.TemporaryDirectory(dir=_MEMORY) as name:
        recorded, _ = record(subject_of(program), step_source(), Path(name), seed="growth", timeout_s=300)
        path = Path(name) / "again"
        for state in crash_states(recorded.recording, recorded.store, recorded.seed):
            for item in state.items.values():
                content = item.content.to_bytes() if item.content is not None else b""
                began_s = time.process_time()
                path.write_bytes(content)
                path.unlink()
                spent_s += time.process_time() - began_s
        recorded.close()
    return spent_s


def _cpu_s() -> float:
    """Return the processor time of this process and of its children that are over."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> int:
    """Measure, print, and return 0 if our own cost grows as it may in every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="parts of the names of the rows to measure; all by default")
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    is_met = True
    for row in chosen:
        few, many = spent(row, 1), spent(row, TIMES)
        ratio = many.ours_s / few.ours_s
        is_met &= ratio <= BOUND
        print(
            f"{row.name:37} ours {few.ours_s:6.2f} to {many.ours_s:6.2f} s of processor time: {ratio:5.1f} x",
            flush=True,
        )
        counts = f"{few.steps:,} to {many.steps:,} steps, {few.states:,} to {many.states:,} states"
        again = f"; rewriting {few.rewriting_s:.2f} to {many.rewriting_s:.2f} s" if row.is_rewritten else ""
        print(
            f"{'':37} checks {few.check_s:.2f} to {many.check_s:.2f} s{again}; {counts}; {many.real_s:.1f} s",
            flush=True,
        )
    print(f"our own cost grows at most {BOUND:g} x in every row: {is_met}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
