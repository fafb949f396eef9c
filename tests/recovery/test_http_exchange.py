"""A bounded HTTP exchange: its deadline holds in every phase,
and its setting errors name the rule.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from durable_agents.errors import InvalidSetting, MissingPackage
from durable_agents.http_exchange import ExchangeFailed, HttpExchange

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def dribbling(first: bytes, then: bytes) -> Iterator[int]:
    """Serve one connection on the yielded port: some bytes at once,
    then others one at a time without end.
    """
    go_on = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(first)
                while not go_on.wait(0.02):  # waits because to be slow is the fault
                    try:
                        connection.sendall(then)
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        go_on.set()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "first", "then"),
    [
        ("http", b"", b"H"),
        ("http", b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        ("https", b"\x16\x03\x03\x40\x00", b"\x02"),
    ],
    ids=["status line", "header", "body until the end of the stream", "TLS handshake"],
)
def test_the_deadline_holds_in_every_phase(scheme: str, first: bytes, then: bytes) -> None:
    """Each byte comes in time and the answer does not;
    the body would look whole once the connection is shut down.
    """
    with dribbling(first, then) as port:
        exchange = HttpExchange(f"{scheme}://127.0.0.1:{port}/", timeout_s=0.3, bytes_max=1000)
        began_s = time.monotonic()
        with pytest.raises(ExchangeFailed, match=r"no whole answer within 0\.3 s"):
            exchange.send("GET", exchange.url, {})
    assert 0.2 < time.monotonic() - began_s < 60  # a bound on being stuck, not a speed


def test_no_thread_and_no_descriptor_is_left() -> None:
    """Neither of an exchange that failed, nor of one that succeeded."""
    with dribbling(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"") as port:
        threads = threading.active_count()
        exchange = HttpExchange(f"http://127.0.0.1:{port}/", timeout_s=5, bytes_max=1000)
        answer = exchange.send("GET", exchange.url, {})
        assert (answer.status, answer.body, answer.is_whole) == (200, b"x", True)
        assert threading.active_count() <= threads


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx the error says what to install, and is both a setting error and an import
    error.
    """
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingPackage, match=r"httpx must be installed; .*'durable-agents\[http\]'") as caught:
        HttpExchange("http://127.0.0.1/", timeout_s=1, bytes_max=1)
    assert isinstance(caught.value, InvalidSetting)
