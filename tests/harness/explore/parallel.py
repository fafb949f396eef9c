"""Targets with several threads and processes: races, locks, pools, and their sound twins."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

WORD = "x" * 10
COUNT = 3


def save(path: Path) -> None:
    """Replace a file as one should: write beside it, fsync, rename, fsync the folder."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(WORD)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def together(*works: Callable[[], object]) -> None:
    """Do works in threads, and wait for all."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Files:
    """Saves three files; what was acknowledged must be there, whole."""

    def save(self, path: Path) -> None:
        """Save one file."""
        save(path)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find what was acknowledged and is not there."""
        for mark in marks:
            path = directory / f"{mark.key}.txt"
            if mark.kind == "ack" and (not path.exists() or path.read_text() != WORD):
                yield f"file {mark.key} is lost"


class Threads(Files):
    """Three threads, a file each."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save and acknowledge in threads."""

        def one(number: int) -> None:
            self.save(directory / f"{number}.txt")
            marks.ack("save", number)

        together(*(lambda number=number: one(number) for number in range(COUNT)))


class UnsyncedThreads(Threads):
    """The same without fsync."""

    def save(self, path: Path) -> None:
        """Write in place."""
        path.write_text(WORD)


class Tasks(Files):
    """Three tasks of asyncio, which save in threads."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save and acknowledge in tasks."""

        async def one(number: int) -> None:
            await asyncio.to_thread(self.save, directory / f"{number}.txt")
            marks.ack("save", number)

        async def every() -> None:
            await asyncio.gather(*(one(number) for number in range(COUNT)))

        asyncio.run(every())


class Pool(Files):
    """A pool of two processes."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save in the pool, and acknowledge in the order of submission."""
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            waiting = [pool.submit(save, directory / f"{number}.txt") for number in range(COUNT)]
            for number, done in enumerate(waiting):
                done.result()
                marks.ack("save", number)


class Commands(Files):
    """Three commands at once, without fsync."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Start three shells, and acknowledge each when it has ended."""
        shells = [
            subprocess.Popen(["sh", "-c", f"printf {WORD} > {directory}/{number}.txt"]) for number in range(COUNT)
        ]
        for number, shell in enumerate(shells):
            shell.wait()
            marks.ack("save", number)


class Following:
    """Three processes, one after the other: each schedule is the same."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save in a child, and acknowledge."""
        context = multiprocessing.get_context("fork")
        for number in range(COUNT):
            child = context.Process(target=save, args=(directory / f"{number}.txt",))
            child.start()
            child.join()
            marks.ack("save", number)

    check = Files.check


class Counter:
    """Two threads add to one number in a file, each twice, and hold ``guard`` meanwhile."""

    def __init__(self) -> None:
        self.guard = threading.Lock()

    def run(self, directory: Path, marks: Marks) -> None:
        """Add, and acknowledge each addition."""
        path = directory / "number"
        path.write_text("0")

        def add() -> None:
            for _ in range(2):
                with self.guard:
                    number = int(path.read_text())
                    fresh = directory / f"number.{threading.get_ident()}"
                    fresh.write_text(str(number + 1))
                    fresh.rename(path)
                marks.ack("add")

        together(add, add)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find additions that were acknowledged and are lost."""
        path = directory / "number"
        number = int(path.read_text() or "0") if path.exists() else 0
        added = sum(mark.kind == "ack" for mark in marks)
        if number < added:
            yield f"of {added} acknowledged additions {number} are there"


class Unguarded(Counter):
    """The same without a lock: an update is lost if both read before one writes."""

    def __init__(self) -> None:
        self.guard = threading.Semaphore(2)  # type: ignore[assignment] # guards nothing


class HiddenRace(Counter):
    """A thread adds at once, and the main thread long afterwards, as it seems: no order is kept."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Add twice, with some twenty steps between them."""
        path = directory / "number"
        path.write_text("0")

        def add() -> None:
            number = int(path.read_text())
            fresh = directory / f"number.{threading.get_ident()}"
            fresh.write_text(str(number + 1))
            fresh.rename(path)
            marks.ack("add")

        thread = threading.Thread(target=add)
        thread.start()
        for line in range(20):
            with (directory / "log").open("a") as log:
                log.write(f"{line}\n")
        add()
        thread.join()


class Supervised(Files):
    """A worker process saves files; its parent looks how it ended, and saves what is missing."""

    looks = True
    inherits = False
    """Whether the parent keeps the end of the pipe that the worker writes to."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Start the worker, hear its last word, and acknowledge the files."""
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            for number in range(COUNT):
                save(directory / f"{number}.txt")
            os.write(writer, b"+")
            os._exit(0)
        if not self.inherits:
            os.close(writer)
        os.read(reader, 1)
        is_done = os.waitpid(worker, 0)[1] == 0 or not self.looks
        for number in range(COUNT):
            if not is_done and not (directory / f"{number}.txt").exists():
                save(directory / f"{number}.txt")
            marks.ack("save", number)


class Blind(Supervised):
    """The same, but the parent takes it that its worker has succeeded."""

    looks = False


class Waiting(Supervised):
    """The same, but the parent has the pipe open itself: it never hears that its worker is dead."""

    inherits = True


class Deadlock(Files):
    """Two threads take two locks in opposite order, with a step between."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Take both locks in both threads."""
        locks = threading.Lock(), threading.Lock()

        def work(number: int) -> None:
            with locks[number]:
                (directory / f"first-{number}").write_text("x")
                with locks[1 - number]:
                    (directory / f"second-{number}").write_text("x")

        together(lambda: work(0), lambda: work(1))
        marks.note("end")


class ProcessId(Files):
    """Writes its process id: a length that differs between runs."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write the id in as many digits as it likes, and a file."""
        (directory / "pid").write_text("1" * (1 + os.getpid() % 7))
        save(directory / "0.txt")
        marks.ack("save", 0)


class LateChild(Files):
    """Ends before its child, which still saves a file."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Leave a child that writes once its parent has ended, and a daemon that never ends."""
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent has ended
            save(directory / "late.txt")
            os._exit(0)
        if os.fork() == 0:
            os.close(writer)
            (directory / "daemon").touch()
            signal.pause()
        until((directory / "daemon").exists)
        marks.note("end")


class SleepingChild(Files):
    """Acknowledges what a child is to save, and does not wait for it."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Leave a child that waits for longer than anybody looks."""
        (directory / "log").touch()
        if os.fork() == 0:
            signal.pause()
        marks.ack("save", 0)


class Turns(Files):
    """Two processes that take turns at a lock, so that no two wait for a step at one time."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Append in both processes, each time under the lock; none ends before both have begun."""
        children = []
        pipes = [os.pipe(), os.pipe()]
        for number in range(2):
            if (child := os.fork()) == 0:
                for turn in range(COUNT):
                    with (directory / "lock").open("w") as lock, (directory / "log").open("a") as log:
                        fcntl.flock(lock, fcntl.LOCK_EX)
                        log.write(f"{number}\n")
                        log.flush()
                    if turn == 0:
                        os.write(pipes[number][1], b".")
                        os.read(pipes[1 - number][0], 1)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        marks.note("end")


class ShortWrites(Threads):
    """Three threads that do not look how much was written; each file has a length of its own."""

    def save(self, path: Path) -> None:
        """Write once."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, WORD.encode())
        os.close(descriptor)


class DrawnFolder(Files):
    """Makes a folder with a short name that it draws."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Draw the name, and save a file in it."""
        drawn = directory / f"{random.SystemRandom().randrange(256):02x}"
        drawn.mkdir()
        save(drawn / "0.txt")
        marks.note("saved")


class AnsweredChild(Files):
    """A child makes files and says so; its parent acknowledges them while the child goes on."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Read the child's lines."""
        script = "i=0; while [ $i -lt 5 ]; do printf xxxxxxxxxx > $i.txt; echo $i; i=$((i+1)); done"
        with subprocess.Popen(["sh", "-c", script], cwd=directory, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                marks.ack("save", int(line))


class LoggedTimes(Files):
    """Logs durations, whose digits differ from run to run."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write some lines, and a file."""
        with (directory / "log").open("a") as log:
            for number in range(8):
                log.write("9" * random.SystemRandom().randrange(1, 6) + f" ns for {number}\n")
                log.flush()
        save(directory / "0.txt")
        marks.ack("save", 0)


_work: queue.Queue[tuple[Callable[[], object], threading.Event]] = queue.Queue()
_thread: list[threading.Thread] = []


def _in_a_thread(work: Callable[[], object]) -> None:
    """Do work in the one thread of this process, which is started when it is needed first."""
    if not _thread:
        _thread.append(threading.Thread(target=_serve, daemon=True))
        _thread[0].start()
    done = threading.Event()
    _work.put((work, done))
    done.wait()


def _serve() -> None:
    while True:
        work, done = _work.get()
        work()
        done.set()


class ThreadOfSetup(Files):
    """Its setup starts a thread that its run uses, as clients of databases do."""

    def setup(self, directory: Path) -> None:
        """Save a file in the thread."""
        _in_a_thread(lambda: save(directory / "old.txt"))

    def run(self, directory: Path, marks: Marks) -> None:
        """Save another one."""
        _in_a_thread(lambda: save(directory / "0.txt"))
        marks.ack("save", 0)
