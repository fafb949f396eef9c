"""Programs that faults are fired at: agents of the tests beside this file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

_UNRESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""With MAP_NORESERVE, of which mmap knows from Python 3.13 on: so much is given without a bound."""


def write_rows(marks: Marks, database: str, total: int) -> None:
    """Insert rows one after the other, with a point before each transaction and one within it."""
    with contextlib.closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as connection:
        for number in range(1, total + 1):
            sys.audit("programs.row.before", number)
            connection.execute("BEGIN IMMEDIATE")
            sys.audit("programs.row.within", number)
            connection.execute("INSERT INTO rows VALUES (?)", (number,))
            connection.execute("COMMIT")
            marks.ack("row", number)


def count_in_a_thread(marks: Marks, total: int) -> None:
    """Mark steps in another thread than the first, with a point in each."""

    def count() -> None:
        for number in range(1, total + 1):
            marks.intent("step", number)
            sys.audit("programs.step", number)
            marks.ack("step", number)
            time.sleep(0.001)  # sleeps because this is the pace of the program

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()


def save_and_count(marks: Marks) -> None:
    """Rename a file into place and mark a step, again and again; another thread makes one file."""

    def make_one() -> None:
        Path("beside.txt").touch()
        marks.note("beside")

    beside = threading.Thread(target=make_one)
    beside.start()
    number = 0
    while True:
        number += 1
        marks.intent("step", number)
        Path("new.tmp").write_text(str(number))
        Path("new.tmp").replace("saved.json")
        sys.audit("targets.step.between", number)
        marks.ack("step", number)
        time.sleep(0.001)  # sleeps because this is the pace of the program


def save_and_use(marks: Marks) -> None:
    """Rename a file and mark a step, again and again; each uses a descriptor, a file and memory."""

    def use_file() -> None:
        with Path("big").open("wb") as file:
            file.truncate(200_000)

    files = ["one.json", "other.json"]
    Path(files[0]).touch()
    number = 0
    while True:
        number += 1
        marks.intent("step", number)
        for use in (use_file, lambda: mmap.mmap(-1, 1 << 41, flags=_UNRESERVED).close()):
            with contextlib.suppress(OSError):
                use()
        Path(files[0]).rename(files[1])
        files.reverse()
        sys.audit("targets.step.between", number)
        marks.ack("step", number)
        time.sleep(0.001)  # sleeps because this is the pace of the program


def add(marks: Marks, amount: int, *, locks: bool) -> None:
    """Add to the number in ``counter.json``, with a lock or without, and say what it saw.

    Its note ``looked`` comes once it has read the number, or has seen that another one has the
    lock.
    """
    with contextlib.ExitStack() as stack:
        if locks:
            lock = stack.enter_context(Path("counter.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                marks.note("looked")
                fcntl.flock(lock, fcntl.LOCK_EX)
        counted = json.loads(Path("counter.json").read_text())
        marks.note("looked", value=counted)
        mine = Path(f"counter.{amount}")
        mine.write_text(json.dumps(counted + amount))
        mine.replace("counter.json")
        marks.ack("add", amount)


def append_to_a_file_of_another(marks: Marks) -> None:
    """Wait for a file that another agent makes, and append to it."""
    while not Path("later.log").exists():
        time.sleep(0.001)  # sleeps because it waits for the other agent; the run bounds it
    with Path("later.log").open("a") as file:
        file.write("a line")
    marks.ack("appended")


def make_then_move(marks: Marks) -> None:
    """Make a file and move it to where the other agent looks."""
    Path("first.log").write_text("made\n")
    Path("first.log").rename("later.log")
    marks.ack("made")


def have_a_child_save(marks: Marks) -> None:
    """Let a child rename a file into place, and say how it ended."""
    Path("new.tmp").touch()
    status = subprocess.call(["mv", "new.tmp", "saved.json"])
    marks.ack("child", value=status)


def have_children_and_wait(marks: Marks) -> None:
    """Have a child that waits, say so, and make a file."""
    child = subprocess.Popen(["sleep", "60"])
    marks.ack("ready", value=child.pid)
    sys.audit("programs.ready")
    Path("made").touch()
    signal.pause()


def mark_once(marks: Marks, operation: str) -> None:
    """Write one ack."""
    marks.ack(operation)


def connect_and_ask(marks: Marks, port: int) -> None:
    """Connect to an echo on loopback, mark that, and mark how long its next answer took."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as end:
        end.sendall(b"first")
        end.recv(5)
        marks.ack("connected")
        began_s = time.monotonic()
        end.sendall(b"second")
        end.recv(6)
        marks.ack("answer", value=time.monotonic() - began_s)


def echo_all(server: socket.socket) -> None:
    """Send back what each client of a listening socket sends."""

    def echo(end: socket.socket) -> None:
        with contextlib.suppress(OSError), end:
            while data := end.recv(1 << 16):
                end.sendall(data)

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()


def use(marks: Marks, what: str) -> None:
    """Pass a point, use more of something, and note the error if it is refused."""
    sys.audit("programs.use")
    try:
        if what == "files":
            os.close(os.open("/dev/null", os.O_RDONLY))
        elif what == "processes":
            os.posix_spawn("/bin/true", ["true"], {})
        elif what == "file-size":
            Path("big").write_bytes(bytes(5000))
        elif what == "address-space":
            mmap.mmap(-1, 1 << 24).close()
        else:
            kept = bytearray(b"x") * 200_000_000
            marks.note("kept", value=len(kept))
            threading.Event().wait(60)
    except OSError as error:
        marks.note("refused", value=errno.errorcode[error.errno or 0])


def open_until_it_works(marks: Marks) -> None:
    """Open a file again and again: note the first refusal, and end with the next success."""
    marks.note("begun")
    is_refused = False
    while True:
        try:
            os.close(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            if not is_refused:
                marks.note("refused")
            is_refused = True
        else:
            if is_refused:
                marks.note("opened")
                return
        time.sleep(0.001)  # sleeps because this is the pace of the program


def count_until_told(marks: Marks) -> None:
    """Count as fast as it can until a file says that it is enough."""
    marks.note("begun")
    number = 0
    while not Path("enough").exists():
        number += 1
    marks.note("counted", value=number)
