"""A connector that keeps the verification state of sellers, and a sender of such events."""

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

DATABASE = "sellers.db"
EVENTS = ({"made": 1725, "state": "REQUIRED"}, {"made": 1727, "state": "VERIFIED"})


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def take_over(event: dict[str, object], *, is_mended: bool) -> None:
    """Keep the state of an event; mended, unless a newer one is kept."""
    with connect() as database:
        newer = "WHERE made < ?" if is_mended else "WHERE 1 OR made < ?"
        statement = f"UPDATE sellers SET state = ?, made = ? {newer}"  # noqa: S608 - one of two texts of ours
        database.execute(statement, (event["state"], event["made"], event["made"]))


def serve(marks: Marks, *, is_mended: bool) -> None:
    """Answer webhooks for ever."""
    with connect() as database:
        database.execute("CREATE TABLE sellers (state TEXT, made INTEGER)")
        database.execute("INSERT INTO sellers VALUES ('NEW', 0)")

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            take_over(event, is_mended=is_mended)
            marks.note("handled", event["state"])
            self.send_response(202)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    marks.note("listening", value=server.server_address[1])
    server.serve_forever()


def tell(marks: Marks, *, url: str) -> None:
    """Tell of each event, in the order in which they were made."""
    for event in EVENTS:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/", json.dumps(event).encode())
        connection.getresponse().read()
        connection.close()
        marks.ack("tell", str(event["state"]))
