"""A tracker and a forge of our own, over real HTTP:
what they know lies in a ``World``, and what happens they deliver.

The tracker: ``GET /projects/P/issues?state=S&limit=N&cursor=C``, ``PUT /projects/P/issues/KEY
{"state", "repo"}``. The forge: ``POST /repos/R/pushes {"branch", "sha"}``, ``PUT
/repos/R/commits/SHA/status {"state"}``, ``GET /repos/R/commits/REF/status``, where a ref is a
commit or a branch.

Each change is delivered once: Standard Webhooks from the tracker, GitHub's or Gitea's form from the
forge. A delivery that is lost is lost, since nobody tries again. Deliveries are sent before the
change is answered, so a test that has the answer knows that they have been on their way.

``MOODS`` are the ways in which a list of issues can go wrong; ``World.set_mood`` switches them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import sys
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from standardwebhooks import Webhook

from scenarios.webhooks.world import World
from scenarios.work.agents import import_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos import Marks

import_now()
KEY: Final = "a secret of scenarios, 32 bytes.."
SECRET: Final = base64.b64encode(KEY.encode()).decode()
TOKEN: Final = "a-token-of-scenarios"  # noqa: S105 - of a server that lives for a test
DELIVERY_TIMEOUT_S: Final = 30.0
_DRIBBLE_S: Final = 0.02


def serve(marks: Marks, folder: str, port: int = 0) -> None:
    """Serve the world of this folder on loopback, and mark the port, until killed."""
    with make_server(World(folder), port) as server:
        marks.note("serving", value=server.server_address[1])
        server.serve_forever()


def make_server(world: World, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of this world that is not serving yet."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"world": world}))
    server.daemon_threads = True
    return server


def main(folder: str) -> None:
    """Serve for a person or a test; the first line of output is the port.

    Run ``python -m scenarios.webhooks.tracker FOLDER``.
    """
    with make_server(World(folder)) as server:
        print(server.server_address[1], flush=True)  # noqa: T201 - it is what was asked for
        server.serve_forever()


class Client:
    """A client of tracker and forge, which changes the world over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port

    def move(self, key: str, state: str, *, project: str = "core", repo: str = "core/app") -> None:
        """Move an issue to a state; it is made if it is new."""
        self._send("PUT", f"/projects/{quote(project)}/issues/{quote(key)}", {"state": state, "repo": repo})

    def push(self, repo: str, branch: str, sha: str) -> None:
        """Push a commit to a branch."""
        self._send("POST", f"/repos/{repo}/pushes", {"branch": branch, "sha": sha})

    def set_status(self, repo: str, sha: str, state: str) -> None:
        """Set the result of continuous integration for a commit."""
        self._send("PUT", f"/repos/{repo}/commits/{sha}/status", {"state": state})

    def status(self, repo: str, ref: str) -> str:
        """Return the result of continuous integration, ``unknown`` without one."""
        found = self._send("GET", f"/repos/{repo}/commits/{quote(ref, safe='')}/status", None)
        return str(found.get("state", "unknown"))

    def _send(self, method: str, path: str, content: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * DELIVERY_TIMEOUT_S)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            return json.loads(answer.read())
        finally:
            connection.close()


def forms(source: str, event: str, body: str, moment: datetime) -> tuple[str, dict[str, str]]:
    """Return a new delivery id and the headers with which a source sends this body."""
    delivery_id = f"msg_{uuid.uuid4().hex}"
    headers = {"Content-Type": "application/json"}
    if source == "tracker":
        signature = Webhook(SECRET).sign(delivery_id, moment, body)
        stamp = str(int(moment.timestamp()))
        return delivery_id, headers | {
            "webhook-id": delivery_id,
            "webhook-timestamp": stamp,
            "webhook-signature": signature,
        }
    digest = hmac.new(KEY.encode(), body.encode(), hashlib.sha256).hexdigest()
    name, signed, prefix = {
        "github": ("X-GitHub", "X-Hub-Signature-256", "sha256="),
        "gitea": ("X-Gitea", "X-Gitea-Signature", ""),
    }[source]
    return delivery_id, headers | {
        f"{name}-Delivery": delivery_id,
        f"{name}-Event": event,
        signed: prefix + digest,
    }


def send(url: str, headers: dict[str, str], body: str) -> str:
    """Send a delivery, once; return the status, or the error."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=DELIVERY_TIMEOUT_S)
    try:
        connection.request("POST", parts.path, body.encode(), headers)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def deliver(world: World, source: str, event: str, content: object) -> None:
    """Deliver to where this source is to be sent, if anywhere, once, and forget it."""
    if (url := world.hook_of(source)) is None:
        return
    body = json.dumps(content)
    moment = datetime.fromtimestamp(world.clock.now() // 1_000_000, tz=UTC)
    delivery_id, headers = forms(source, event, body, moment)
    request = (url, headers, body)
    world.note_sent(source, event, delivery_id, send(*request), request)


class _Handler(BaseHTTPRequestHandler):
    """Answers from the world."""

    world: World
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a query."""
        parts = urlsplit(self.path)
        match [unquote(part) for part in parts.path.strip("/").split("/")]:
            case _ if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "no token, or another one"})
            case ["projects", project, "issues"]:
                asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
                mood = self.world.take_mood()
                if mood is None:
                    self.answer(200, self.page(project, asked))
                else:
                    MOODS[mood[0]](self, project, asked, mood[1])
            case ["repos", *repo, "commits", ref, "status"]:
                found = self.world.commit("/".join(repo), ref)
                self.answer(
                    *((200, {"sha": found[0], "state": found[1]}) if found else (404, {"error": "no such ref"}))
                )
            case _:
                self.answer(404, {"error": f"there is no {parts.path}"})

    def do_PUT(self) -> None:
        """Change something that has a name, and deliver that it has changed."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match [unquote(part) for part in self.path.strip("/").split("/")]:
            case ["projects", project, "issues", key]:
                issue = {"key": key, "state": content["state"], "repo": content["repo"]}
                if self.world.set_issue(project, **issue):
                    deliver(self.world, "tracker", "", {"type": "issue.state_changed", "data": issue})
                self.answer(200, issue)
            case ["repos", *repo, "commits", sha, "status"]:
                branch = self.world.set_commit("/".join(repo), sha, content["state"])
                status = {"sha": sha, "state": content["state"], "repository": {"full_name": "/".join(repo)}}
                branches = {"branches": [{"name": branch}] if branch else []}
                deliver(self.world, "github", "status", status | branches)
                deliver(self.world, "gitea", "status", status)  # which does not say where the commit is
                self.answer(200, status | branches)
            case _:
                self.answer(404, {"error": f"there is no {self.path}"})

    def do_POST(self) -> None:
        """Take a push."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        repo = unquote(self.path).strip("/").removeprefix("repos/").removesuffix("/pushes")
        self.world.set_commit(repo, content["sha"], "pending", content["branch"])
        push = {"ref": f"refs/heads/{content['branch']}", "after": content["sha"], "repository": {"full_name": repo}}
        for source in ("github", "gitea"):
            deliver(self.world, source, "push", push)
        self.answer(201, push)

    def page(self, project: str, asked: dict[str, str]) -> dict[str, Any]:
        """Return a proper page of issues."""
        limit = int(asked.get("limit", "100"))
        found = self.world.issues(project, asked["state"], int(asked.get("cursor", "0")), limit)
        issues = [dict(zip(("key", "state", "repo", "updated_at"), row[1:], strict=True)) for row in found]
        return {"issues": issues, "next_cursor": str(found[-1][0]) if len(found) == limit else None}

    def answer(self, status: int, content: object, **headers: str) -> None:
        """Send JSON, or a text as it is."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def dribble(self) -> None:
        """Send a byte now and then, until the other side hangs up."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        pause = threading.Event()
        try:
            while not pause.wait(_DRIBBLE_S):  # waits because to be slow is the fault
                self.wfile.write(b" ")
        except OSError:
            self.close_connection = True

    def cut(self, body: bytes) -> None:
        """Announce a longer body than is sent, and hang up."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 100))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


def _turned(handler: _Handler, project: str, asked: dict[str, str], value: str) -> None:
    del value
    page = handler.page(project, asked)
    handler.answer(200, page | {"next_cursor": "1" if asked.get("cursor") == "2" else "2"})


def _endless(handler: _Handler, project: str, asked: dict[str, str], value: str) -> None:
    del value
    handler.answer(200, handler.page(project, asked) | {"next_cursor": str(int(asked.get("cursor", "0")) + 1)})


def _unfiltered(handler: _Handler, project: str, asked: dict[str, str], value: str) -> None:
    handler.answer(200, handler.page(project, asked | {"state": value}))


MOODS: Final[dict[str, Callable[[_Handler, str, dict[str, str], str], None]]] = {
    "too-many-requests": lambda handler, _, __, value: handler.answer(
        429, {"error": "slow down"}, **({"Retry_After": value} if value else {})
    ),
    "unavailable": lambda handler, _, __, value: handler.answer(
        503, {"error": "back soon"}, **({"Retry_After": value} if value else {})
    ),
    "broken": lambda handler, _, __, value: handler.answer(int(value or "500"), b"Internal Server Error"),
    "refused": lambda handler, _, __, value: handler.answer(int(value or "403"), {"error": "not for you"}),
    "html": lambda handler, _, __, ___: handler.answer(
        200, b"<html>We are rebuilding.</html>", Content_Type="text/html"
    ),
    "wrong-types": lambda handler, _, __, value: handler.answer(200, (value or '{"issues": {}}').encode()),
    "too-large": lambda handler, _, __, value: handler.answer(200, b" " * int(value)),
    "redirected": lambda handler, _, __, value: handler.answer(302, b"", Location=value),
    "dribbling": lambda handler, _, __, ___: handler.dribble(),
    "cut": lambda handler, project, asked, _: handler.cut(json.dumps(handler.page(project, asked)).encode()),
    "turning-in-a-circle": _turned,
    "endless": _endless,
    "unfiltered": _unfiltered,
}


if __name__ == "__main__":
    main(sys.argv[1])
