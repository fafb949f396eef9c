"""Pushes over HTTP: what arrives at a real server, and which of its answers are believed."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import HttpPush, Roots, StateStore, SyncQueue
from durable_agents.errors import InvalidSetting, PushFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DISPATCHES: Final = [{"workspace": "core/go-io/task-5", "status": "completed"}]


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "root"))


@pytest.fixture(name="state")
def _state(roots: Roots) -> Iterator[StateStore]:
    with StateStore(db_path=roots.database) as state:
        yield state


class _Handler(BaseHTTPRequestHandler):
    """Keeps what comes, and answers as it was told."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a push."""
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.path, self.headers["Idempotency-Key"], self.headers["X-Own"], json.loads(body)))
        self.send_response(server.status)
        if server.echoes:
            self.send_header("Idempotency-Key", self.headers["Idempotency-Key"])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def served(*, status: int = 201, echoes: bool = True) -> Iterator[Any]:
    """Serve on loopback while the block lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.status, server.echoes, server.seen = status, echoes, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_push_is_a_post_with_its_key(roots: Roots, state: StateStore) -> None:
    """Path, query, headers and body arrive, and a success that repeats the key takes the entry off
    the queue.
    """
    with served() as server:
        push = HttpPush(f"http://127.0.0.1:{server.server_address[1]}/sync?x=1", headers={"X-Own": "yes"})
        queue = SyncQueue(roots, state, push)
        entry = queue.enqueue("charon", DISPATCHES)
        assert queue.run_once().pushed == 1
        body = {"agent_id": "charon", "queued_at": entry.queued_at, "dispatches": DISPATCHES}
        assert server.seen == [("/sync?x=1", entry.key, "yes", body)]


@pytest.mark.parametrize(("status", "echoes"), [(500, True), (404, True), (302, True), (202, False)])
def test_an_answer_that_proves_nothing_is_no_acknowledgement(
    roots: Roots,
    state: StateStore,
    status: int,
    echoes: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A failure, a redirect, and a success of somebody who does not know the key leave the entry
    where it is.
    """
    with served(status=status, echoes=echoes) as server:
        queue = SyncQueue(roots, state, HttpPush(f"http://127.0.0.1:{server.server_address[1]}/"))
        queue.enqueue("charon", [])
        found = queue.run_once()
        assert (found.pushed, found.waiting) == (0, 1)
        assert ("repeat the key" in found.error) is not echoes
        assert len(server.seen) == 1
        if not echoes:
            HttpPush(f"http://127.0.0.1:{server.server_address[1]}/", requires_echo=False)(queue.entries()[0])


def test_nobody_there_is_a_failed_push(roots: Roots, state: StateStore) -> None:
    """A refused connection, and one that nobody answers, are tried again."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        queue = SyncQueue(roots, state, HttpPush(f"http://127.0.0.1:{port}/", timeout_s=0.05))
        queue.enqueue("charon", [])
        assert "no whole answer within 0.05 s" in queue.run_once().error
    with pytest.raises(PushFailed, match="Connection refused"):
        HttpPush(f"http://127.0.0.1:{port}/")(queue.entries()[0])


@contextmanager
def answering(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """Answer one push piece by piece, until its sender hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    threading.Event().wait(pause_s)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def test_a_receiver_that_dribbles_is_given_up(roots: Roots, state: StateStore) -> None:
    """Each line of its answer comes in time, and the whole of it does not;
    so the queue is not held for ever.
    """
    lines = (b"X-Line: %d\r\n" % number for number in range(90))
    with answering(b"HTTP/1.1 200 OK\r\n", *lines, pause_s=0.2) as url:
        queue = SyncQueue(roots, state, HttpPush(url, timeout_s=0.6))
        queue.enqueue("charon", [])
        found = queue.run_once()
    assert "no whole answer within 0.6 s" in found.error
    assert found.next_attempt_at is not None


def test_an_answer_that_is_hardly_http_is_a_failed_push(roots: Roots, state: StateStore) -> None:
    """A chunk of a negative size is a failure as any other, after which there is a pause."""
    with answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n") as url:
        queue = SyncQueue(roots, state, HttpPush(url))
        queue.enqueue("charon", [])
        found = queue.run_once()
    assert (found.pushed, found.waiting, bool(found.error)) == (0, 1, True)
    assert queue.entries()[0].attempts == 1


@pytest.mark.parametrize("headers", [{"X-Own": "two\nlines"}, {"X-Own": "ü"}, {"X Own": "yes"}, {"": "yes"}])
def test_headers_that_no_request_can_have_are_refused(headers: dict[str, str]) -> None:
    """They are told by name, when they are given; the value may be a secret."""
    with pytest.raises(InvalidSetting, match="Headers must be of printable ASCII") as caught:
        HttpPush("http://127.0.0.1:80/", headers=headers)
    assert next(iter(headers.values())) not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/", "127.0.0.1:80", "http://", "http://x:port/", "http://x:99999/", "http://x/a b", "http://x/ü"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The mistake is told when it is made and not with the first push."""
    with pytest.raises(InvalidSetting, match="Give one such as"):
        HttpPush(url)
