"""Connect the plugin to the recovery core: the store, a run's database, and evidence queries."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos import Run

pytest_plugins = ["pytester"]

SOUND_MANAGER = "durable_agents:CheckpointManager"

EVIDENCE_QUERIES = {
    "last 50 checkpoints": (
        "SELECT task_id, sequence_number, type, created_at, content_hash, length(snapshot) AS snapshot_characters,"
        " substr(snapshot, 1, 200) AS snapshot_start FROM checkpoints"
        " ORDER BY created_at DESC, sequence_number DESC LIMIT 50"
    ),
    "tasks by status": "SELECT status, count(*) AS tasks FROM tasks GROUP BY status",
    "last 50 audit rows": "SELECT * FROM task_audits ORDER BY audit_id DESC LIMIT 50",
    "active work items": "SELECT * FROM work_items WHERE status IN ('pending', 'in_progress') LIMIT 200",
    "active jobs": "SELECT * FROM jobs WHERE status IN ('queued', 'running') LIMIT 200",
    "last 50 agent runs": "SELECT * FROM agent_runs ORDER BY run_id DESC LIMIT 50",
    "dead ticks": "SELECT * FROM job_dead_ticks LIMIT 200",
    "outbox": "SELECT * FROM outbox ORDER BY outbox_id LIMIT 200",
    "last 50 deliveries": (
        "SELECT delivery_number, source, delivery_id, event, status, attempts, error, substr(body, 1, 200) AS start"
        " FROM webhook_inbox ORDER BY delivery_number DESC LIMIT 50"
    ),
    "task sources": "SELECT * FROM task_sources LIMIT 200",
    "tasks by stage": "SELECT stage, count(*) AS tasks FROM tasks GROUP BY stage",
    "state by group": "SELECT group_name, count(*) AS keys FROM state_entries GROUP BY group_name",
    "state": "SELECT group_name, key, substr(value, 1, 500) AS value_start FROM state_entries LIMIT 500",
    "last 50 cycles": (
        "SELECT cycle_id, name, committed_at, (SELECT count(*) FROM cycle_entries AS e WHERE e.cycle_id = c.cycle_id)"
        " AS entries FROM cycles AS c ORDER BY cycle_id DESC LIMIT 50"
    ),
    "idempotency statistics": "SELECT status, count(*) AS keys FROM idempotency_keys GROUP BY status",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for the store of the scenarios, and for a planted defect."""
    group = parser.getgroup("recovery core")
    group.addoption("--chaos-store", choices=["sqlite"], default="sqlite", help="Store that the scenarios use.")
    group.addoption(
        "--chaos-plant",
        metavar="MODULE:CLASS",
        default=SOUND_MANAGER,
        help="Class with a planted defect that takes the place of the part of the core it derives from.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of tests that `.ci/nightly` runs and `.ci/run` has no time for.

    Signals that end a process are heard again: nohup, or a shell's job in the background, has them
    ignored, and what the tests start would inherit that.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.addinivalue_line("markers", "nightly: too slow for .ci/run; CHAOS_NIGHTLY=1 selects it too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the nightly run has time for."""
    if os.environ.get("CHAOS_NIGHTLY") == "1":
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.hookimpl(optionalhook=True)
def pytest_chaos_evidence_queries() -> Mapping[str, str]:
    """Return the queries about the tables of the recovery core."""
    return EVIDENCE_QUERIES


@pytest.hookimpl(optionalhook=True)
def pytest_chaos_replay_arguments(config: pytest.Config) -> list[str]:
    """Add the planted defect of a run to the line that repeats it."""
    planted = str(config.getoption("--chaos-plant"))
    return [] if planted == SOUND_MANAGER else [f"--chaos-plant={planted}"]


@pytest.fixture
def fresh_db(chaos: Run, manager: str) -> Path:
    """Return a new database file, with the schema, in the folder of the run."""
    path = chaos.directory / "recovery.db"
    path.write_bytes(empty_database(manager, os.getpid()))
    return path


@functools.cache
def empty_database(manager: str, pid: int) -> bytes:
    """Return the file that a manager makes: once in a process, as a fork may have another core."""
    from scenarios.work.agents import make_manager  # the core is imported where it is used

    assert pid == os.getpid()
    with tempfile.TemporaryDirectory(prefix="chaos-schema-") as folder:
        path = Path(folder, "recovery.db")
        make_manager(manager, str(path)).close()
        assert os.listdir(folder) == [path.name]
        return path.read_bytes()


@pytest.fixture
def parts(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the classes of the core that agents use, one perhaps replaced by a planted defect."""
    from scenarios.work.agents import class_named  # the core is imported where it is used

    parts = {
        "checkpoints": SOUND_MANAGER,
        "leases": "durable_agents:LeaseManager",
        "sweep": "durable_agents:RecoverySweep",
        "worker": "durable_agents:Worker",
        "jobs": "durable_agents:JobQueue",
        "monitor": "durable_agents:Monitor",
        "reaper": "durable_agents:JobReaper",
        "replica": "scenarios.partitions.replica:Replica",
        "transactions": "scenarios.proved.transactions:Transactions",
        "seam": "pytest_chaos.explore.cluster.seam:BatchPool",
        "state": "durable_agents:StateStore",
        "keys": "durable_agents:IdempotencyStore",
        "stages": "durable_agents:StageEngine",
        "workspaces": "durable_agents:Workspaces",
        "buffers": "durable_agents:Buffers",
        "sync_queue": "durable_agents:SyncQueue",
        "cache": "durable_agents:LLMOutputCache",
        "ledger": "durable_agents:ToolLedger",
        "receiver": "durable_agents.webhooks.receiver:Receiver",
        "inbox": "durable_agents.webhooks.inbox:Inbox",
        "handlers": "durable_agents.pipeline.handlers:Handlers",
        "reconciler": "durable_agents.pipeline.reconciler:Reconciler",
    }
    planted = str(request.config.getoption("--chaos-plant"))
    bases = {part: class_named(name) for part, name in parts.items()}
    for part, base in bases.items():
        if issubclass(class_named(planted), base):
            parts[part] = planted
    return parts


@pytest.fixture
def manager(parts: dict[str, str]) -> str:
    """Return the checkpoint manager that agents use: the sound one, or a planted defect."""
    return parts["checkpoints"]
