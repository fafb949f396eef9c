"""A payment service with a subscription, a shop that mirrors it, and the service's events."""

from __future__ import annotations

import http.client
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pytest_chaos import Marks

SERVICE = Path("service.json")
MIRROR = Path("mirror.json")


def shop(marks: Marks, *, is_mended: bool) -> None:
    """Answer webhooks for ever: keep what the event says; mended, what the service says."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            now = json.loads(SERVICE.read_text()) if is_mended else event["subscription"]
            MIRROR.write_text(json.dumps(now))
            marks.note("handled", event["type"])
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    marks.note("listening", value=server.server_address[1])
    server.serve_forever()


def subscribe(marks: Marks, *, url: str) -> None:
    """Make a subscription and activate it; tell the shop of both."""
    for kind, status in (("created", "incomplete"), ("updated", "active")):
        subscription = {"status": status, "made": 1_623_979_266}
        SERVICE.with_suffix(".new").write_text(json.dumps(subscription))
        SERVICE.with_suffix(".new").replace(SERVICE)
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/", json.dumps({"type": kind, "subscription": subscription}).encode())
        connection.getresponse().read()
        connection.close()
        marks.ack("tell", kind)
