"""What a client of an LLM API meets: each toxic has a receipt, and a twin that it brings down."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.faults.toxics import deliver
from pytest_chaos.model.plan import at_delivery
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.faults.proxy import FaultProxy
    from pytest_chaos.runtime.run import Run

WORDS = ["The", "answer", "is", "forty", "two"]
EVENTS = [f"data: {json.dumps({'text': word})}\n\n" for word in WORDS] + ["data: [DONE]\n\n"]
CALL = {"tool_calls": [{"function": {"name": "weather", "arguments": json.dumps({"city": "Bern", "days": 3})}}]}


class Api(BaseHTTPRequestHandler):
    """A small LLM API: a stream of events, or a call of a tool."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        body = ("".join(EVENTS) if self.path == "/stream" else json.dumps(CALL)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if self.path == "/stream" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def api(run: Run) -> Iterator[FaultProxy]:
    """Serve behind a fault proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield run.proxy(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def fetched(proxy: FaultProxy, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask for a path; return what came."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response, response.read()


def text_of(body: bytes, *, needs_end: bool) -> str | None:
    """Return the text of a stream; a twin does not ask for its end."""
    blocks = body.decode().split("\n\n")
    if needs_end and "data: [DONE]" not in blocks:
        return None
    words = []
    for block in blocks:
        try:
            words.append(json.loads(block.removeprefix("data: "))["text"])
        except ValueError:
            continue
    return " ".join(words)


def asked(proxy: FaultProxy, *, obeys: bool) -> tuple[int, list[float]]:
    """Ask until it is answered, four times at most; return the status, and the pauses kept.

    The twin tries again at once.
    """
    pauses: list[float] = []
    for _ in range(4):
        response, _ = fetched(proxy, "/call")
        if response.status != 429:
            break
        pauses.append(float(response.headers["Retry-After"]) if obeys else 0.0)
    return response.status, pauses


def called(proxy: FaultProxy, *, is_careful: bool) -> dict[str, Any]:
    """Return what the tool is called with; the twin takes what it can read of it."""
    arguments = json.loads(fetched(proxy, "/call")[1])["tool_calls"][0]["function"]["arguments"]
    try:
        found: dict[str, Any] = json.loads(arguments)
    except ValueError as error:
        return {"is_error": True, "text": str(error)} if is_careful else {}
    return found


def read_within(proxy: FaultProxy, bound_s: float | None) -> str | None:
    """Read a stream, in a time for all of it; the twin bounds each read alone."""
    began_s = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)) as connection:
        connection.request("GET", "/stream")
        with connection.getresponse() as response:
            body = b""
            while part := response.read1(100):
                body += part
                if bound_s is not None and time.monotonic() - began_s > bound_s:
                    return None
    return text_of(body, needs_end=True)


def evidence(run: Run) -> str:
    """Return the evidence of the one receipt, which must have fired."""
    run.wait_for_faults()
    (receipt,) = run.receipts
    assert receipt.fired
    run.expect("it came to this", observed=True, holds=True)
    assert run.conclude().verdict is Verdict.HELD
    return receipt.evidence


def test_a_stream_is_cut_within_an_event(run: Run) -> None:
    """Without frames the cut looks like an end: only the missing last event tells."""
    run.plan(deliver("proxy", "cut-stream", at_delivery(1, count=2), framed=False, event=4))
    with api(run) as proxy:
        bodies = [fetched(proxy, "/stream")[1] for _ in range(3)]
    assert bodies[0] == bodies[1] == "".join(EVENTS)[: len(bodies[0])].encode()
    assert text_of(bodies[0], needs_end=True) is None
    assert text_of(bodies[0], needs_end=False) == "The answer is"  # the twin answers with that
    assert text_of(bodies[2], needs_end=True) == " ".join(WORDS)
    assert f"was cut within event 4 of 6 of its answer, after {len(bodies[0])} of" in evidence(run)


def test_a_cut_in_frames_is_noticed_by_http(run: Run) -> None:
    """The last chunk is missing."""
    run.plan(deliver("proxy", "cut-stream", at_delivery(1)))
    with api(run) as proxy, pytest.raises(http.client.IncompleteRead):
        fetched(proxy, "/stream")[1]
    assert "was cut within event 3 of 6" in evidence(run)


@pytest.mark.parametrize(("obeys", "pauses"), [(True, [7.0, 7.0]), (False, [0.0, 0.0])])
def test_a_storm_of_429_says_when_to_come_back(run: Run, pauses: list[float], *, obeys: bool) -> None:
    """Two are refused, and the third is answered; the twin kept no pause."""
    run.plan(deliver("proxy", "storm", at_delivery(1, count=2), retry_after_s=7))
    with api(run) as proxy:
        assert asked(proxy, obeys=obeys) == (200, pauses)
        assert [each.outcome for each in proxy.wait_for_deliveries(3)][:2] == ["storm-delivery"] * 2
    assert "its sender was told 429, and to come back after 7 s" in evidence(run)


def test_the_arguments_of_a_tool_are_no_json(run: Run) -> None:
    """The answer is JSON, and the text within it is not; the twin calls the tool with nothing."""
    run.plan(deliver("proxy", "malform", at_delivery(1, count=2)))
    with api(run) as proxy:
        assert called(proxy, is_careful=True)["is_error"]
        assert called(proxy, is_careful=False) == {}
        assert called(proxy, is_careful=True) == {"city": "Bern", "days": 3}
    assert "characters of 'arguments' in its answer: no JSON any more" in evidence(run)


@pytest.mark.parametrize(("bound_s", "text"), [(0.05, None), (None, " ".join(WORDS))])
def test_a_body_trickles(run: Run, bound_s: float | None, text: str | None) -> None:
    """No read waits for long, and all of it does: the twin never gives up."""
    run.plan(deliver("proxy", "trickle", at_delivery(1), bytes_each=10, pause_s=0.02))
    with api(run) as proxy:
        assert read_within(proxy, bound_s) == text
        assert " pieces of its answer, 0.02 s apart" in evidence(run)


def test_what_cannot_be_broken_is_no_fault(run: Run) -> None:
    """A stream without such an event, an answer without such a field: carried, and no receipt."""
    run.plan(
        deliver("proxy", "cut-stream", at_delivery(1), event=99),
        deliver("proxy", "malform", at_delivery(2), field="no"),
    )
    with api(run) as proxy:
        assert text_of(fetched(proxy, "/stream")[1], needs_end=True) == " ".join(WORDS)
        assert called(proxy, is_careful=True) == {"city": "Bern", "days": 3}
        proxy.wait_for_deliveries(2)
    run.expect("it came to this", observed=True, holds=True)
    assert run.conclude().verdict is Verdict.INCONCLUSIVE
    assert not any(receipt.fired for receipt in run.receipts)
