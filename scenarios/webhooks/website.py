"""The moves of scenarios 11 and 12: a tracker with its forge, the way to us, a receiver,
a reconciler and a worker.

Each is a process of its own. Deliveries go from the tracker through a fault proxy to the receiver.
Time is the world's: it passes when a test says so, and everybody has then seen it pass.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import urllib.request
import weakref
from typing import TYPE_CHECKING, Any, Final

from scenarios.model.ways import check_ways
from scenarios.webhooks.tracker import KEY as FORGE_SECRET, SECRET, TOKEN, Client
from scenarios.webhooks.webhook_agents import DEFAULT, FOLDER, PROJECT, REPO, TRACKER, sha_of
from scenarios.webhooks.webhook_checks import check_executions, check_moves, check_tasks, is_quiet, stage_of
from scenarios.webhooks.world import World
from scenarios.work.checks import check_no_exceptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos import Agent, Run
    from pytest_chaos.faults.proxy import FaultProxy

KEY: Final = "CORE-1"
GRACE_S: Final = 600.0
INTERVAL_S: Final = 60.0
WAIT_S: Final = 30.0
DONE: Final = "what was received, or is queued, is done in time"


class Site:
    """Everything that a pipeline needs. ``forge`` is in whose form pushes and statuses are
    delivered.
    """

    def __init__(
        self, chaos: Run, database: Path, parts: dict[str, str], *, forge: str = "github", pipeline: str = DEFAULT
    ) -> None:
        self.chaos = chaos
        self.database = database
        self.looks = sqlite3.connect(database, isolation_level=None)
        weakref.finalize(self, self.looks.close)
        self.folder = database.parent
        self.world = World(self.folder)
        self.forge = forge
        serving = chaos.spawn("scenarios.webhooks.tracker:serve", kwargs={"folder": str(self.folder)}, name="tracker")
        self.tracker = int(serving.wait_for("serving", kind="note")[0].value)
        self.client = Client(self.tracker)
        self.common = {"folder": str(self.folder), "parts": parts | {"pipeline": pipeline}, "tracker": self.tracker}
        self.port = 0
        self.proxy: FaultProxy | None = None

    # Processes.

    def start(self, **settings: Any) -> None:
        """Start all of them: the worker first, since a reconciler has nothing to do without."""
        self.chaos.spawn("scenarios.webhooks.webhook_agents:work", kwargs=self.common, name="worker")
        self.receive()
        self.reconcile(**settings).wait_for("tick", kind="note")

    def receive(self, name: str = "receiver", *, handles: bool = True) -> Agent:
        """Start a receiver behind the proxy, on the port of the first receiver."""
        receiver, port = self._receiver(name, port=self.port, handles=handles)
        self._put_proxy_before(port)
        return receiver

    def receive_impatiently(self) -> int:
        """Start a receiver that waits only a moment for a body; return its port.

        No delivery comes there: on a busy machine it would not be patient enough.
        """
        return self._receiver("impatient", port=0, handles=False, read_timeout_s=0.1)[1]

    def _receiver(self, name: str, **keywords: Any) -> tuple[Agent, int]:
        kwargs = {**self.common, **keywords}
        receiver = self.chaos.spawn("scenarios.webhooks.webhook_agents:receive", kwargs=kwargs, name=name)
        return receiver, int(receiver.wait_for("receiving", kind="note")[0].value)

    def serve(self, *, grace_s: float, interval_s: float) -> Agent:
        """Start ``python -m durable_agents serve``: all parts but the worker in one process."""
        command = [
            sys.executable,
            "-m",
            "durable_agents",
            "serve",
            "--db",
            str(self.database),
            "--port",
            str(self.port),
        ]
        command += [
            "--gates",
            "scenarios.webhooks.served_gates:GATES",
            "--tracker-url",
            self.client.url,
            "--project",
            PROJECT,
        ]
        environment = {
            FOLDER: str(self.folder),
            TRACKER: str(self.tracker),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CORE_TRACKER_SECRET": SECRET,
            "CORE_GITHUB_SECRET": FORGE_SECRET,
            "CORE_TRACKER_TOKEN": TOKEN,
            "CORE_RECONCILE_GRACE_DEFAULT_S": str(grace_s),
            "CORE_RECONCILE_INTERVAL_S": str(interval_s),
        }
        served = self.chaos.spawn(command, env=environment, name="served")
        port = served.wait_for_output(r"listening on http://127\.0\.0\.1:(\d+)", timeout_s=WAIT_S)[1]
        self._put_proxy_before(int(port))
        return served

    def _put_proxy_before(self, port: int) -> None:
        self.port = port
        if self.proxy is None:
            self.proxy = self.chaos.proxy(f"http://127.0.0.1:{port}")
            for source in ("tracker", self.forge):
                self.world.hook(source, f"{self.proxy.url}/hooks/{source}")

    def reconcile(self, name: str = "reconciler", *, gate: str = "", **settings: Any) -> Agent:
        """Start a reconciler with the grace and the interval of this module."""
        found = {"reconcile_grace_default_s": GRACE_S, "reconcile_interval_s": INTERVAL_S, **settings}
        kwargs = {**self.common, "settings": found, "gate": gate}
        return self.chaos.spawn("scenarios.webhooks.webhook_agents:reconcile", kwargs=kwargs, name=name)

    # What people and programs outside do.

    def act(self, do: Callable[[], object]) -> None:
        """Act at the tracker or the forge; planned faults continue to fire."""
        thread = threading.Thread(target=do)
        thread.start()
        self.chaos.wait_until(lambda: not thread.is_alive(), timeout_s=2 * WAIT_S, what="the tracker to have done it")

    def move(self, key: str, state: str) -> None:
        """Move an issue."""
        self.act(lambda: self.client.move(key, state, project=PROJECT, repo=REPO))

    def judge_commit(self, key: str, state: str) -> None:
        """Give the issue's newest commit this result of continuous integration."""
        self.act(lambda: self.client.set_status(REPO, sha_of(f"feature/{key}"), state))

    # Time.

    def settle(self, *, issues: int = 1) -> None:
        """Wait until no delivery waits and no job is to be done."""
        timeout_s = WAIT_S + 2.0 * issues
        self.chaos.wait_until(lambda: is_quiet(self.looks), timeout_s=timeout_s, what="the work to be done", owed=DONE)

    def pass_time(self, duration_s: float = INTERVAL_S, *, settles: bool = True) -> None:
        """Pass time, and wait until the reconciler has looked and its effects are done."""
        until = self.world.clock.now() + round(duration_s * 1_000_000)
        self.world.clock.advance(duration_s)
        self.chaos.wait_until(
            lambda: any(mark.value["at"] >= until for mark in self.ticks()),
            timeout_s=WAIT_S,
            what="a look after it",
            owed="the reconciler looks once an interval",
        )
        if settles:
            self.settle()

    def ticks(self) -> list[Any]:
        """Return the reconciler's marks of its rounds."""
        return [mark for mark in self.chaos.agent("reconciler").marks if mark.operation == "tick"]

    def wait_for_stage(self, stage: str, *, key: str = KEY, until_s: float = GRACE_S + INTERVAL_S) -> float:
        """Pass time until the issue's task is in this stage, or ``until_s`` are over.

        Return how long it took.
        """
        self.settle()
        passed_s = 0.0
        while stage_of(self.looks, key) != stage and passed_s < until_s:
            self.pass_time()
            passed_s += INTERVAL_S
        return passed_s

    def wait_in_real_time(self, stage: str, *, key: str = KEY) -> None:
        """Wait until the issue's task is in this stage and no work is left."""
        reached = f"the task of {key} comes to stage {stage}"
        self.chaos.wait_until(
            lambda: stage_of(self.looks, key) == stage, timeout_s=WAIT_S, what=f"stage {stage}", owed=reached
        )
        self.settle()

    def status(self) -> Any:
        """Return the receiver's status page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=WAIT_S) as answer:
            return json.loads(answer.read())

    # The end.

    def told(self) -> list[str]:
        """Return the notifications of the reconciler: issue and stage."""
        file = self.folder / "told"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def judge(self, **stages: str) -> None:
        """Expect these issues, underscores for dashes, in these stages,
        each stage left once and with one job.
        """
        wanted = {key.replace("_", "-"): stage for key, stage in stages.items()}
        self.chaos.check(check_tasks(self.database, wanted), expect="one task for each issue, where it should be")
        self.chaos.check(check_moves(self.database), expect="each stage is left once, and has one job")
        self.chaos.check(check_ways(self.database), expect="each row is on a way that the model allows")
        self.chaos.check(check_executions(self.folder), expect="each stage's work is done once")
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")
