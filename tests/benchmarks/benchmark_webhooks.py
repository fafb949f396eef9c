"""How many deliveries a second one receiver accepts durably,
and how long a sender waits at half of that.

Run by hand: ``python tests/benchmarks/benchmark_webhooks.py [FOLDER]``. The receiver (uvicorn,
signature, inbox, commit with WAL and FULL) is one process; the senders are another, over kept
connections; FOLDER is on the disk to measure. Deliveries are signed beforehand. The raw limit is
printed too: INSERT and COMMIT of the same rows one by one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from durable_agents import open_store
from durable_agents.store.rows import StoredDelivery
from durable_agents.webhooks.inbox import Inbox
from durable_agents.webhooks.receiver import Receiver
from durable_agents.webhooks.signatures import StandardWebhooks
from standardwebhooks import Webhook

KEY = b"0123456789abcdef0123456789abcdef"
COUNT = 6000
SENDERS = 32
ROUNDS = 3


def serve(listener: socket.socket, path: str) -> None:
    """Be the receiver until the process is ended."""
    import uvicorn

    with open_store(path) as store:
        receiver = Receiver(Inbox(store), {"tracker": StandardWebhooks(base64.b64encode(KEY).decode())})
        config = uvicorn.Config(receiver, log_config=None, access_log=False, http="httptools")
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def requests(first: int, count: int) -> list[bytes]:
    """Return signed deliveries, ready to be sent."""
    webhook, at_s = Webhook(KEY), int(time.time())
    made = []
    for number in range(first, first + count):
        body = json.dumps(
            {"type": "issue.state_changed", "data": {"key": f"ORCH-{number}", "state": "Approved", "pad": "x" * 1000}}
        )
        signature = webhook.sign(f"msg_{number}", datetime.fromtimestamp(at_s, tz=UTC), body)
        head = (
            f"POST /hooks/tracker HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nwebhook-id: msg_{number}\r\n"
            f"webhook-timestamp: {at_s}\r\nwebhook-signature: {signature}\r\n\r\n"
        )
        made.append((head + body).encode())
    return made


async def send_all(port: int, deliveries: list[bytes], every_s: float) -> tuple[float, list[float]]:
    """Send over kept connections; with ``every_s``, at that pace.
    Return the time it took and each sender's wait.
    """
    waits: list[float] = []
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (delivery := await queue.get()) != b"":
            began_s = time.perf_counter()
            writer.write(delivery)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202"), head
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            waits.append(time.perf_counter() - began_s)
        writer.close()

    began_s = time.perf_counter()
    senders = [asyncio.create_task(sender()) for _ in range(SENDERS)]
    for number, delivery in enumerate(deliveries):
        if every_s:
            # sleeps because a load is a pace: the next delivery is due then
            await asyncio.sleep(max(0.0, began_s + number * every_s - time.perf_counter()))
        queue.put_nowait(delivery)
    for _ in senders:
        queue.put_nowait(b"")
    await asyncio.gather(*senders)
    return time.perf_counter() - began_s, waits


def raw(path: str, count: int) -> float:
    """Return how many rows a second one by one commits take."""
    with open_store(path) as store:
        inbox = Inbox(store)
        rows = [StoredDelivery(0, "raw", f"id:{n}", f"msg_{n}", "", "x" * 1100, 1) for n in range(count)]
        began_s = time.perf_counter()
        for row in rows:
            inbox.accept([row])
        return count / (time.perf_counter() - began_s)


def _listener() -> socket.socket:
    """Return a listener whose connections asyncio takes for TCP,
    and so sends on at once (TCP_NODELAY).
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def main() -> None:
    """Measure full load, then half load, ``ROUNDS`` times by turns."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    figures: dict[str, list[Any]] = {"full": [], "half": [], "raw": []}
    with tempfile.TemporaryDirectory(dir=folder) as work, closing(_listener()) as listener:
        server = multiprocessing.Process(target=serve, args=(listener, str(Path(work) / "inbox.db")), daemon=True)
        server.start()
        port = listener.getsockname()[1]
        for number in range(ROUNDS):
            deliveries = requests(number * 2 * COUNT, 2 * COUNT)
            took_s, _ = asyncio.run(send_all(port, deliveries[:COUNT], 0))
            figures["full"].append(COUNT / took_s)
            half = deliveries[COUNT : COUNT + COUNT // 2]
            _, waits = asyncio.run(send_all(port, half, 2 * took_s / COUNT))
            figures["half"].append(statistics.quantiles(waits, n=100)[98] * 1000)
            figures["raw"].append(raw(str(Path(work) / f"raw-{number}.db"), 1000))
        server.terminate()
    full, half_ms, one_by_one = (statistics.median(figures[name]) for name in ("full", "half", "raw"))
    print(f"accepted durably, one process: {full:.0f} /s (target: 1,500); one by one commits: {one_by_one:.0f} /s")
    print(f"99 % of senders at half that load wait less than {half_ms:.1f} ms (target: 20)")


if __name__ == "__main__":
    main()
