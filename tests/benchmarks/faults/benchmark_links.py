"""What a link carries and adds without faults, against the same bytes without it, in one run.

Run by hand: ``python tests/benchmarks/faults/benchmark_links.py``. The receiver is one process, the
link another, the sender this one. Rounds by turns; medians, and the processor time of the link.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_chaos.network import link, link_server
from pytest_chaos.runtime.marks import Marks

BYTES = 1 << 28
ROUNDS = 7
ASKED = 3000
CHUNK = bytes(1 << 18)


def receive(port: Any) -> None:
    """Count what each connection brings, and answer the count at its end; echo one byte at once."""
    server = socket.create_server(("127.0.0.1", 0))
    port.value = server.getsockname()[1]
    buffer = bytearray(1 << 20)
    while True:
        end, _ = server.accept()
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with end:
            total = 0
            while count := end.recv_into(buffer):
                total += count
                if count == 1:
                    end.sendall(b"y")
            with contextlib.suppress(OSError):
                end.sendall(str(total).encode())


def carry(port: Any, upstream: int, marks: str) -> None:
    """Be a link; its own note says the port."""

    class Noting(Marks):
        def note(self, operation: str, key: Any = None, value: Any = None) -> None:
            """Tell the port, too."""
            super().note(operation, key, value)
            if operation == link.READY_NOTE:
                port.value = value

    link_server.carry(Noting(marks, "link"), **link.arguments(upstream, 0, "seed"))


def started(target: Any, *arguments: Any) -> tuple[multiprocessing.Process, int]:
    """Start a process and return it with its port."""
    port = multiprocessing.Value("i", 0)
    process = multiprocessing.Process(target=target, args=(port, *arguments), daemon=True)
    process.start()
    deadline_s = time.monotonic() + 10
    while not port.value and time.monotonic() < deadline_s:
        time.sleep(0.01)  # sleeps because the other process says its port in shared memory, once
    return process, port.value


def sent_mb_per_s(port: int) -> float:
    """Send all bytes, wait until they are counted, and return the rate."""
    with socket.create_connection(("127.0.0.1", port)) as end:
        began_s = time.perf_counter()
        for _ in range(BYTES // len(CHUNK)):
            end.sendall(CHUNK)
        end.shutdown(socket.SHUT_WR)
        assert int(end.recv(100)) == BYTES
        return BYTES / 1e6 / (time.perf_counter() - began_s)


def asked_ms(ends: list[socket.socket]) -> list[float]:
    """Send one byte over each connection, and return how long each answer took."""
    taken = []
    for end in ends:
        began_s = time.perf_counter()
        end.sendall(b"x")
        end.recv(1)
        taken.append((time.perf_counter() - began_s) * 1000)
    return taken


def main() -> None:
    """Measure both ways by turns, and print the medians."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        server, port = started(receive)
        ending.callback(server.terminate)
        between, through = started(carry, port, str(Path(folder) / "marks"))
        ending.callback(between.terminate)
        rates = [(sent_mb_per_s(port), sent_mb_per_s(through)) for _ in range(ROUNDS)]
        direct, carried = (statistics.median(column) for column in zip(*rates, strict=True))
        stat = Path(f"/proc/{between.pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        per_cpu = BYTES * ROUNDS / 1e6 / cpu_s
        print(f"raw loopback {direct:,.0f} MB/s, through a link {carried:,.0f} MB/s (target: 300)")
        print(f"{per_cpu:,.0f} MB for each second of the link's processor time")
        other, there = started(receive)
        ending.callback(other.terminate)
        again, over = started(carry, there, str(Path(folder) / "marks"))
        ending.callback(again.terminate)
        near = socket.create_connection(("127.0.0.1", port))
        far = socket.create_connection(("127.0.0.1", over))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken = [asked_ms([near, far]) for _ in range(ASKED)][ASKED // 10 :]
        alone, linked = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"one byte and back: {alone:.3f} ms, through a link {linked:.3f} ms: {linked - alone:.3f} ms more")


if __name__ == "__main__":
    main()
