"""What the agents of these tests run: small programs that say what they do,
and misbehave on request.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.runtime.marks import Marks


def wait_forever() -> NoReturn:
    """Do nothing until a signal ends it."""
    while True:
        signal.pause()


def parent_of_two(marks: Marks) -> None:
    """Have two children that wait, note their pids, say so, and wait: a server and its workers."""
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            wait_forever()
        marks.note("child", value=pid)
    marks.ack("ready")
    wait_forever()


def family(marks: Marks) -> None:
    """Have every kind of descendant that is hard to get rid of, keep a database open, say so,
    and wait.
    """
    ready, announce = os.pipe()
    for role in (_child, _daemon, _stubborn):
        _fork(role, announce)
    stopped = _fork(_stopped, announce)
    for _ in range(4):
        os.read(ready, 1)
    os.waitpid(stopped, os.WUNTRACED)
    connection = sqlite3.connect("family.db", isolation_level=None)
    connection.execute("CREATE TABLE members (name TEXT)")
    connection.execute("INSERT INTO members VALUES ('a child and a daemon')")
    marks.ack("ready", value=connection.execute("SELECT count(*) FROM members").fetchone()[0])
    wait_forever()


def _fork(role: Callable[[int], None], announce: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            role(announce)
        finally:
            os._exit(0)
    return pid


def _child(announce: int) -> None:
    os.write(announce, b".")
    wait_forever()


def _daemon(announce: int) -> None:
    """Leave family and session, as daemons do: the parent of what goes on is init,
    or the nearest subreaper.
    """
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.write(announce, b".")
        wait_forever()


def _stubborn(announce: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.write(announce, b".")
    wait_forever()


def _stopped(announce: int) -> None:
    os.write(announce, b".")
    os.kill(os.getpid(), signal.SIGSTOP)
    wait_forever()


def count_up(marks: Marks, operation: str = "step", total: int | None = None) -> None:
    """Mark one intent and one ack after the other, up to ``total`` or for ever,
    a millisecond each.
    """
    key = 0
    while total is None or key < total:
        key += 1
        marks.intent(operation, key)
        sys.audit(f"targets.{operation}.between", key)
        marks.ack(operation, key)
        time.sleep(0.001)  # sleeps because this is the pace of the program


def tell(marks: Marks, variables: tuple[str, ...] = ()) -> None:
    """Say who and where it is."""
    marks.ack("pid", value=[os.getpid(), os.getpgid(0), str(Path.cwd())])
    for name in variables:
        marks.ack("variable", name, os.environ.get(name))
    marks.ack("interpreter", value={"threads": threading.active_count(), "argv": sys.argv[:1]})


def ignore_terminate(marks: Marks) -> None:
    """Take SIGTERM, say so, and go on."""
    signal.signal(signal.SIGTERM, lambda *_: marks.ack("refused"))
    marks.ack("ready")
    wait_forever()


def print_and_wait(text: str, *, repeat: int = 1) -> None:
    """Print a text so many times, and wait."""
    for _ in range(repeat):
        print(text)
    sys.stdout.flush()
    wait_forever()


def raise_error(text: str) -> None:
    """End with an exception."""
    print("about to fail", flush=True)
    raise ValueError(text)


def exit_with(code: int | str | None) -> None:
    """End by ``sys.exit``."""
    sys.exit(code)


def listen(marks: Marks) -> None:
    """Listen on a free port, mark which, and accept for ever."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        marks.ack("listening", server.getsockname()[1])
        while True:
            server.accept()[0].close()


def serve_http(marks: Marks, log: str) -> None:
    """Take HTTP requests, keep each in a line of a file, and answer with its body."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"log": log})) as server:
        marks.note("serving", value=server.server_address[1])
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """Answers 201 under /made, 200 elsewhere."""

    log = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Take a GET as a POST without a body."""
        self.do_POST()

    def do_POST(self) -> None:
        """Keep what came, also what came in part, and answer with it."""
        wanted = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(wanted)
        entry = {"path": self.path, "body": body.decode("latin-1"), "is_whole": len(body) == wanted}
        entry["signature"] = self.headers.get("X-Signature")
        with Path(self.log).open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.send_response(201 if self.path.startswith("/made") else 200)
        self.send_header("X-Served-By", "the real one")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""
