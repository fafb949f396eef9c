"""Targets that tests explore: a sound one, a careless one,
and those that misbehave in each way that a target can.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes as tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks


class Careful:
    """Keeps a number in a file, replaced by rename, with everything synced that has to be."""

    name = "careful"
    numbers = 2

    def run(self, directory: Path, marks: Marks) -> None:
        """Save some numbers."""
        for number in range(1, self.numbers + 1):
            marks.intent("save", number)
            self.save(directory, number)
            marks.ack("save", number)

    def save(self, directory: Path, number: int) -> None:
        """Replace the file."""
        fresh = os.open(directory / "fresh", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        rest = json.dumps({"number": number}).encode()
        while rest:  # a write may be short, and this very exploration found the program that did not know it
            rest = rest[os.write(fresh, rest) :]
        os.fsync(fresh)
        os.close(fresh)
        (directory / "fresh").rename(directory / "state.json")
        folder = os.open(directory, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find what was acknowledged and is not there."""
        saved = [int(mark.key or 0) for mark in marks if mark.kind == "ack"]
        path = directory / "state.json"
        try:
            found = json.loads(path.read_text())["number"] if path.exists() else 0
        except ValueError:
            yield "the file cannot be read"
            return
        if saved and found < saved[-1]:
            yield f"lost {saved[-1]}, and {found} is there"


class Careless(Careful):
    """Writes the file in place."""

    name = "careless"

    def save(self, directory: Path, number: int) -> None:
        """Write without a thought."""
        (directory / "state.json").write_text(json.dumps({"number": number}))


class Unsynced(Careful):
    """Replaces the file by rename, and syncs nothing: only a power failure shows it."""

    name = "unsynced"

    def save(self, directory: Path, number: int) -> None:
        """Replace the file."""
        (directory / "fresh").write_text(json.dumps({"number": number}))
        (directory / "fresh").rename(directory / "state.json")


class BadRecovery(Careful):
    """Its restart moves a file away and back: fine, unless it is interrupted in between."""

    name = "bad recovery"

    def recover(self, directory: Path) -> None:
        """Repair what is not broken, in a way that cannot be interrupted."""
        path = directory / "state.json"
        if path.exists():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)


class Restarts(Careful):
    """Its restart writes a file of its own."""

    def recover(self, directory: Path) -> None:
        """Say that it was here."""
        (directory / "started").touch()


class BadOnErrors(Careful):
    """Takes a failed fsync for a good one."""

    name = "bad on errors"

    def save(self, directory: Path, number: int) -> None:
        """Acknowledge whatever happens."""
        try:
            super().save(directory, number)
        except OSError as error:
            print(error)


class HangsOnErrors(Careful):
    """Tries again for ever."""

    def save(self, directory: Path, number: int) -> None:
        """Never give up."""
        while True:
            try:
                return super().save(directory, number)
            except OSError:
                signal.pause()


class Database(Careful):
    """Keeps its numbers in SQLite, as safe as SQLite is."""

    name = "database"
    mode = "wal"
    synchronous = "full"

    def run(self, directory: Path, marks: Marks) -> None:
        """Put rows."""
        connection = sqlite3.connect(directory / "a.db", isolation_level=None)
        connection.execute(f"pragma journal_mode={self.mode}")
        connection.execute(f"pragma synchronous={self.synchronous}")
        connection.execute("create table if not exists t (id integer primary key, body blob)")
        for number in range(1, self.numbers + 1):
            marks.intent("put", number)
            connection.execute("insert into t values (?, ?)", (number, b"x" * 4000))
            marks.ack("put", number)
        connection.close()

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find damage, and rows that were acknowledged and are gone."""
        connection = sqlite3.connect(directory / "a.db")
        try:
            yield from self._look(connection, marks)
        except sqlite3.DatabaseError as error:
            yield Finding(signature="damaged", text=str(error))
        finally:
            connection.close()

    def _look(self, connection: sqlite3.Connection, marks: Sequence[Mark]) -> Iterator[Finding | str]:
        if connection.execute("pragma integrity_check").fetchone() != ("ok",):
            yield Finding(signature="damaged", text="the integrity check fails")
            return
        there = connection.execute("select count(*) from sqlite_master where name = 't'").fetchone()[0]
        found = {row[0] for row in connection.execute("select id from t")} if there else set()
        for mark in marks:
            if mark.kind == "ack" and mark.key not in found:
                yield Finding(signature="lost", text=f"row {mark.key} is gone")


# Those that misbehave


class WrongCheck(Careful):
    """Its check finds fault with a run that nothing was done to."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find fault."""
        yield f"there are {len(marks)} marks"


class Fails(Careful):
    """Its run ends with an exception."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Fail after a first step."""
        super().run(directory, marks)
        message = "no luck today"
        raise RuntimeError(message)


class Endless(Careful):
    """Its run never ends."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Wait for ever."""
        super().run(directory, marks)
        signal.pause()


class LeavesDaemon(Careful):
    """Forks a process that leaves its session and stays."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Leave a daemon behind."""
        super().run(directory, marks)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                (directory / "daemon.pid").write_text(str(os.getpid()))
                signal.pause()
            os._exit(0)
        os.wait()
        while not (directory / "daemon.pid").exists():
            time.sleep(0.001)  # sleeps because the daemon has to be there before its parent goes


class LeavesDaemonAndWaits(LeavesDaemon):
    """Leaves a daemon that is another program, as most are, and never ends."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Leave a daemon behind, and wait for ever."""
        daemon = [sys.executable, "-c", "import signal; signal.pause()"]
        with subprocess.Popen(daemon, start_new_session=True) as process:
            (directory / "daemon.pid").write_text(str(process.pid))
            signal.pause()


class KillsItsParent(Careful):
    """Kills the process that has started it."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Strike back, and see what comes of it."""
        super().run(directory, marks)
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()


class KillsTheExplorer(Careful):
    """Kills the process that watches it, whose child its parent is."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Strike back."""
        super().run(directory, marks)
        parent = tree.read(os.getppid())
        if parent is not None:
            os.kill(parent.parent_pid, signal.SIGKILL)


class WritesOutside(Careful):
    """Keeps a file beside its directory."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write beside the directory."""
        super().run(directory, marks)
        (directory.parent / "outside.txt").write_text("not explored")


class DeletesDirectory(Careful):
    """Removes what it was given."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Remove the directory itself."""
        super().run(directory, marks)
        (directory / "state.json").unlink()
        directory.rmdir()


class Chatty(Careful):
    """Prints megabytes, in its run and in its check."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Print, and work."""
        print("x" * (4 << 20))
        super().run(directory, marks)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Print, and check."""
        print("y" * (1 << 20))
        return super().check(directory, marks)


class Random(Careful):
    """Does something else each time."""

    def save(self, directory: Path, number: int) -> None:
        """Write so many bytes as chance will have it."""
        (directory / "state.json").write_text(" " * random.SystemRandom().randrange(1, 10_000) + '{"number": 9}')


class OtherMarks(Careful):
    """Makes the same steps each time, and other marks."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Mark before or after, as chance will have it."""
        for place in range(20):
            if random.SystemRandom().random() < 0.5:
                marks.note("early", place)
                (directory / f"file-{place}").touch()
            else:
                (directory / f"file-{place}").touch()
                marks.note("late", place)


class HangsOnError(Careful):
    """Waits for ever once a write fails."""

    def save(self, directory: Path, number: int) -> None:
        """Save, or hang."""
        try:
            super().save(directory, number)
        except OSError:
            signal.pause()


class CheckWaits(Careful):
    """Its check waits for ever on each state in which something is missing."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Hang until the last number is there."""
        path = directory / "state.json"
        if not path.exists() or f'"number": {self.numbers}' not in path.read_text():
            signal.pause()
        return []


class Idle(Careful):
    """Makes no durable step."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Do nothing."""


class BadSetup(Careful):
    """Its setup raises."""

    def setup(self, directory: Path) -> None:
        """Fail."""
        message = "no setup today"
        raise RuntimeError(message)


class WithSetup(Careful):
    """Begins with a number that is there already."""

    def setup(self, directory: Path) -> None:
        """Save a first number."""
        (directory / "state.json").write_text('{"number": 0}')


class _BadCheck(Careful):
    """Misbehaves in its check once the first number was acknowledged, and the run is not over."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Check, or misbehave."""
        if sum(mark.kind == "ack" for mark in marks) == 1:
            self.misbehave(directory)
        return super().check(directory, marks)

    def misbehave(self, directory: Path) -> None:
        """Do what a check should not."""


class CheckRaises(_BadCheck):
    """Its check raises."""

    def misbehave(self, directory: Path) -> None:
        """Raise."""
        message = "a mistake in the check"
        raise KeyError(message)


class CheckRaisesAtOnce(Careful):
    """Its check raises on the clean run already."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Raise."""
        raise KeyError(len(marks))


class CheckAsserts(Careless):
    """Says what it has to say with assertions."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Assert that nothing is lost."""
        assert not list(super().check(directory, marks)), "the number is lost"
        return []


class CheckHangs(_BadCheck):
    """Its check does not end."""

    def misbehave(self, directory: Path) -> None:
        """Wait for ever."""
        signal.pause()


class CheckExits(_BadCheck):
    """Its check ends its process, as a crash of a library would."""

    def misbehave(self, directory: Path) -> None:
        """Be gone."""
        os._exit(0)


class CheckModifies(Careful):
    """Its check ruins what it looked at: a state that is not written anew would be found ruined."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Check, then ruin."""
        yield from super().check(directory, marks)
        for path in directory.iterdir():
            path.write_text("ruined")
        (directory / "left over").mkdir()
        (directory / "left over" / "too").touch()


class CheckDeletes(Careful):
    """Its check removes the directory, and leaves a file in its place."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Check, then remove."""
        yield from super().check(directory, marks)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        directory.write_text("a file now")


class CheckLeavesProcess(Careful):
    """Its check starts a process in a session of its own, and forgets it."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Start, forget, check."""
        if len(marks) == 1:
            subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
        return super().check(directory, marks)


class CheckReturnsNonsense(Careful):
    """Its check returns what is no finding."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[int]:  # type: ignore[override] # the point
        """Return a number."""
        return [42]


def run(directory: Path, marks: Marks) -> None:
    """Work, as a function."""
    Careless().run(directory, marks)


def check(directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
    """Check, as a function."""
    return Careless().check(directory, marks)


if __name__ == "__main__":  # as a program in any language would: the marks are lines of a file
    where = Path(os.environ["CHAOS_DIRECTORY"])
    file = Path(os.environ["CHAOS_MARKS"])
    if sys.argv[1] == "run":
        with file.open("a") as lines:
            (where / "a").write_text("1")
            lines.write('{"kind": "ack", "operation": "put", "key": 1}\n')
    elif sys.argv[1] == "check":
        acknowledged = '"ack"' in file.read_text()
        if acknowledged and (not (where / "a").exists() or (where / "a").read_text() != "1"):
            print("lost 1")
            sys.exit(1)
    else:
        sys.exit(int(sys.argv[1]))
