"""Scenario 25: an exploration on a cluster that loses workers, its scheduler, its client."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest
from pytest_chaos.model.values import Receipt
from pytest_chaos.runtime import processes

from scenarios.whole.clusters import dask_worker_of, differences, explore_held, green, marked, read_told

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.runtime.agent import Agent
    from pytest_chaos.runtime.run import Run

pytest.importorskip("distributed", reason="a cluster needs the extra: pip install 'pytest-chaos[cluster]'")

pytestmark = pytest.mark.chaos(
    id="25-outgrown",
    title="An exploration on a cluster counts each state once, whoever is killed",
    why="A batch that is counted twice, or forgotten with its worker, makes a number of states a lie.",
    steps=[
        "A target is explored by our own pool, and with the same seed by workers of Dask.",
        "One of its checks says that it is under way, and stays; so a worker is in mid-work for sure.",
        "The worker is killed; or it is late, and its batch is judged twice; or the scheduler is killed.",
        "States, findings and codes are those of our pool, or what was not judged is told.",
        "The client is killed: no process of the cluster outlives it.",
    ],
)

MARK: Final = "CHAOS_SCENARIO_CLUSTER"
"""In the environment of all that belongs to a cluster."""
WAIT_S: Final = 120.0


def begun(chaos: Run, address: str, *, name: str = "client", **more: object) -> Agent:
    """Explore a target whose first check is held; return once it is.

    Skips where agents are watched: a process that explores watches by itself, and has one watcher.
    """
    if chaos.steps.events is not None:
        pytest.skip("an agent that explores cannot be watched: a process has one watcher of its calls")
    folder = chaos.directory
    (folder / "armed").touch()
    kwargs = {"folder": str(folder), "address": address, **more}
    client = chaos.spawn(
        "scenarios.whole.clusters:explore_held", kwargs=kwargs, name=name, env={MARK: str(folder)}, may_fail=True
    )
    chaos.wait_until(
        lambda: (folder / "held").exists() or not client.running, timeout_s=WAIT_S, what="a check under way"
    )
    chaos.wait_until((folder / "held").exists, timeout_s=0.1, what="a check under way, before the client ended")
    return client


def ours(chaos: Run) -> Path:
    """Explore the same target by our own pool, unheld; return the folder with what is told."""
    folder = chaos.directory / "ours"
    folder.mkdir()
    chaos.spawn(explore_held, kwargs={"folder": str(folder)}, name="ours").wait_exit(timeout_s=WAIT_S)
    return folder


def kill_worker(chaos: Run) -> None:
    """Kill the worker of Dask in whose bench the held check is."""
    worker = dask_worker_of(int((chaos.directory / "held").read_text().partition("\n")[0]))
    pidfd = processes.pidfd_of(worker.pid, worker.start_ticks)
    assert pidfd is not None
    processes.end(worker)
    chaos.wait_until(lambda: processes.has_ended(pidfd), what="the end of the worker")
    evidence = f"process {worker.pid} has ended"
    chaos.receive(Receipt(kind="kill", agent="dask-worker", when="while it judged", fired=True, evidence=evidence))


def test_a_worker_killed_in_mid_work(chaos: Run, parts: dict[str, str]) -> None:
    """What it had is handed in again, and the end is that of our pool."""
    own = ours(chaos)
    client = begun(chaos, "local:2", pool=parts["seam"])
    kill_worker(chaos)
    client.wait_exit(timeout_s=WAIT_S)
    chaos.check(
        differences(read_told(own), read_told(chaos.directory)), expect="it judges and finds what our pool does"
    )


@pytest.mark.nightly
def test_a_worker_that_is_late(chaos: Run, parts: dict[str, str]) -> None:
    """Its batch is judged a second time meanwhile, and counted once."""
    own = ours(chaos)
    client = begun(chaos, "local:2", pool=parts["seam"], hedge_s=0.2)
    chaos.wait_until((chaos.directory / "again").exists, timeout_s=WAIT_S, what="the same state, judged again")
    chaos.receive(Receipt(kind="hold", agent="check", when="in its batch", fired=True, evidence="it was judged again"))
    (chaos.directory / "go").touch()
    client.wait_exit(timeout_s=WAIT_S)
    chaos.check(
        differences(read_told(own), read_told(chaos.directory)), expect="it judges and finds what our pool does"
    )


@pytest.mark.nightly
def test_the_scheduler_goes_away(chaos: Run, parts: dict[str, str]) -> None:
    """What was not judged is told, and the exploration is INCONCLUSIVE."""
    port = _cluster_of_agents(chaos)
    client = begun(chaos, f"tcp://127.0.0.1:{port}", pool=parts["seam"])
    chaos.agent("scheduler").kill()
    (chaos.directory / "go").touch()
    client.wait_exit(timeout_s=WAIT_S)
    found = read_told(chaos.directory)
    chaos.check(green(found))
    chaos.expect("it says why", observed=found.signatures, holds="harness:cluster-lost" in found.signatures)


def _cluster_of_agents(chaos: Run) -> int:
    """Start a scheduler and a worker of Dask; return the scheduler's port."""
    module = [sys.executable, "-m"]
    scheduler = chaos.spawn(
        [*module, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        name="scheduler",
        may_fail=True,
    )
    port = scheduler.wait_for_output(r"Scheduler at:\s+tcp://127\.0\.0\.1:(\d+)", timeout_s=WAIT_S)[1]
    address = f"tcp://127.0.0.1:{port}"
    chaos.spawn(
        [*module, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        name="worker",
        may_fail=True,
    )
    return int(port)


@pytest.mark.nightly
def test_the_client_killed(chaos: Run) -> None:
    """Scheduler, workers, benches and checks end, and so do their folders."""
    client = begun(chaos, "local:1")
    there = marked(MARK, str(chaos.directory))
    client.kill()
    chaos.wait_until(
        lambda: not marked(MARK, str(chaos.directory)),
        timeout_s=WAIT_S,
        what="the end of all processes of the cluster",
        owed="no process of a cluster outlives its client",
    )
    chaos.expect("processes of the cluster there before", observed=len(there), holds=len(there) > 1)
