"""A link carries TCP between a real client and a real server, and each of its faults is felt."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import after_mark, kill
from pytest_chaos.errors import UsageError
from pytest_chaos.model.plan import at_moment
from pytest_chaos.model.values import Fault, Verdict
from pytest_chaos.network import disturb
from pytest_chaos.network.sockets import pair_of, state_of

from tests.harness.faults import programs
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.network.link import Link
    from pytest_chaos.runtime.run import Run

RESET = pytest.raises(ConnectionResetError)


class Echo:
    """A server that sends back what it gets, until the end of it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.ends: list[str] = []
        """How each connection has ended, as the server saw it."""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._echo, args=(self.listener.accept()[0],), daemon=True).start()

    def _echo(self, end: socket.socket) -> None:
        try:
            with end:
                while data := end.recv(1 << 16):
                    end.sendall(data)
        except OSError as error:
            self.ends.append(type(error).__name__)
        else:
            self.ends.append("closed")


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Serve on a port of its own."""
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Close the clients of a test."""
    opened: list[socket.socket] = []
    yield opened
    for each in opened:
        each.close()


def client(link: Link, sockets: list[socket.socket]) -> socket.socket:
    """Connect to a link."""
    sockets.append(socket.create_connection(("127.0.0.1", link.port), timeout=60))
    return sockets[-1]


def got(end: socket.socket, count: int) -> bytes:
    """Read so many bytes, or up to the end."""
    data = b""
    while len(data) < count and (part := end.recv(count - len(data))):
        data += part
    return data


def in_force(run: Run, *, count: int = 1) -> None:
    """Wait until the first faults of the plan are in force on their link."""
    pending = run._injector._pending[:count]
    run.wait_until(lambda: all(each.done or (each.firing and each.firing.kept) for each in pending))


def evidence(run: Run) -> list[str]:
    """Return the evidence of all receipts, which must have fired."""
    run.wait_for_faults()
    assert all(receipt.fired for receipt in run.receipts), run.receipts
    return [receipt.evidence for receipt in run.receipts]


def test_an_undisturbed_link_carries_all_bytes_both_ways(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """Ten megabytes come back as they were sent, the end is passed on, and the counts are true."""
    link = run.link(echo.port)
    end = client(link, sockets)
    content = bytes(range(256)) * 40_000

    def send() -> None:
        end.sendall(content)
        end.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    assert got(end, len(content) + 1) == content
    sender.join()
    end.close()
    (over,) = link.wait_for_connections(1)
    assert (over.end, over.to_server, over.to_client, over.lost) == ("closed", len(content), len(content), 0)
    assert echo.ends == ["closed"]


def test_a_client_that_hangs_up_ends_no_link(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """What comes for a client that has gone resets the server, and the link goes on."""
    run.plan(disturb("link", "latency", delay_s=0.05, direction="to-client"))
    link = run.link(echo.port)
    in_force(run)
    gone = client(link, sockets)
    for _ in range(5):
        gone.sendall(b"x" * 1000)
    gone.close()
    (over,) = link.wait_for_connections(1)
    assert over.end in {"reset", "closed"}
    end = client(link, sockets)
    end.sendall(b"on")
    assert got(end, 2) == b"on"
    assert link.agent.running


def test_a_server_that_does_not_listen_is_unreachable(run: Run, sockets: list[socket.socket]) -> None:
    """The client is reset, and the link says why."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        link = run.link(f"127.0.0.1:{nobody.getsockname()[1]}")
        with RESET:  # which may come before the connect has returned
            got(client(link, sockets), 1)
    (over,) = link.wait_for_connections(1)
    assert over.end == "unreachable"


def test_latency_holds_bytes_in_order(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """An answer takes the delay of one direction at least; jitter never swaps bytes."""
    run.plan(disturb("link", "latency", delay_s=0.05, jitter_s=0.02, direction="to-client"))
    link = run.link(echo.port)
    in_force(run)
    end = client(link, sockets)
    began_s = time.monotonic()
    sent = b""
    for number in range(20):
        end.sendall(bytes([number]) * 3)
        sent += bytes([number]) * 3
    assert got(end, len(sent)) == sent
    assert time.monotonic() - began_s >= 0.05
    (text,) = evidence(run)
    assert text.startswith("connection 1: ")
    assert " bytes to the client were held for 0." in text


def test_a_rate_slows_bytes_down(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """Two thousand bytes at 20,000 a second take a tenth of a second at least."""
    run.plan(disturb("link", "rate", bytes_per_s=20_000, direction="to-server"))
    link = run.link(echo.port)
    in_force(run)
    end = client(link, sockets)
    began_s = time.monotonic()
    end.sendall(b"x" * 2000)
    assert got(end, 2000) == b"x" * 2000
    assert time.monotonic() - began_s >= 0.095
    assert "to the server were held for" in evidence(run)[0]


def test_a_reset_ends_what_is_open_by_number(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """The second connection gets RST, the kernel says so, and the first goes on."""
    run.plan(disturb("link", "reset", after_mark("go", agent="signal"), connection=2))
    link = run.link(echo.port)
    first, second = client(link, sockets), client(link, sockets)
    for each in (first, second):
        each.sendall(b"hello")
        assert got(each, 5) == b"hello"
    run.spawn(programs.mark_once, kwargs={"operation": "go"}, name="signal").wait_exit()
    (text,) = evidence(run)
    assert text.startswith("connection 2 was reset; the client's end is ")
    with RESET:
        got(second, 1)
    first.sendall(b"still")
    assert got(first, 5) == b"still"
    until(lambda: echo.ends == ["ConnectionResetError"])


def test_a_reset_waits_for_the_next_connection(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """With none open, the next one is reset, and the one after it is not."""
    run.plan(disturb("link", "reset"))
    link = run.link(echo.port)
    in_force(run)
    with RESET:
        got(client(link, sockets), 1)
    after = client(link, sockets)
    after.sendall(b"fine")
    assert got(after, 4) == b"fine"
    assert "connection 1 was reset" in evidence(run)[0]


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_comes_after_so_many_bytes(run: Run, echo: Echo, sockets: list[socket.socket], *, reset: bool) -> None:
    """Exactly these arrive, then the connection ends on both sides."""
    run.plan(disturb("link", "cut", after_bytes=7, direction="to-client", reset=reset))
    link = run.link(echo.port)
    in_force(run)
    end = client(link, sockets)
    end.sendall(b"0123456789")
    assert got(end, 7) == b"0123456"
    if reset:
        with RESET:
            got(end, 1)
    else:
        assert got(end, 1) == b""
    (over,) = link.wait_for_connections(1)
    assert (over.end, over.to_client, over.lost) == ("cut", 7, 3)
    assert "connection 1 was cut after 7 bytes to the client; the client's end is " in evidence(run)[0]


def test_a_black_hole_holds_bytes_until_it_is_healed(run: Run, echo: Echo, sockets: list[socket.socket]) -> None:
    """Nothing arrives, no end is told, and after the heal all comes, to a new connection, too."""
    run.plan(
        disturb("link", "black-hole", after_mark("cut", agent="cut")),
        disturb("link", "heal", after_mark("mend", agent="mend")),
    )
    link = run.link(echo.port)
    old = client(link, sockets)
    old.sendall(b"a")
    assert got(old, 1) == b"a"
    run.spawn(programs.mark_once, kwargs={"operation": "cut"}, name="cut").wait_exit()
    in_force(run)
    old.sendall(b"held")
    new = client(link, sockets)
    new.sendall(b"new")
    run.wait_until(lambda: run.receipts)
    for each in (old, new):
        each.settimeout(0)
        with pytest.raises(BlockingIOError):
            each.recv(1)
        each.settimeout(60)
    pair = pair_of(old)
    assert pair is not None
    assert state_of(type(pair)(pair.peer, pair.own)) == "ESTABLISHED"
    run.spawn(programs.mark_once, kwargs={"operation": "mend"}, name="mend").wait_exit()
    assert got(old, 4) == b"held"
    assert got(new, 3) == b"new"
    held, healed = evidence(run)
    assert held.startswith("connection ")
    assert healed == "black-hole lifted from 2 open connections"


@pytest.mark.parametrize("believes", ["client", "server"])
def test_one_end_of_a_half_open_connection_is_not_told(
    run: Run, echo: Echo, sockets: list[socket.socket], believes: str
) -> None:
    """The end that believes stays open; what it sends is lost; a heal resets it."""
    run.plan(
        disturb("link", "half-open", after_mark("cut", agent="cut"), believes=believes),
        disturb("link", "heal", after_mark("mend", agent="mend")),
    )
    link = run.link(echo.port)
    end = client(link, sockets)
    end.sendall(b"a")
    assert got(end, 1) == b"a"
    run.spawn(programs.mark_once, kwargs={"operation": "cut"}, name="cut").wait_exit()
    run.wait_until(lambda: run.receipts)
    if believes == "client":
        end.sendall(b"lost")
        until(lambda: echo.ends == ["ConnectionResetError"])
        end.settimeout(0)
        with pytest.raises(BlockingIOError):
            end.recv(1)
        end.settimeout(60)
    else:
        with RESET:
            got(end, 1)
        assert echo.ends == []
    run.spawn(programs.mark_once, kwargs={"operation": "mend"}, name="mend").wait_exit()
    other = "server" if believes == "client" else "client"
    first, second = evidence(run)
    assert first.startswith(f"connection 1: the {other}'s end is ")
    assert first.endswith(f"and the {believes}'s is ESTABLISHED")
    assert second == "half-open lifted from 0 open connections"
    if believes == "client":
        with RESET:
            got(end, 1)
    until(lambda: echo.ends == ["ConnectionResetError"])


def test_an_agent_goes_on_once_the_fault_is_in_force(run: Run, echo: Echo) -> None:
    """The next byte of the agent whose time it is feels the fault: it does not wait for itself."""
    run.plan(disturb("link", "latency", after_mark("connected", agent="client"), delay_s=0.05))
    link = run.link(echo.port)
    agent = run.spawn(programs.connect_and_ask, kwargs={"port": link.port}, name="client")
    assert agent.wait_exit().ok
    (mark,) = run.history.acknowledged("answer")
    assert mark.value >= 0.05
    assert len(evidence(run)) == 1
    run.expect("it came to this", observed=True, holds=True)
    assert run.conclude().verdict is Verdict.HELD


def test_a_fault_that_nothing_felt_is_no_fault(run: Run, echo: Echo) -> None:
    """In force, and no connection came: INCONCLUSIVE."""
    run.plan(disturb("link", "black-hole"))
    run.link(echo.port)
    in_force(run)
    run.expect("it came to this", observed=True, holds=True)
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert "it was fired and not seen to happen" in record.receipts[0].evidence


def test_what_was_healed_before_it_was_felt_is_no_fault(run: Run, echo: Echo) -> None:
    """Its receipt says so, and the wait for it ends."""
    run.plan(disturb("link", "latency"), disturb("link", "heal", after_mark("go", agent="other")))
    run.link(echo.port)
    in_force(run)
    run.spawn(programs.mark_once, kwargs={"operation": "go"}, name="other").wait_exit()
    run.wait_for_faults()
    texts = {receipt.kind: (receipt.fired, receipt.evidence) for receipt in run.receipts}
    assert texts["link-latency"] == (False, "it was healed before a connection felt it")
    assert texts["link-heal"] == (True, "latency lifted from 0 open connections")


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        pytest.param([disturb("link", "heal")], "nothing is in force that could be healed", id="heal of nothing"),
        pytest.param(
            [disturb("link", "latency"), disturb("link", "latency", at_moment(0.001))],
            "it changes nothing: the same is in force already",
            id="twice",
        ),
        pytest.param([disturb("other", "reset")], "no agent called 'other' was started", id="unknown"),
        pytest.param(
            [kill("link", after_mark("go", agent="other")), disturb("link", "reset", after_mark("go", agent="late"))],
            "agent 'link' ended (signal 9) before it could be hit; agent 'late' waited",
            id="exited",
        ),
        pytest.param([disturb("other", "reset")], "must be a link; got ", id="no link"),
    ],
)
def test_what_cannot_happen_is_one_sentence(
    run: Run, echo: Echo, faults: list[Fault], text: str, request: pytest.FixtureRequest
) -> None:
    """A fault that cannot do anything leaves the run INCONCLUSIVE, and its receipt says why."""
    run.plan(*faults)
    run.link(echo.port)
    if request.node.callspec.id == "no link":
        run.spawn(programs.save_and_count, name="other")
    if request.node.callspec.id == "exited":
        run.spawn(programs.mark_once, kwargs={"operation": "go"}, name="other").wait_exit()
        run.agent("link").wait_exit()
        run.spawn(programs.mark_once, kwargs={"operation": "go"}, name="late").wait_exit()
    pending = run._injector._pending
    if request.node.callspec.id != "unknown":
        run.wait_until(lambda: pending[-1].done or not run.agent("link").running)
    run.expect("it came to this", observed=True, holds=True)
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert any(text in receipt.evidence for receipt in record.receipts if not receipt.fired), record.receipts


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: disturb("link", "latancy"), "what a link does must be one of .*Did you mean 'latency'"),
        (lambda: disturb("link", "rate", bytes_per_s=0), "bytes_per_s must be a whole number from 1"),
        (
            lambda: disturb("link", "cut", direction="up"),
            "direction must be one of both, to-server, to-client; got 'up'",
        ),
        (lambda: disturb("link", "half-open", believes="me"), "believes must be one of client, server; got 'me'"),
        (lambda: disturb("link", "reset", delay_s=1), "the parameters of link-reset must be connection"),
    ],
)
def test_a_wrong_call_is_refused_in_a_sentence(call: object, text: str) -> None:
    """Before any process is started."""
    assert callable(call)
    with pytest.raises(UsageError, match=text):
        call()


@pytest.mark.parametrize("upstream", ["example.org:80", "10.0.0.1:80", "127.0.0.1", "127.0.0.1:x", 0, 70_000, True])
def test_the_server_of_a_link_is_on_loopback(run: Run, upstream: str | int) -> None:
    """Any other address is refused."""
    with pytest.raises(UsageError, match="the server of a link must be a port, or HOST:PORT"):
        run.link(upstream)
