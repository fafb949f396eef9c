"""What the watcher adds to a network call of an agent that takes part in a partition.

Run by hand: ``python tests/benchmarks/faults/benchmark_answers.py``. A child writes bytes to a
connected socket on loopback: without a filter, watched while nothing is cut, and watched while
others are cut off. Medians of rounds, in one run.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import threading
import time
from multiprocessing import Array
from typing import Any, Final

from pytest_chaos.network.answers import CutRule, Network, NetworkAnswers, network_filter
from pytest_chaos.trace.kernel import Filter, Listener, borrow_descriptor

CALLS: Final = 2000
ROUNDS: Final = 5


def write_all(end: socket.socket) -> float:
    """Write one byte again and again, and return how long one takes, in microseconds."""
    rounds = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        for _ in range(CALLS):
            os.write(end.fileno(), b"x")
        rounds.append((time.perf_counter() - began_s) / CALLS * 1e6)
    return statistics.median(rounds)


def work(port: int, shared: Any) -> None:
    """Be the child: measure, put the filter on, and measure twice; all is told in shared memory."""
    end = socket.create_connection(("127.0.0.1", port))
    shared[0] = write_all(end)
    shared[1] = Filter(network_filter(steps=False)).put_on() + 1
    for place in (2, 3):
        while shared[4] < place:
            time.sleep(0.001)  # sleeps because the parent says in shared memory when it is ready
        shared[place] = write_all(end)
    os._exit(0)


def main() -> None:
    """Measure, and print the medians."""
    shared = Array("d", 5, lock=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if (child := os.fork()) == 0:
            work(server.getsockname()[1], shared)
        end, _ = server.accept()

        def drain() -> None:
            while end.recv(1 << 16):
                pass

        threading.Thread(target=drain, daemon=True).start()
        while not shared[1]:
            time.sleep(0.001)  # sleeps because the child says in shared memory which descriptor it has
        listener = Listener(borrow_descriptor(child, int(shared[1]) - 1))
        network = Network(os.devnull)
        answers = NetworkAnswers("a", child, listener, network)
        poll = select.poll()
        poll.register(listener.descriptor, select.POLLIN)
        shared[4] = 2
        while not shared[3]:
            if shared[2] and not network.rules:
                cuts = (("a", "c"), ("c", "a"))
                network.rules.append(CutRule("rule", cuts, "a", "", "EHOSTUNREACH", 0.0))
                shared[4] = 3
            is_ready = poll.poll(1)
            if is_ready and (call := listener.receive()) is not None and not answers.answer(call):
                listener.let_pass(call)
        os.waitpid(child, 0)
    plain, quiet, cut = shared[0], shared[2], shared[3]
    print(f"a write to a socket: {plain:.1f} us; watched {quiet:.1f} us; while others are cut off {cut:.1f} us")


if __name__ == "__main__":
    main()
