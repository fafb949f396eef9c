"""The programs of scenario 15: an agent that queues and pushes, and the receiver."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from durable_agents import HttpPush, ManualClock, Roots, StateStore, SyncQueue, SystemClock

from scenarios.work.agents import import_now, made

if TYPE_CHECKING:
    from pytest_chaos import Marks

import_now("httpx", "httpcore")
ROUNDS_MAX = 300
PUSH_TIMEOUT_S = 1.0


def queue_and_push(marks: Marks, root: str, url: str, names: list[str], parts: dict[str, str]) -> None:
    """Queue a push for each name, then push until the queue is empty.

    A manual clock passes the pauses, each time by half of the rest: a loop comes by within a pause,
    too.
    """
    roots, clock = Roots(root), ManualClock(SystemClock().now())
    roots.make()
    with StateStore(db_path=roots.database) as state:
        push = HttpPush(url, timeout_s=PUSH_TIMEOUT_S)
        queue: SyncQueue = made(parts["sync_queue"], roots, state, push, clock=clock)
        for name in names:
            marks.intent("enqueue", name)
            queue.enqueue(name, [{"workspace": name, "status": "completed"}], key=f"key-{name}")
            marks.ack("enqueue", name)
        marks.note("queued")
        for _ in range(ROUNDS_MAX):
            found = queue.run_once()
            if not found.waiting:
                marks.ack("drained")
                return
            if found.next_attempt_at is not None:
                clock.advance(max(0.1, (found.next_attempt_at - clock.now()) / 2_000_000))


def take_pushes(marks: Marks, log: str) -> None:
    """Receive pushes: note each arrival, and the effect of each new key."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"log": log})) as server:
        marks.note("serving", value=server.server_address[1])
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """A receiver that remembers the keys of earlier pushes."""

    log = ""
    protocol_version = "HTTP/1.1"
    seen: set[str] = set()  # noqa: RUF012 - one memory of one server
    lock = threading.Lock()

    def do_POST(self) -> None:
        """Receive one push; ignore one whose body is cut short."""
        wanted = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(wanted)
        if len(body) < wanted:
            return
        key, name = self.headers["Idempotency-Key"], json.loads(body)["agent_id"]
        with self.lock:
            self._write({"name": name, "key": key, "is_new": key not in self.seen})
            self.seen.add(key)
        self.send_response(201)
        self.send_header("Idempotency-Key", key)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _write(self, entry: dict[str, Any]) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
        os.close(descriptor)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""
