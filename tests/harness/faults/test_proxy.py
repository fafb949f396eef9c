"""The fault proxy carries HTTP between a real client and a real server,
and each toxic is seen on both of its ends.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from pytest_chaos.errors import UsageError
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.faults.toxics import deliver, draw_deliveries
from pytest_chaos.model import plan, seed
from pytest_chaos.model.plan import at_delivery
from pytest_chaos.model.values import AtDelivery, Fault, Now, Plan, Verdict

from tests.harness.runtime import targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.faults.proxy import FaultProxy
    from pytest_chaos.runtime.run import Run


class Road(NamedTuple):
    """A fault proxy on its way to a server that writes down what arrives."""

    proxy: FaultProxy
    log: Path

    @property
    def arrivals(self) -> list[dict[str, Any]]:
        """What has arrived, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def bodies(self) -> list[str]:
        """The bodies that have arrived, in order."""
        return [entry["body"] for entry in self.arrivals]

    def send(self, body: str = "hello", path: str = "/hooks", *, timeout_s: float = 20.0) -> tuple[int, bytes]:
        """Send a delivery on a connection of its own; return what its sender is told."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=timeout_s)
        try:
            connection.request("POST", path, body.encode(), {"X-Signature": "sha256=abc"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def road(run: Run, *faults: Fault) -> Road:
    """Start a server and a fault proxy to it, with a plan."""
    if faults:
        run.plan(*faults)
    log = run.directory / "arrivals.jsonl"
    server = run.spawn(targets.serve_http, name="server", kwargs={"log": str(log)})
    (serving,) = server.wait_for("serving", kind="note")
    return Road(run.proxy(f"http://127.0.0.1:{serving.value}"), log)


def judged(run: Run) -> Verdict:
    """Conclude a run that expected nothing else than its faults."""
    run.expect("it came to this", observed=True, holds=True)
    return run.conclude().verdict


def test_without_faults_everything_is_carried_as_it_is(run: Run) -> None:
    """Method, path, query, headers, body and answer pass unchanged,
    also over one kept connection.
    """
    way = road(run)
    connection = http.client.HTTPConnection("127.0.0.1", way.proxy.port, timeout=20)
    for number in range(3):
        connection.request("POST", f"/made?n={number}", b"body \xff %d" % number, {"X-Signature": "sha256=abc"})
        response = connection.getresponse()
        assert (response.status, response.headers["X-Served-By"]) == (201, "the real one")
        assert response.read() == b"body \xff %d" % number
    connection.request("GET", "/plain")
    assert connection.getresponse().read() == b""
    connection.close()
    assert [entry["path"] for entry in way.arrivals] == ["/made?n=0", "/made?n=1", "/made?n=2", "/plain"]
    assert {entry["signature"] for entry in way.arrivals[:3]} == {"sha256=abc"}
    carried = way.proxy.wait_for_deliveries(4)
    assert [(each.number, each.method, each.outcome, each.status, each.arrivals) for each in carried] == [
        (1, "POST", "carried", 201, 1),
        (2, "POST", "carried", 201, 1),
        (3, "POST", "carried", 201, 1),
        (4, "GET", "carried", 200, 1),
    ]


def test_a_large_chunked_body_arrives_whole(run: Run) -> None:
    """A sender that does not say the length beforehand loses nothing."""
    way = road(run)
    connection = http.client.HTTPConnection("127.0.0.1", way.proxy.port, timeout=20)
    connection.request("POST", "/hooks", (b"x" * 100_000 for _ in range(30)), encode_chunked=True)
    assert len(connection.getresponse().read()) == 3_000_000
    connection.close()
    assert [len(body) for body in way.bodies] == [3_000_000]


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Answer each connection as soon as the head of a request is there, without its body,
    and hang up.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the listener is shut down at the end
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def told(proxy: FaultProxy, method: str, body: bytes = b"", target: str = "/hooks") -> http.client.HTTPResponse:
    """Ask through the proxy and return the answer, which has been read."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.putrequest(method, target, skip_host=True)
    connection.putheader("Host", "somewhere")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    with suppress(OSError):  # who is answered early need not send the rest
        connection.send(body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_an_answer_to_a_head_keeps_the_length_of_what_it_is_about(run: Run) -> None:
    """A HEAD is answered without a body and with the length of the one that a GET would have."""
    with answering(b"HTTP/1.1 200 Quite fine\r\nContent-Length: 1234\r\nETag: x\r\n\r\n") as url:
        response = told(run.proxy(url), "HEAD")
    assert (response.status, response.reason, response.headers["ETag"]) == (200, "Quite fine", "x")
    assert response.headers["Content-Length"] == "1234"


def test_a_server_that_answers_early_is_believed(run: Run) -> None:
    """It refuses a body by its head and hangs up; the sender hears that,
    and nobody says that there was no server.
    """
    with answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig") as url:
        proxy = run.proxy(url)
        response = told(proxy, "POST", b"x" * 20_000_000)
        assert response.status == 413
        (delivery,) = proxy.wait_for_deliveries(1)
    assert (delivery.outcome, delivery.status, delivery.arrivals) == ("carried", 413, 1)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 502), ("POST", 204), ("POST", 304)])
def test_a_refusal_has_the_form_of_its_method_and_status(run: Run, method: str, status: int) -> None:
    """To a HEAD, and with a status that has no body, the proxy tells its refusal without one."""
    way = road(run, deliver("proxy", "refuse", at_delivery(1), status=status))
    response = told(way.proxy, method)
    assert (response.status, way.arrivals) == (status, [])
    (delivery,) = way.proxy.wait_for_deliveries(1)
    assert (delivery.outcome, delivery.status) == ("refuse-delivery", status)


@pytest.mark.parametrize("target", ["http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://[x]/"])
def test_a_target_that_is_none_is_answered(run: Run, target: str) -> None:
    """What cannot be carried anywhere is told with 502, and is a delivery as any other."""
    proxy = run.proxy("")
    assert told(proxy, "GET", target=target).status == 502
    (delivery,) = proxy.wait_for_deliveries(1)
    assert (delivery.outcome, delivery.status) == ("unreachable", 502)


def test_many_senders_at_once_are_all_carried(run: Run) -> None:
    """A hundred deliveries by sixteen threads: each arrives once and has a number of its own."""
    way = road(run)
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda number: way.send(str(number)), range(100)))
    assert [body.decode() for _, body in told] == [str(number) for number in range(100)]
    assert sorted(way.bodies, key=int) == [str(number) for number in range(100)]
    assert [each.number for each in way.proxy.wait_for_deliveries(100)] == list(range(1, 101))


def test_a_lost_delivery_never_arrives_and_its_sender_does_not_know(run: Run) -> None:
    """The second of three is lost; its sender is told 202, and the receipt says so."""
    way = road(run, deliver("proxy", "lose", at_delivery(2)))
    assert [way.send(str(number))[0] for number in (1, 2, 3)] == [200, 202, 200]
    assert way.bodies == ["1", "3"]
    run.wait_for_faults()
    (receipt,) = run.receipts
    assert (receipt.kind, receipt.when, receipt.fault) == ("lose-delivery", "at delivery 2", 0)
    assert receipt.evidence == "delivery 2 (POST /hooks) was not carried; its sender was told 202"
    assert judged(run) is Verdict.HELD


def test_a_lost_delivery_may_close_the_connection(run: Run) -> None:
    """With no status, the sender sees the connection end without an answer."""
    way = road(run, deliver("proxy", "lose", at_delivery(1), status=None))
    with pytest.raises(http.client.RemoteDisconnected):
        way.send()
    assert (way.send("2"), way.bodies) == ((200, b"2"), ["2"])


def test_all_deliveries_of_a_path_can_be_lost(run: Run) -> None:
    """From the second on, and of one path; others pass, and are not counted."""
    way = road(run, deliver("proxy", "lose", at_delivery(2, count=None, path="/hooks")))
    for number, path in enumerate(("/other", "/hooks", "/other", "/hooks", "/hooks/a")):
        way.send(str(number), path)
    assert way.bodies == ["0", "1", "2"]
    assert [each.outcome for each in way.proxy.wait_for_deliveries(5)][3:] == ["lose-delivery"] * 2


def test_a_delivery_that_does_not_come_has_no_receipt(run: Run) -> None:
    """A toxic for the ninth of one delivery did not strike:
    the run decides nothing, and says what came.
    """
    way = road(run, deliver("proxy", "lose", at_delivery(9)))
    way.send()
    assert judged(run) is Verdict.INCONCLUSIVE
    (receipt,) = run.receipts
    assert not receipt.fired
    assert "of 1 delivery that came, none was struck" in receipt.evidence


def test_a_late_delivery_arrives_late(run: Run) -> None:
    """While one is held back, another passes it."""
    way = road(run, deliver("proxy", "delay", at_delivery(1), delay_s=0.3))
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(way.send, "late")
        run.wait_until(lambda: _is_taken(way.proxy.port), what="the first delivery to be on its way")
        way.send("soon")
        assert late.result() == (200, b"late")
    assert way.bodies == ["soon", "late"]


def _is_taken(port: int) -> bool:
    """Tell whether somebody is connected to this port: the kernel says so."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_doubled_delivery_arrives_as_often_as_planned(run: Run, at_once: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Three copies, byte for byte, and one answer."""
    way = road(run, deliver("proxy", "duplicate", at_delivery(1), copies=3, at_once=at_once))
    assert way.send("again") == (200, b"again")
    assert way.bodies == ["again"] * 3
    (delivery,) = way.proxy.wait_for_deliveries(1)
    assert (delivery.outcome, delivery.arrivals) == ("duplicate-delivery", 3)


def test_a_reordered_delivery_arrives_behind_later_ones(run: Run) -> None:
    """A sender that does not wait, since it was told 202 at once, sends two more,
    which arrive first.
    """
    way = road(run, deliver("proxy", "reorder", at_delivery(1), behind=2, status=202, hold_s=20.0))
    assert [way.send(str(number))[0] for number in (1, 2, 3)] == [202, 200, 200]
    run.wait_for_faults()
    assert way.bodies == ["2", "3", "1"]
    assert run.receipts[0].evidence.endswith("was carried after 2 later one(s)")


def test_a_delivery_that_nobody_overtook_was_not_reordered(run: Run) -> None:
    """It is carried after the longest wait, and the fault has not fired."""
    way = road(run, deliver("proxy", "reorder", at_delivery(1), hold_s=0.05))
    assert way.send("alone") == (200, b"alone")
    assert [each.outcome for each in way.proxy.wait_for_deliveries(1)] == ["carried"]
    assert judged(run) is Verdict.INCONCLUSIVE


def test_a_truncated_delivery_arrives_in_part(run: Run) -> None:
    """The header promises ten bytes, four arrive, and the sender gets no answer."""
    way = road(run, deliver("proxy", "truncate", at_delivery(1), bytes_kept=4))
    with pytest.raises(http.client.RemoteDisconnected):
        way.send("0123456789")
    run.wait_until(lambda: way.arrivals, what="the part to arrive")
    assert [(entry["body"], entry["is_whole"]) for entry in way.arrivals] == [("0123", False)]


@pytest.mark.parametrize("carried", [False, True])
def test_a_refused_delivery_may_have_arrived(run: Run, carried: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The sender is told 502 whether the server has it or not: it cannot know."""
    way = road(run, deliver("proxy", "refuse", at_delivery(1), status=502, carried=carried))
    assert way.send("1")[0] == 502
    assert way.bodies == ["1"] * carried


@pytest.mark.parametrize("carried", [False, True])
def test_a_cut_connection_is_reset(run: Run, carried: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Before the server saw it, or after the server answered: to the sender it is the same."""
    way = road(run, deliver("proxy", "cut", at_delivery(1), carried=carried))
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        way.send("1")
    run.wait_for_faults()
    assert way.bodies == ["1"] * carried
    assert way.send("2") == (200, b"2")


@pytest.mark.parametrize("carried", [False, True])
def test_a_stalled_delivery_gets_no_answer(run: Run, carried: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The sender runs into its own time limit; others are carried meanwhile."""
    way = road(run, deliver("proxy", "stall", at_delivery(1), carried=carried))
    with pytest.raises(TimeoutError):
        way.send("1", timeout_s=0.2)
    assert way.send("2") == (200, b"2")
    assert way.bodies == ["1"] * carried + ["2"]
    assert run.history is not None
    run.wait_for_faults()


def test_an_unchanged_client_goes_through_its_proxy_setting(run: Run) -> None:
    """A program that honours http_proxy needs no other address:
    the request names the server itself.
    """
    way = road(run, deliver("proxy", "duplicate", at_delivery(1)))
    server = run.spawn(targets.serve_http, name="other", kwargs={"log": str(run.directory / "other.jsonl")})
    (serving,) = server.wait_for("serving", kind="note")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": way.proxy.url}))
    with opener.open(f"http://127.0.0.1:{serving.value}/made?a=1", data=b"x", timeout=20) as response:
        assert (response.status, response.read()) == (201, b"x")
    arrived = [json.loads(line) for line in (run.directory / "other.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["body"]) for entry in arrived] == [("/made?a=1", "x")] * 2
    assert way.bodies == []


def test_nothing_leaves_this_machine(run: Run) -> None:
    """A request for another host is refused, and said to be."""
    way = road(run)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": way.proxy.url}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open("http://192.0.2.1/hooks", data=b"x", timeout=20)
    assert refused.value.code == 502
    assert b"must be on loopback" in refused.value.read()
    refused.value.close()


def test_a_server_that_is_not_there_is_told_apart_from_a_fault(run: Run) -> None:
    """Nobody listens: the sender gets 502, the delivery is unreachable, and no fault has fired."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    proxy = run.proxy(f"http://127.0.0.1:{port}")
    status, text = Road(proxy, run.directory / "none").send()
    assert status == 502
    assert b"could not carry this" in text
    assert [each.outcome for each in proxy.wait_for_deliveries(1)] == ["unreachable"]


def test_what_is_no_http_is_told_so(run: Run) -> None:
    """A sender that speaks something else gets 400, and the proxy lives on."""
    way = road(run)
    with socket.create_connection(("127.0.0.1", way.proxy.port), timeout=20) as client:
        client.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert b" 400 " in client.recv(1000)
    assert way.send("1") == (200, b"1")


def test_a_fault_is_a_real_one_only_with_the_proxy_it_names(run: Run) -> None:
    """A plan for a fault proxy that was never started does not fire."""
    run.plan(deliver("messenger", "lose", at_delivery(1)))
    assert judged(run) is Verdict.INCONCLUSIVE
    assert "no agent called 'messenger'" in run.receipts[0].evidence


@pytest.mark.parametrize(
    ("upstream", "what"),
    [("https://127.0.0.1:1", "on loopback"), ("http://192.0.2.1", "on loopback"), ("127.0.0.1:80", "on loopback")],
)
def test_an_upstream_elsewhere_is_refused(run: Run, upstream: str, what: str) -> None:
    """Only plain HTTP on loopback."""
    with pytest.raises(UsageError, match=what):
        run.proxy(upstream)


def test_a_plan_of_deliveries_reads_like_any_other(run: Run) -> None:
    """Wrong toxics, parameters and numbers are told before anything starts."""
    with pytest.raises(UsageError, match=r"a toxic must be one of cut, .*; got 'loose'"):
        deliver("proxy", "loose", at_delivery())
    with pytest.raises(UsageError, match="parameters of delay-delivery must be delay_s; got 'delay'"):
        deliver("proxy", "delay", at_delivery(), delay=3)
    with pytest.raises(UsageError, match="copies must be a whole number from 2 to 100; got 1"):
        deliver("proxy", "duplicate", at_delivery(), copies=1)
    with pytest.raises(UsageError, match="carried must be True or False; got 'yes'"):
        deliver("proxy", "cut", at_delivery(), carried="yes")
    with pytest.raises(UsageError, match=r"must be 1 or more; got 0\. Count from 1"):
        at_delivery(0)
    with pytest.raises(UsageError, match="count must be 1 or more"):
        at_delivery(1, count=0)
    with pytest.raises(UsageError, match=r"time of lose-delivery must be at_delivery\(...\); got now"):
        run.plan(Fault(kind="lose-delivery", agent="proxy", when=Now()))
    with pytest.raises(UsageError, match=r"got at_delivery\(...\). A fault proxy counts deliveries"):
        run.plan(Fault(kind="kill", agent="proxy", when=AtDelivery()))


def test_toxics_are_drawn_from_the_seed(run: Run) -> None:
    """The same seed draws the same; another one, something else; never nothing."""
    drawn = [
        draw_deliveries("proxy", seed.stream(root, "deliveries"), deliveries=40, share=0.3) for root in ("a", "a", "b")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {fault.kind for fault in drawn[0]} == {"lose-delivery", "duplicate-delivery"}
    assert len(draw_deliveries("proxy", seed.stream("a"), deliveries=5, share=0.0)) == 1
    run.plan(*drawn[0])
    with pytest.raises(UsageError, match="share from 0 to 1"):
        draw_deliveries("proxy", seed.stream("a"), deliveries=5, share=2.0)


def test_every_toxic_is_described_and_survives_json() -> None:
    """Each toxic with its own parameters is a value of a plan like any other."""
    kinds = [kind.removesuffix("-delivery") for kind in REGISTRY if kind.endswith("-delivery")]
    assert len(kinds) == 12
    faults = tuple(deliver("proxy", kind, at_delivery(2, count=3)) for kind in kinds)
    whole = Plan(seed="1", scenario="x", faults=faults)
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Plan) == whole
    assert all("at delivery 2 to 4" in plan.describe(fault) for fault in faults)
