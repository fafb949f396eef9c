"""``python -m durable_agents serve`` as its users run it:
deliveries, a kill, an end, and their mistakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from durable_agents import DEFAULT_PIPELINE, ManualClock, open_store
from durable_agents.__main__ import settings_from
from durable_agents.errors import InvalidSetting
from durable_agents.jobs.reaper import ReaperSettings
from durable_agents.pipeline.application import Application
from durable_agents.pipeline.reconciler import ReconcilerSettings
from durable_agents.pipeline.serving import HEAD_BYTES_MAX, HeaderTimeoutProtocol
from durable_agents.webhooks.signatures import github

from tests.recovery.webhooks.test_events import issue
from tests.recovery.webhooks.test_webhooks import SECRET, signed
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents.jobs.gates import Gate

BOUND_S = 30.0
GATES = """
from durable_agents.jobs.gates import GateResult
from pathlib import Path

def ask(task):
    return GateResult(Path("green").exists())

NAMES = ("architecture_done", "ci_green", "review_approved", "tests_passed", "staging_healthy", "production_healthy")
GATES = dict.fromkeys(NAMES, ask)
NUMBER = 7
"""


RED: dict[str, Gate] = {stage.gate: lambda _: False for stage in DEFAULT_PIPELINE.stages if stage.gate}


class Service:
    """The command in a folder of its own, started as often as a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mygates.py").write_text(GATES, encoding="utf-8")
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "CORE_TRACKER_SECRET": SECRET,
            "CORE_GITHUB_SECRET": "g" * 32,
        }
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def command(self, *more: str, gates: str = "mygates:GATES") -> list[str]:
        """Return the command line."""
        return [
            sys.executable,
            "-m",
            "durable_agents",
            "serve",
            "--db",
            "core.db",
            "--gates",
            gates,
            "--port",
            "0",
            *more,
        ]

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", self.process.stdout.readline())
        assert found is not None, self.log
        self.port = int(found[1])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, and return how it ended."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        code = self.process.wait(BOUND_S)
        self.process.stdout.close()
        self.process = None
        return code

    def fail(self, *more: str, gates: str = "mygates:GATES", **environment: str) -> tuple[int, str]:
        """Run it where it cannot; return its exit code and what it says."""
        ended = subprocess.run(
            self.command(*more, gates=gates),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert ended.stdout == ""
        return ended.returncode, ended.stderr

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(encoding="utf-8")

    def wait_for_log(self, text: str) -> None:
        """Wait until it has logged this."""
        until(lambda: text in self.log, lambda: self.log)

    def ask(self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Send a request; return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND_S)
        try:
            connection.request(method, path, body.encode(), headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def deliver(self, body: str, delivery_id: str) -> int:
        """Send a delivery as the tracker does; return the status."""
        return self.ask("POST", "/hooks/tracker", body, signed(body, delivery_id))[0]

    def stage(self, key: str) -> str | None:
        """Return the stage of an issue's task, if there is one."""
        with open_store(self.folder / "core.db") as store:
            task = store.task_with_tracker_key(key)
            return None if task is None else task.stage

    def wait_for_stage(self, key: str, stage: str) -> None:
        """Wait until the task is there."""
        until(lambda: self.stage(key) == stage, lambda: self.log)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Give a service that is not started yet, and end what is left of it."""
    found = Service(tmp_path)
    yield found
    if found.process is not None:
        found.end(signal.SIGKILL)


def test_deliveries_become_tasks_and_a_signal_is_an_end(service: Service) -> None:
    """Accepted, handled at once and not at the next interval, shown by the status;
    SIGTERM ends it with 0.
    """
    service.start()
    assert service.deliver(issue("In Progress"), "msg_1") == 202
    service.wait_for_stage("ORCH-1", "analysis")
    assert service.deliver(issue("In Progress"), "msg_1") == 200
    assert service.deliver(issue("Approved"), "msg_2") == 202
    service.wait_for_stage("ORCH-1", "architecture")
    status, shown = service.ask("GET", "/status")
    assert status == 200
    assert shown["queue"] == {"queued": 2, "running": 0}
    assert {name: shown[name]["is_running"] for name in ("inbox", "reaper", "reconciler")} == dict.fromkeys(
        ("inbox", "reaper", "reconciler"), True
    )
    assert shown["reconciler"]["grace_s"]["development"] == 600.0
    assert service.end() == 0
    assert "Traceback" not in service.log


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["once", "impatiently"])
def test_a_sender_that_stalls_holds_up_the_end_for_a_while_and_is_told(service: Service, signals: list[int]) -> None:
    """It is answered 503 when the patience is over, or at once at a second Ctrl-C;
    nobody is shown a traceback.
    """
    service.start()
    assert service.process is not None
    with socket.create_connection(("127.0.0.1", service.port), timeout=BOUND_S) as connection:
        connection.sendall(b"POST /hooks/tracker HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        service.ask("GET", "/status")  # by then the other request is under way
        for number in signals[:-1]:
            service.process.send_signal(number)
            service.wait_for_log("Shutting down")
        assert service.end(signals[-1]) == 0
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"send it again" in answer
    assert "Traceback" not in service.log, service.log
    assert "Error" not in service.log, service.log


def test_what_was_accepted_is_handled_after_a_kill(service: Service) -> None:
    """Killed right after its answers, it goes on with them at the next start;
    sent again, they are known.
    """
    service.start()
    for number in range(20):
        body = issue("In Progress").replace("ORCH-1", f"ORCH-{number}")
        assert service.deliver(body, f"msg_{number}") == 202
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service.start()
    for number in range(20):
        service.wait_for_stage(f"ORCH-{number}", "analysis")
    assert service.deliver(issue("In Progress"), "msg_1") == 200
    assert service.ask("GET", "/status")[1]["queue"]["queued"] == 20


def test_a_lost_webhook_is_made_up_for_in_the_process(service: Service) -> None:
    """A task waits in development without its webhook; the gate is green;
    the loop moves it and says so.
    """
    (service.folder / "green").touch()
    service.environment |= {"CORE_RECONCILE_GRACE_DEFAULT_S": "0", "CORE_RECONCILE_INTERVAL_S": "0.05"}
    with open_store(service.folder / "core.db") as store, store.transaction() as transaction:
        transaction.execute("INSERT INTO tasks VALUES ('t', 'ORCH-9', 'created', 'development', 1, 1, 1)", ())
    service.start()
    service.wait_for_stage("ORCH-9", "review")
    assert service.end() == 0
    assert "reconciler: ORCH-9 development разблокирована (потерян webhook)" in service.log


@pytest.mark.parametrize(
    ("more", "gates", "environment", "sentence"),
    [
        ((), "mygates", {}, "--gates must be MODULE:NAME of a Mapping; got 'mygates', a module"),
        ((), "nothing:GATES", {}, "raises ModuleNotFoundError"),
        ((), "mygates:NOTHING", {}, "raises AttributeError"),
        ((), "mygates:NUMBER", {}, "got 'mygates:NUMBER', a int"),
        ((), "broken:GATES", {}, "raises SyntaxError"),
        (("--pipeline", "mygates:GATES"), "mygates:GATES", {}, "of a Pipeline; got 'mygates:GATES', a dict"),
        (("--db", "nowhere/core.db"), "mygates:GATES", {}, "must be a file in a folder that exists"),
        (
            ("--ci-gate", "no_gate"),
            "mygates:GATES",
            {},
            "ci_gate must be the gate of a stage without a human gate; got 'no_gate'",
        ),
        (("--port", "70000"), "mygates:GATES", {}, "70000 is not in the range"),
        (("--host", "203.0.113.1"), "mygates:GATES", {}, "203.0.113.1 port 0 must be free and on this machine"),
        (("--tracker-url", "ftp://x"), "mygates:GATES", {}, "must be an http or https URL"),
        (("--tracker-url", "http://127.0.0.1:1"), "mygates:GATES", {}, "The projects of the tracker must be"),
        ((), "mygates:GATES", {"CORE_TRACKER_SECRET": "", "CORE_GITHUB_SECRET": ""}, "Set one"),
        ((), "mygates:GATES", {"CORE_GITHUB_SECRET": "short"}, "CORE_GITHUB_SECRET: The secret must have 16 bytes"),
        ((), "mygates:GATES", {"CORE_RECONCILE_ENABLED": "perhaps"}, "reconcile_enabled"),
        (
            (),
            "mygates:GATES",
            {"CORE_REAPER_INTERVAL_S": "-1"},
            "reaper_interval_s must be from 0.001 to 31536000 s; got -1.0. Correct the settings.\n",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    service: Service, more: tuple[str, ...], gates: str, environment: dict[str, str], sentence: str
) -> None:
    """Exit code 3, no traceback, and no secret in it."""
    (service.folder / "broken.py").write_text("GATES = {", encoding="utf-8")
    code, said = service.fail(*more, gates=gates, **environment)
    assert code == 3
    assert sentence in said
    assert "Traceback" not in said
    assert SECRET not in said


def test_a_port_that_is_taken_is_a_mistake(service: Service) -> None:
    """With the address in the sentence."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = service.fail("--port", str(port))
    assert code == 3
    assert f"127.0.0.1 port {port} must be free" in said


def test_settings_come_from_the_environment() -> None:
    """All fields by their names in capitals; numbers and switches are read;
    what is not there has its default.
    """
    environment = {
        "CORE_RECONCILE_ENABLED": "false",
        "CORE_RECONCILE_GRACE_DEFAULT_S": "1.5",
        "CORE_RECONCILE_GRACE_OVERRIDES_JSON": '{"review": 7}',
        "CORE_REAPER_DEAD_TICKS": "3",
    }
    assert settings_from(environment, ReconcilerSettings) == ReconcilerSettings(
        reconcile_enabled=False, reconcile_grace_default_s=1.5, reconcile_grace_overrides_json='{"review": 7}'
    )
    assert settings_from(environment, ReaperSettings) == ReaperSettings(reaper_dead_ticks=3)
    with pytest.raises(InvalidSetting, match="reconcile_interval_s"):
        settings_from({"CORE_RECONCILE_INTERVAL_S": "soon"}, ReconcilerSettings)


def test_connections_without_a_request_do_not_keep_others_out(service: Service) -> None:
    """With 1,500 half-open ones, each delivery is accepted at once;
    no bound of time has to pass for it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        service.start()
        heads = [b"", b"POST /hooks/tra", b"POST /hooks/tracker HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"]
        with contextlib.ExitStack() as connections:
            for number in range(1500):
                connection = socket.create_connection(("127.0.0.1", service.port), timeout=BOUND_S)
                connections.enter_context(connection).sendall(heads[number % 3])
                if number % 100 == 99:
                    assert service.deliver(issue("In Progress"), f"msg_{number}") == 202
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert service.end() == 0
    assert "Traceback" not in service.log, service.log


class Slow:
    """An application behind the impatient protocol, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(folder / "core.db")
        self.application = Application(
            self.store,
            gates=RED,
            schemes={"github": github("g" * 32)},
            clock=ManualClock(1),
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self.application, log_config=None, access_log=False, http=HeaderTimeoutProtocol, lifespan="on"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.listener])))
        self.thread.start()

    def talk(self, *parts: bytes) -> bytes:
        """Send parts, and return all that comes until the other side hangs up."""
        with socket.create_connection(self.listener.getsockname(), timeout=BOUND_S) as connection:
            for part in parts:
                connection.sendall(part)
            answer = b""
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except ConnectionResetError:
                pass
            return answer

    def close(self) -> None:
        """End it, and all of its loops."""
        self.server.should_exit = True
        self.thread.join(BOUND_S)
        assert not self.thread.is_alive()
        self.store.close()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """Serve with a patience that a test can wait for, and that outlasts a stall of the machine."""
    monkeypatch.setattr("durable_agents.pipeline.serving.HEAD_TIMEOUT_S", 1.0)
    found = Slow(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize(
    "parts",
    [(), (b"GET /sta",), (b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /status HTTP/1.1\r\nhost:")],
    ids=["nothing", "half a line", "half of a second head"],
)
def test_a_head_that_does_not_come_is_not_waited_for(slow: Slow, parts: tuple[bytes, ...]) -> None:
    """408, and the connection is closed, also when it is the second request of its connection."""
    answer = slow.talk(*parts)
    assert b"HTTP/1.1 408 Request Timeout" in answer
    assert answer.count(b"200 OK") == (len(parts) == 2)


def test_a_head_that_does_not_end_is_not_kept(slow: Slow) -> None:
    """431 after 64 KiB, whatever the sender still has."""
    answer = slow.talk(b"GET /status HTTP/1.1\r\n", *[b"x-more: " + b"y" * 1000 + b"\r\n"] * (HEAD_BYTES_MAX // 1000))
    assert b"HTTP/1.1 431 Request Header Fields Too Large" in answer


def test_the_oldest_without_a_request_gives_its_place(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that has begun is answered 408; a connection that rests is closed;
    none is waited for.
    """
    monkeypatch.setattr("durable_agents.pipeline.serving.HEAD_TIMEOUT_S", 1000.0)
    monkeypatch.setattr("durable_agents.pipeline.serving.INCOMPLETE_MAX", 3)
    request = b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        parts = [b"GET /sta", b"POST /hooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", request]
        connections = []
        for part in parts:
            address = slow.listener.getsockname()
            connections.append(stack.enter_context(socket.create_connection(address, timeout=BOUND_S)))
            connections[-1].sendall(part)
        with http.client.HTTPResponse(connections[2]) as response:  # head and body may come one after the other
            response.begin()
            assert response.status == 200
            response.read()
        for _ in range(3):
            assert b" 200 OK" in slow.talk(request.replace(b"x", b"x\r\nconnection: close"))
        assert [connection.recv(65536)[:12] for connection in connections[:2]] == [b"HTTP/1.1 408"] * 2
        assert connections[2].recv(65536) == b""


def test_requests_that_are_sent_ahead_are_answered(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipelined request has a place as any other, in either order of its completion."""
    monkeypatch.setattr("durable_agents.pipeline.serving.INCOMPLETE_MAX", 1)
    request = b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = slow.talk(request * 2 + request.replace(b"x", b"x\r\nconnection: close"))
    assert answer.count(b" 200 OK") == 3


def test_loops_live_and_end_with_the_server(slow: Slow) -> None:
    """Started by the server's start-up, ended in the opposite order by its shutdown."""
    slow.talk(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    shown = slow.application.describe()
    assert all(shown[name]["is_running"] for name in ("inbox", "reaper", "reconciler"))
    slow.server.should_exit = True
    slow.thread.join(BOUND_S)
    shown = slow.application.describe()
    assert not any(shown[name]["is_running"] for name in ("inbox", "reaper", "reconciler"))


def test_the_reconciler_starts_after_the_workers_and_stops_before_them(tmp_path: Path) -> None:
    """Workers first, then whoever takes over from them, the reconciler last;
    and back in the opposite order.
    """
    told: list[str] = []

    class Worker:
        def start(self) -> None:
            told.append(f"start {application.reconciler.health.is_running}")

        def stop(self) -> None:
            told.append(f"stop {application.reconciler.health.is_running}")

    with open_store(tmp_path / "core.db") as store:
        application = Application(
            store,
            gates=RED,
            schemes={"github": github("g" * 32)},
            workers=[Worker()],
        )
        application.start()
        assert application.reconciler.health.is_running
        application.stop()
    assert told == ["start False", "stop False"]
