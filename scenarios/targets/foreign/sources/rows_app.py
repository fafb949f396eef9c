"""An application with rows in SQLite, for ASGI and WSGI: POST /7 puts one, GET / lists them."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any


def answer(method: str, path: str) -> str:
    """Put a row and commit it, or list all rows."""
    rows = sqlite3.connect("rows.db", isolation_level=None)
    rows.execute("PRAGMA journal_mode=wal")
    rows.execute("PRAGMA synchronous=full")
    rows.execute("CREATE TABLE IF NOT EXISTS rows (key INTEGER PRIMARY KEY)")
    if method == "POST":
        rows.execute("INSERT INTO rows VALUES (?)", (int(path[1:]),))
    found = "\n".join(str(key) for (key,) in rows.execute("SELECT key FROM rows"))
    rows.close()
    return found


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request by a thread."""
    if scope["type"] != "http":
        return
    del receive
    text = await asyncio.to_thread(answer, scope["method"], scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def wsgi(environment: Any, start_response: Any) -> list[bytes]:
    """Answer a request."""
    text = answer(environment["REQUEST_METHOD"], environment["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text.encode()]
