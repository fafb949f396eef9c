"""A receiver of payment webhooks that adds credits to an account, and a sender of such events."""

from __future__ import annotations

import http.client
import json
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "accounts.db"
CREDITS = 10
SCHEMA = "CREATE TABLE accounts (name TEXT PRIMARY KEY, credits INTEGER); CREATE TABLE events (id TEXT PRIMARY KEY)"


def credit(event: dict[str, str], *, is_mended: bool) -> None:
    """Add the credits of an event; mended, of an event that is not in the table yet."""
    with closing(sqlite3.connect(DATABASE, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        is_new = database.execute("INSERT OR IGNORE INTO events VALUES (?)", (event["id"],)).rowcount == 1
        if is_new or not is_mended:
            database.execute("UPDATE accounts SET credits = credits + ? WHERE name = ?", (CREDITS, event["account"]))
        database.execute("COMMIT")


def serve(marks: Marks, *, is_mended: bool) -> None:
    """Answer webhooks for ever."""
    with closing(sqlite3.connect(DATABASE)) as database:
        database.executescript(SCHEMA)
        database.execute("INSERT INTO accounts VALUES ('ada', 0)")
        database.commit()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            credit(event, is_mended=is_mended)
            marks.note("handled", event["id"])
            self.send_response(204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    marks.note("listening", value=server.server_address[1])
    server.serve_forever()


def pay(marks: Marks, *, url: str, payments: int) -> None:
    """Tell the receiver of each payment, once."""
    for number in range(1, payments + 1):
        body = json.dumps({"id": f"event-{number}", "account": "ada"}).encode()
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/", body)
        connection.getresponse().read()
        connection.close()
        marks.ack("pay", number)
