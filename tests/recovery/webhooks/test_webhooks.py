"""The receiver under its real server: what is acknowledged is on disk,
and every mistake has its answer.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from durable_agents import open_store
from durable_agents.errors import InvalidSetting
from durable_agents.store.rows import DeliveryStatus
from durable_agents.webhooks.inbox import Inbox
from durable_agents.webhooks.receiver import Receiver
from durable_agents.webhooks.signatures import StandardWebhooks, github
from standardwebhooks import Webhook

from tests.recovery.webhooks.test_events import issue
from tests.recovery.webhooks.test_signatures import KEY, digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore

SECRET = base64.b64encode(KEY).decode()
BODY_BYTES_MAX = 100_000


class Served:
    """A receiver on a port of its own, in a thread."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.accepted = 0
        receiver = Receiver(
            Inbox(store),
            {"tracker": StandardWebhooks(SECRET), "github": github(KEY.decode())},
            status=lambda: {"pending": store.deliveries(DeliveryStatus.PENDING)},
            on_accepted=self._count,
            body_bytes_max=BODY_BYTES_MAX,
            read_timeout_s=3.0,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(receiver, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def _count(self) -> None:
        self.accepted += 1

    def close(self) -> None:
        """End the server and wait for it."""
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def send(
        self, body: bytes, headers: dict[str, str], path: str = "/hooks/tracker", method: str = "POST"
    ) -> tuple[int, Any]:
        """Send a request on a connection of its own; return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def deliver(self, body: str, delivery_id: str = "msg_1") -> tuple[int, Any]:
        """Send a delivery as the tracker does."""
        return self.send(body.encode(), signed(body, delivery_id))

    @property
    def pending(self) -> int:
        """How many deliveries are durable."""
        return self.store.deliveries(DeliveryStatus.PENDING)


def signed(body: str, delivery_id: str = "msg_1") -> dict[str, str]:
    """Sign a body now."""
    at_s = int(time.time())
    signature = Webhook(KEY).sign(delivery_id, datetime.fromtimestamp(at_s, tz=UTC), body)
    return {"webhook-id": delivery_id, "webhook-timestamp": str(at_s), "webhook-signature": signature}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Serve a receiver with an empty inbox."""
    with open_store(tmp_path / "receiver.db") as store:
        server = Served(store)
        try:
            yield server
        finally:
            server.close()


def test_a_delivery_is_durable_when_its_sender_is_told(served: Served) -> None:
    """202 and in the inbox; sent again, 200 and still one."""
    assert served.deliver(issue("In Progress")) == (202, {"accepted": True})
    assert (served.pending, served.accepted) == (1, 1)
    (kept,) = served.store.pending_deliveries(after=0, limit=9)
    assert (kept.source, kept.delivery_id, kept.body) == ("tracker", "msg_1", issue("In Progress"))
    assert served.deliver(issue("In Progress")) == (200, {"accepted": False, "known": True})
    assert served.pending == 1


def test_a_replay_under_another_id_is_known(served: Served) -> None:
    """GitHub signs the body only: whoever sends it again under another id gains nothing."""
    push = json.dumps({"ref": "refs/heads/x", "after": "a1", "repository": {"full_name": "org/shop"}}).encode()
    for delivery_id, expected in (("d-1", 202), ("d-2", 200)):
        headers = {"X-Hub-Signature-256": f"sha256={digest(push)}", "X-GitHub-Delivery": delivery_id}
        assert served.send(push, {**headers, "X-GitHub-Event": "push"}, "/hooks/github")[0] == expected
    assert served.pending == 1


def test_many_senders_at_once_are_all_told_the_truth(served: Served) -> None:
    """Sixteen threads, two hundred deliveries, each sent twice: each is new once."""
    with ThreadPoolExecutor(16) as pool:
        statuses = list(
            pool.map(lambda number: served.deliver(issue("Approved"), f"msg_{number % 200}")[0], range(400))
        )
    assert (statuses.count(202), statuses.count(200), served.pending) == (200, 200, 200)


@pytest.mark.parametrize(
    ("body", "signs", "path", "method", "status", "text"),
    [
        ("{}", None, "/hooks/tracker", "POST", 401, "webhook-id"),
        (issue("Approved"), "another body", "/hooks/tracker", "POST", 401, "must match the body"),
        ("not json", "not json", "/hooks/tracker", "POST", 400, "must be JSON of its event; got"),
        ("[]", "[]", "/hooks/tracker", "POST", 400, "must be JSON of its event; got"),
        ("{}", None, "/hooks/nobody", "POST", 404, "got '/hooks/nobody'"),
        ("{}", None, "/", "POST", 404, "must be /status"),
        ("", None, "/hooks/tracker", "GET", 405, "POST"),
        ("", None, "/status", "POST", 405, "GET"),
        ("x" * 200_000, None, "/hooks/tracker", "POST", 413, "100000 bytes"),
    ],
)
def test_each_mistake_has_its_answer(
    served: Served, body: str, signs: str | None, path: str, method: str, status: int, text: str
) -> None:
    """A status and a sentence; nothing is kept, and the receiver goes on."""
    headers = {} if signs is None else signed(signs)  # signed now: a signature is good for five minutes
    came, answer = served.send(body.encode(), headers, path, method)
    assert came == status
    assert text in answer["error"]
    assert served.pending == 0
    assert served.deliver(issue("Approved"))[0] == 202


def test_a_stale_delivery_is_refused(served: Served) -> None:
    """Signed an hour ago: late, or replayed."""
    at_s = int(time.time()) - 3600
    body = issue("Approved")
    signature = Webhook(KEY).sign("msg_1", datetime.fromtimestamp(at_s, tz=UTC), body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(at_s), "webhook-signature": signature}
    status, answer = served.send(body.encode(), headers)
    assert status == 401
    assert "signed within 300 s" in answer["error"]


def test_an_event_that_nobody_needs_is_not_kept(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The sender is told 202, or it would send again for days;
    one warning says so, however many come.
    """
    body = '{"type": "comment.created"}'
    for number in range(3):
        assert served.deliver(body, f"msg_{number}")[0] == 202
    assert served.pending == 0
    assert len([record for record in caplog.records if "are ignored" in record.getMessage()]) == 1


def test_a_body_without_a_length_is_bounded_too(served: Served) -> None:
    """A chunked body of ten megabytes is refused as soon as it is too large."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    chunks = (b"x" * 10_000 for _ in range(1000))
    try:
        connection.request("POST", "/hooks/tracker", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was refused while this side was still sending
    finally:
        connection.close()
    assert next(chunks, None) is not None or served.deliver(issue("Approved"))[0] == 202


def test_a_slow_sender_is_not_waited_for(served: Served) -> None:
    """Half a body and then nothing: 408 after the read timeout, and others are served meanwhile."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(b"POST /hooks/tracker HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert served.deliver(issue("Approved"))[0] == 202
        assert b" 408 " in slow.recv(4096)


def test_a_store_that_refuses_is_told_to_the_sender(served: Served) -> None:
    """503, so that it sends again; nothing was acknowledged that is not there."""
    served.store.close()
    status, answer = served.deliver(issue("Approved"))
    assert (status, answer["error"]) == (503, "The delivery could not be kept; send it again.")


def test_status_says_how_things_are(served: Served) -> None:
    """What it was given to show."""
    served.deliver(issue("Approved"))
    assert served.send(b"", {}, "/status", "GET") == (200, {"pending": 1})


def test_a_receiver_needs_a_source_and_bounds(tmp_path: Path) -> None:
    """Without them it would take nothing, or everything."""
    with open_store(tmp_path / "receiver.db") as store:
        wrong: list[dict[str, Any]] = [{"schemes": {}}, {"body_bytes_max": 0}, {"read_timeout_s": 0.0}]
        for settings in wrong:
            arguments: dict[str, Any] = {"schemes": {"github": github(KEY.decode())}, **settings}
            with pytest.raises(InvalidSetting, match="bounds above 0"):
                Receiver(Inbox(store), **arguments)
