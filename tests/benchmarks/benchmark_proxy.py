"""What the proxy adds to a delivery without faults,
against the same delivery sent to the server itself.

Run by hand: ``python tests/benchmarks/benchmark_proxy.py``. The server is one process, the
proxy another, the sender this one; each delivery has 2 kB of body. Medians of interleaved
deliveries, in one run.
"""

from __future__ import annotations

import contextlib
import http.client
import multiprocessing
import socketserver
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_chaos.faults import proxy_server
from pytest_chaos.runtime.marks import Marks

DELIVERIES = 2000
BODY = b"x" * 2048


class _Answering(socketserver.StreamRequestHandler):
    """Answers as fast as Python can: reads up to the body's end, sends a fixed answer."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer until the sender hangs up."""
        while True:
            length = 0
            while (line := self.rfile.readline()) not in {b"", b"\r\n"}:
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if not line:
                return
            self.rfile.read(length)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def serve(port: Any) -> None:
    """Serve until the process is ended."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answering) as server:
        port.value = server.server_address[1]
        server.serve_forever()


def carry(port: Any, upstream: int, marks: str) -> None:
    """Be a fault proxy; its own note says the port."""

    class Noting(Marks):
        def note(self, operation: str, key: Any = None, value: Any = None) -> None:
            """Tell the port, too."""
            super().note(operation, key, value)
            if operation == "proxy-ready":
                port.value = value

    proxy_server.carry(Noting(marks, "proxy"), f"http://127.0.0.1:{upstream}", 0, [])


def started(target: Any, *arguments: Any) -> tuple[multiprocessing.Process, int]:
    """Start a process and return it with its port."""
    port = multiprocessing.Value("i", 0)
    process = multiprocessing.Process(target=target, args=(port, *arguments), daemon=True)
    process.start()
    deadline_s = time.monotonic() + 10
    while not port.value and time.monotonic() < deadline_s:
        time.sleep(0.01)  # sleeps because the other process says its port in shared memory, once
    return process, port.value


def send(connection: http.client.HTTPConnection) -> float:
    """Send one delivery and return how long it took, in milliseconds."""
    began_s = time.perf_counter()
    connection.request("POST", "/hooks", BODY)
    connection.getresponse().read()
    return (time.perf_counter() - began_s) * 1000


def main() -> None:
    """Send to the server and through the proxy by turns, and print the medians."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        server, port = started(serve)
        ending.callback(server.terminate)
        between, through = started(carry, port, str(Path(folder) / "marks"))
        ending.callback(between.terminate)
        ways = [http.client.HTTPConnection("127.0.0.1", each, timeout=10) for each in (port, through)]
        taken = [[send(way) for way in ways] for _ in range(DELIVERIES)][DELIVERIES // 10 :]
        direct, carried = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"direct {direct:.3f} ms, through the proxy {carried:.3f} ms: {carried - direct:.3f} ms more (target: 1)")
        slowest = statistics.quantiles([b - a for a, b in taken], n=100)[98]
        print(f"99 % of all deliveries are delayed by less than {slowest:.3f} ms")


if __name__ == "__main__":
    main()
