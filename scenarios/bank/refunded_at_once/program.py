"""A receiver of refunds that asks before it books, and a sender of one refund."""

from __future__ import annotations

import contextlib
import http.client
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "orders.db"
REFUND = 25
MEETING_S = 1.0
MEETING = threading.Barrier(2, timeout=MEETING_S)
"""Where two handlers meet that are between question and booking at once."""


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def refund(*, is_mended: bool) -> None:
    """Book the refund unless it is booked; mended, under a lock."""
    with connect() as database:
        if is_mended:
            database.execute("BEGIN IMMEDIATE")
        (state,) = database.execute("SELECT state FROM refunds").fetchone()
        with contextlib.suppress(threading.BrokenBarrierError):
            MEETING.wait()
        if state == "pending":
            database.execute("UPDATE refunds SET state = 'processed'")
            database.execute("UPDATE customers SET balance = balance + ?", (REFUND,))
        if is_mended:
            database.execute("COMMIT")


def serve(marks: Marks, *, is_mended: bool) -> None:
    """Answer webhooks for ever."""
    with connect() as database:
        database.executescript(
            "CREATE TABLE refunds (state TEXT); CREATE TABLE customers (balance INTEGER);"
            "INSERT INTO refunds VALUES ('pending'); INSERT INTO customers VALUES (0)"
        )

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            refund(is_mended=is_mended)
            marks.note("handled")
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    marks.note("listening", value=server.server_address[1])
    server.serve_forever()


def tell(marks: Marks, *, url: str) -> None:
    """Tell the receiver of the refund, once."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/", b"refund-1")
    connection.getresponse().read()
    connection.close()
    marks.ack("refund")
