"""The tracker and the forge of the scenarios, as a process of their own, before a real receiver."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from durable_agents import open_store
from durable_agents.errors import InvalidTrackerAnswer
from durable_agents.pipeline.tracker import HttpTracker
from durable_agents.webhooks.events import CiState, CiStatus, Pushed, StartRequested, parse
from durable_agents.webhooks.inbox import Inbox
from durable_agents.webhooks.receiver import Receiver
from durable_agents.webhooks.signatures import StandardWebhooks, gitea, github

from scenarios.webhooks.tracker import KEY, SECRET, TOKEN, Client
from scenarios.webhooks.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents import SqliteStore
    from durable_agents.webhooks.signatures import SignatureScheme

ROOT = Path(__file__).resolve().parents[2]
SCHEMES: dict[str, SignatureScheme] = {"tracker": StandardWebhooks(SECRET), "github": github(KEY), "gitea": gitea(KEY)}
SHA = "a" * 40


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(str(tmp_path / "recovery.db")) as store:
        yield store


@contextmanager
def received(store: SqliteStore, world: World) -> Iterator[None]:
    """Have all that the world sends received while the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = Receiver(Inbox(store), SCHEMES, clock=world.clock)
        server = uvicorn.Server(uvicorn.Config(receiver, log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        for source in SCHEMES:
            world.hook(source, f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/{source}")
        yield
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@contextmanager
def process(folder: Path) -> Iterator[int]:
    """Run the tracker as a process while the block lasts; yield its port."""
    command = [sys.executable, "-m", "scenarios.webhooks.tracker", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as tracker:
        assert tracker.stdout is not None
        yield int(tracker.stdout.readline())
        tracker.kill()


def test_each_change_is_delivered_once_and_accepted(tmp_path: Path, store: SqliteStore) -> None:
    """From the tracker and in both forms of the forge,
    signed at a time that the world has moved to.
    """
    world = World(tmp_path)
    world.clock.advance(86_400)
    with process(tmp_path) as port, received(store, world):
        client = Client(port)
        client.move("CORE-1", "In Progress")
        client.move("CORE-1", "In Progress")
        client.push("core/app", "feature/CORE-1", SHA)
        client.set_status("core/app", SHA, "success")
    assert [(source, event, outcome) for source, event, _, outcome in world.sent()] == [
        ("tracker", "", "202"),
        ("github", "push", "202"),
        ("gitea", "push", "202"),
        ("github", "status", "202"),
        ("gitea", "status", "202"),
    ]
    found = store.pending_deliveries(after=0, limit=10)
    assert [parse(each.source, each.event, each.body) for each in found] == [
        StartRequested("CORE-1", "core/app"),
        Pushed("core/app", "feature/CORE-1", SHA),
        Pushed("core/app", "feature/CORE-1", SHA),
        CiStatus("core/app", SHA, "feature/CORE-1", CiState.SUCCESS),
        CiStatus("core/app", SHA, "", CiState.SUCCESS),
    ]


def test_what_is_not_taken_is_not_sent_again(tmp_path: Path) -> None:
    """A delivery to a port where nobody listens is gone,
    and its change stands when the tracker's process is killed.
    """
    world = World(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world.hook("tracker", f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/tracker")
    with process(tmp_path) as port:
        Client(port).move("CORE-1", "Approved")
    with process(tmp_path) as port:
        found = list(HttpTracker(f"http://127.0.0.1:{port}", token=TOKEN).issues("core", "Approved"))
    assert [issue.key for issue in found] == ["CORE-1"]
    ((_, _, _, outcome),) = world.sent()
    assert outcome.startswith("ConnectionRefusedError")


def test_nothing_is_told_without_the_token(tmp_path: Path) -> None:
    """A caller that has another one is refused by the process, too."""
    with process(tmp_path) as port, pytest.raises(InvalidTrackerAnswer, match="401"):
        next(HttpTracker(f"http://127.0.0.1:{port}", token=TOKEN[1:]).issues("core", "Approved"))
