"""How many states of a server are judged a second; run it as a script (``--help``).

The server takes 50 ms to start, and keeps each line that it gets in a file. Each state is written,
the server is started on it, asked for its lines, and ended. The raw limit, measured in the same
rounds by as many processes, is what cannot be saved: fork, the wait until it listens, SIGKILL. A
start is a wait, most of it, so more jobs than cores overlap.

Then how many starts it takes to find a bug, with and without what a start reads: of a server that
keeps an index, which its start reads, and an audit log, which it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import select
import signal
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from pytest_chaos.explore.judge import Pool, StateTask
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.record import record
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.target import subject_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

STARTS_S: Final = 0.05
RATE: Final = 30.0
JOBS: Final = (2, 4)
_LINES: Final = 20
_RAW_STARTS: Final = 30


def serve(path: Path, port: int, listens: Callable[[], object] = lambda: None) -> None:
    """Take a line from each connection, keep it, and answer with all lines."""
    select.select([], [], [], STARTS_S)  # its start is a wait: for a disk, for another server
    with socket.create_server(("127.0.0.1", port)) as listening:
        listens()
        while True:
            connection, _ = listening.accept()
            with connection, path.open("ab+", buffering=0) as file:
                file.write(connection.recv(64))
                file.seek(0)
                connection.sendall(file.read())


class LineServer:
    """Lines, each acknowledged once it is kept."""

    name = "lines"
    port: int

    def serve(self, directory: Path) -> Callable[[], None]:
        """Return the server."""
        return lambda: serve(directory / "lines", self.port)

    def drive(self, _: Path, marks: Marks) -> None:
        """Have lines kept."""
        for number in range(_LINES):
            self._ask(f"{number}\n".encode())
            marks.ack("line", number)

    def check(self, _: Path, marks: Sequence[Mark]) -> list[str]:
        """Ask for the lines."""
        kept = self._ask(b"\n").split()
        return [f"line {mark.key} is lost" for mark in marks if str(mark.key).encode() not in kept]

    def _ask(self, line: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(line)
            return connection.makefile("rb").read()


class Auditor(LineServer):
    """Lines, of which one is acknowledged too early, and ten remarks on each in an audit log."""

    name = "auditor"
    late, remarks = 15, 10

    def __init__(self, told: Path) -> None:
        self._told = told

    def serve(self, directory: Path) -> Callable[[], None]:
        """Return the server, and tell that it is started."""
        self._tell(b".")
        return partial(self._serve, directory)

    def _serve(self, directory: Path) -> None:
        with (
            (directory / "index").open("ab+", buffering=0) as index,
            (directory / "audit").open("ab", buffering=0) as audit,
            socket.create_server(("127.0.0.1", self.port)) as listening,
        ):
            waiting = b""
            while True:
                connection, _ = listening.accept()
                with connection:
                    if line := connection.recv(64).strip():
                        for remark in range(self.remarks):
                            audit.write(b"%s: remark %d\n" % (line, remark))
                        waiting += line + b"\n"
                        if line != b"%d" % self.late:  # that one is kept with the next
                            index.write(waiting)
                            os.fsync(index.fileno())
                            waiting = b""
                    index.seek(0)
                    connection.sendall(index.read())

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Ask for the lines; tell when one is lost."""
        if lost := super().check(directory, marks):
            self._tell(b"!")
        return lost

    def _tell(self, what: bytes) -> None:
        with self._told.open("ab") as told:
            told.write(what)


def starts_until_found(folder: Path, *, is_watched: bool) -> tuple[int, int]:
    """Explore crashes of the auditor; return the starts until its bug shows, and all starts."""
    told = Path(tempfile.mkstemp(dir=folder)[1])
    subject, options = subject_of(Auditor(told)), Options(seed="s", families=(Family.CRASH,))
    unwatched = mock.patch("pytest_chaos.explore.explorer.reads_of", return_value=None)
    with contextlib.nullcontext() if is_watched else unwatched:
        launch(subject, options)
    starts = told.read_bytes()
    return starts.index(b"!"), starts.count(b".")


def states_per_second(recorded: Recorded, folder: Path, jobs: int) -> float:
    """Judge all crash states; return how many a second."""
    folder.mkdir()
    states = crash_states(recorded.recording, recorded.store, recorded.seed)
    with Pool(recorded.known, folder, jobs=jobs) as pool:
        began_s = time.perf_counter()
        judged = list(pool.answers(states, lambda state: StateTask(state.items, state.marks)))
        took_s = time.perf_counter() - began_s
    assert not any(judgement.findings for _, judgement in judged), judged
    return len(judged) / took_s


def starts_per_second(folder: Path, jobs: int) -> float:
    """Start and kill the server in as many processes; return how many starts a second."""
    began_s = time.perf_counter()
    processes = [multiprocessing.Process(target=_start_again_and_again, args=(folder, place)) for place in range(jobs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return jobs * _RAW_STARTS / (time.perf_counter() - began_s)


def _start_again_and_again(folder: Path, place: int) -> None:
    for _ in range(_RAW_STARTS):
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        reader, writer = os.pipe()
        if not (pid := os.fork()):
            serve(folder / f"raw-{place}", port, partial(os.write, writer, b"+"))
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> int:
    """Measure in rounds, print medians, and return 0 if the target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        recorded, _ = record(subject_of(LineServer()), step_source(), Path(name), seed="s", timeout_s=60)
        for number in range(options.rounds):
            for jobs in JOBS:
                folder = Path(name) / f"{number}-{jobs}"
                rates.setdefault(("states", jobs), []).append(states_per_second(recorded, folder, jobs))
                rates.setdefault(("raw limit: starts", jobs), []).append(starts_per_second(Path(name), jobs))
        recorded.close()
    for (kind, jobs), found in rates.items():
        low, high = min(found), max(found)
        print(f"{kind}, {jobs} jobs: {statistics.median(found):.1f}/s ({low:.1f} to {high:.1f})")
    for jobs in JOBS:
        pairs = zip(rates["states", jobs], rates["raw limit: starts", jobs], strict=True)
        ratio = statistics.median(state / start for state, start in pairs)
        print(f"states against starts, {jobs} jobs: {ratio:.2f}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for is_watched in (False, True):
            until, starts = starts_until_found(Path(name), is_watched=is_watched)
            how = "last what a start does not read" if is_watched else "representatives alone"
            print(f"starts until a bug is found, {how}: {until} of {starts}")
    rate = statistics.median(rates["states", JOBS[-1]])
    print(f"states of a server with {JOBS[-1]} jobs at least {RATE:g}/s: {rate >= RATE}")
    return 0 if rate >= RATE else 1


if __name__ == "__main__":
    sys.exit(main())
