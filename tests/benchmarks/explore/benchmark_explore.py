"""How fast states are built and checked, and how much memory an exploration takes;
run it as a script (``--help``).

The workload is that of the prototypes: ten checkpoints of 4 kB in SQLite (WAL, FULL), about 120
durable steps. Each state is written to memory and judged by a check that opens the database, runs
its integrity check and reads all rows. The raw limit, measured in the same rounds, is that check
alone on a folder that is there already: what no exploration can do without. Rates per core are of a
process and its one worker bound to one core. Crash states are distinct within one pass over the
recording, of which there are as many as it takes; power-loss states within a round.

The memory is that of this process with its children (proportional set sizes, from /proc), for a
made recording of 100,000 steps that write a gigabyte: all its crash states and, as by default,
100,000 of its power-loss states are built, and some of them, spread over the run, written to the
disk (where so large a program has them) and judged.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.explore.judge import Pool, StateTask
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.record import Recorded, record
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.explore.simulate.power import Model, power_states
from pytest_chaos.explore.target import subject_of
from pytest_chaos.runtime import processes as tree
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.step import Action, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

RAW: Final = "raw limit: the check alone, one core"
CRASH_ONE: Final = "crash states, one core"
POWER_TWO: Final = "distinct power-loss states, 2 workers"
_ROUNDS: Final = 5
_CHECKPOINTS: Final = 10
_RAW_CHECKS: Final = 600
_STATES: Final = 1500
_CRASH_TARGET: Final = 1500.0
_POWER_TARGET: Final = 1500.0
_MEMORY_TARGET_BYTES: Final = 1 << 30
_LARGE_STEPS: Final = 100_000
_LARGE_BYTES: Final = 1 << 30


class Agent:
    """Checkpoints of 4 kB, each in a transaction, as the prototypes' agent writes them."""

    name = "agent"

    def __init__(self, count: int) -> None:
        self._count = count

    def run(self, directory: Path, marks: Marks) -> None:
        """Write the checkpoints."""
        connection = sqlite3.connect(directory / "a.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS ck (seq INTEGER PRIMARY KEY, body BLOB)")
        for number in range(self._count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO ck VALUES (?, ?)", (number, (b"%06d" % number) * 700))
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
            found = {row[0] for row in connection.execute("SELECT seq FROM ck")} if there else set()
        if lost := [mark.key for mark in marks if mark.key not in found]:
            yield f"lost {len(lost)}"


def main() -> int:
    """Measure, print, and return 0 when every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--states", type=int, default=_STATES, help="states judged in each round of each kind")
    parser.add_argument("--no-memory", action="store_true", help="leave the recording of a gigabyte out")
    options = parser.parse_args()
    met = _speed(options.rounds, options.states)
    if not options.no_memory:
        met &= _memory()
    return 0 if met else 1


def _speed(rounds: int, states: int) -> bool:
    """Measure the rates, interleaved, and print their medians."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        recorded, _ = record(subject_of(Agent(_CHECKPOINTS)), step_source(), Path(name), seed="s", timeout_s=60)
        for number in range(rounds):
            folder = Path(name) / f"round-{number}"
            folder.mkdir()
            for kind, rate in _round(recorded, folder, states, f"seed-{number}"):
                rates.setdefault(kind, []).append(rate)
            shutil.rmtree(folder)
        recorded.close()
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    for kind, found in rates.items():
        print(f"{kind:72} {medians[kind]:8,.0f}/s  ({min(found):,.0f} to {max(found):,.0f})")
    crash, power = medians[CRASH_ONE], medians[POWER_TWO]
    ratio = crash / medians[RAW]
    print(f"crash states against the raw limit: {ratio:.2f}")
    print(f"crash states on one core at least {_CRASH_TARGET:,.0f}/s: {crash >= _CRASH_TARGET}")
    print("what else runs on this machine is in every rate but those per second of processor time")
    print(f"distinct power-loss states with 2 workers at least {_POWER_TARGET:,.0f}/s: {power >= _POWER_TARGET}")
    return crash >= _CRASH_TARGET and power >= _POWER_TARGET


def _round(recorded: Recorded, folder: Path, states: int, seed: str) -> Iterator[tuple[str, float]]:
    crash = list(itertools.islice(_distinct(crash_states(recorded.recording, recorded.store, recorded.seed)), states))
    with _on_one_core():
        yield RAW, _raw(recorded, crash, folder)
        yield from _both(CRASH_ONE, _judged(recorded, _crash(recorded, states), folder / "one", jobs=1))
    yield from _both("crash states, 2 workers", _judged(recorded, _crash(recorded, states), folder / "two", jobs=2))
    power = itertools.islice(_power(recorded, seed), states)
    yield from _both(POWER_TWO, _judged(recorded, power, folder / "power", jobs=2))


def _both(kind: str, rates: tuple[float, float]) -> Iterator[tuple[str, float]]:
    yield kind, rates[0]
    yield f"{kind}, per second of processor time", rates[1]


def _cpu_s() -> float:
    """Return the processor time of this process and of its children that are over."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _crash(recorded: Recorded, states: int) -> Iterator[State]:
    """Return crash states of as many passes over the recording as it takes."""
    passes = (_distinct(crash_states(recorded.recording, recorded.store, recorded.seed)) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(passes), states)


def _power(recorded: Recorded, seed: str) -> Iterator[State]:
    """Return power-loss states of both models, under as many seeds as it takes."""
    both = (
        power_states(recorded.recording, recorded.store, model, seed=f"{seed}-{number}")
        for number in itertools.count()
        for model in Model
    )
    return _distinct(state for state, _ in itertools.chain.from_iterable(both))


def _distinct(states: Iterable[State]) -> Iterator[State]:
    seen: set[bytes] = set()
    for state in states:
        if state.digest not in seen:
            seen.add(state.digest)
            yield state


def _judged(recorded: Recorded, states: Iterable[State], folder: Path, *, jobs: int) -> tuple[float, float]:
    """Return states built, written and checked per second,
    and per second of processor time of all processes.
    """
    folder.mkdir()
    found: list[str] = []
    with Pool(recorded.known, folder, jobs=jobs) as pool:
        began_s, count = time.perf_counter(), 0
        began_cpu_s = _cpu_s()
        for _, judged in pool.answers(states, lambda state: StateTask(state.items, state.marks)):
            found += [each.text for each in judged.findings]
            count += 1
        took_s = time.perf_counter() - began_s
    took_cpu_s = _cpu_s() - began_cpu_s
    if found:
        message = f"a database that is known to be sound was found guilty: {found[0]}"
        raise SystemExit(message)
    return count / took_s, count / took_cpu_s


def _raw(recorded: Recorded, states: Sequence[State], folder: Path) -> float:
    """Return checks per second of a state that is only written, and not counted, before each."""
    agent, directory = Agent(_CHECKPOINTS), StateFolder(folder / "raw")
    spent_s = 0.0
    chosen = states[:: max(1, len(states) // _RAW_CHECKS)]
    for state in chosen:
        directory.put(state.items)
        began_s = time.perf_counter()
        list(agent.check(directory.path, recorded.marks[: state.marks]))
        spent_s += time.perf_counter() - began_s
    return len(chosen) / spent_s


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Memory


class Log:
    """What the made recording is of: a check that looks at sizes alone."""

    name = "log"

    def run(self, directory: Path, marks: Marks) -> None:
        """Not run: its recording is made."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Look at the sizes of all files."""
        sizes = [path.stat().st_size for path in directory.iterdir()]
        return [] if len(marks) == 0 and all(size >= 0 for size in sizes) else ["impossible"]


def _memory() -> bool:
    """Explore a made recording of 100,000 steps and a gigabyte,
    and print the most memory that it took.
    """
    with tempfile.TemporaryDirectory() as name:
        _make_recording(Path(name) / "recording")
        recorded = Recorded(subject_of(Log()), step_source(), Recording(Path(name) / "recording"), Path(name), seed="s")
        peak_bytes, count, began_s = 0, 0, time.perf_counter()
        power = power_states(recorded.recording, recorded.store, Model.EXT4, seed="memory", every=25)
        kinds = {
            "crash": crash_states(recorded.recording, recorded.store, recorded.seed),
            "power loss": (state for state, _ in power),
        }
        with Pool(recorded.known._replace(steps=()), Path(name)) as pool:
            for kind, states in kinds.items():
                for number, state in enumerate(states):
                    if number % 997 == 0:
                        pool.submit(StateTask(state.items, state.marks))
                        count += 1
                    if number % 5000 == 0:
                        peak_bytes = max(peak_bytes, _proportional_bytes())
                pool.drain()
                peak_bytes = max(peak_bytes, _proportional_bytes())
                print(f"{kind}: {number + 1:,} states built, {count:,} judged, {time.perf_counter() - began_s:.0f} s")
        recorded.close()
    print(f"memory at most {peak_bytes / 2**20:,.0f} MiB; at most {_MEMORY_TARGET_BYTES >> 20:,} MiB: "
          f"{peak_bytes <= _MEMORY_TARGET_BYTES}")  # fmt: skip
    return peak_bytes <= _MEMORY_TARGET_BYTES


def _make_recording(folder: Path) -> None:
    """Write four logs in turns, in records that fit no page, with an fsync after every eighth."""
    recorder = Recorder(folder, "made")
    files = {f"log-{number}": number + 2 for number in range(4)}
    offsets = dict.fromkeys(files, 0)
    number = 0

    def step(action: Action, path: str, **fields: Any) -> None:
        nonlocal number
        number += 1
        recorder.steps.append(Step(number=number, action=action, call="made", path=path, node=files[path], **fields))

    for path in files:
        step(Action.CREATE, path)
    length = _LARGE_BYTES // (_LARGE_STEPS * 8 // 9)
    for place in itertools.count():
        if number >= _LARGE_STEPS:
            break
        path = f"log-{place % 4}"
        content = recorder.keep(place.to_bytes(8, "little") * (length // 8))
        step(Action.WRITE, path, offset=offsets[path], length=length // 8 * 8, content=content)
        offsets[path] += length // 8 * 8
        if place % 8 == 7:
            step(Action.SYNC, path)
    recorder.close()


def _proportional_bytes() -> int:
    total = 0
    for pid in (os.getpid(), *(process.pid for process in tree.descendants(os.getpid()))):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    sys.exit(main())
