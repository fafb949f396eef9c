"""A run without pytest around it: real journal, real guardian, real agents,
and no row in anybody's matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest
from pytest_chaos.model.values import Scenario
from pytest_chaos.runtime.agent import GuardianClient
from pytest_chaos.runtime.journal import Journal, RunHeader
from pytest_chaos.runtime.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.model.values import Plan


class StartRun(Protocol):
    """Makes a run."""

    def __call__(
        self, *, seed: str = ..., iteration: int = ..., replay: Plan | None = ..., client: GuardianClient = ...
    ) -> Run:
        """Return the run; it is concluded with the test.
        ``client`` is the shared guardian unless given.
        """
        ...


@pytest.fixture(scope="session")
def guardian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardianClient]:
    """Start one guardian for all tests of this process;
    with each run it ends everything that the run left.
    """
    with GuardianClient(tmp_path_factory.mktemp("guardian")) as client:
        yield client


@pytest.fixture
def start_run(tmp_path: Path, guardian: GuardianClient) -> Iterator[StartRun]:
    """Make runs in the test's folder."""
    runs: list[Run] = []

    def start(
        *, seed: str = "seed", iteration: int = 0, replay: Plan | None = None, client: GuardianClient = guardian
    ) -> Run:
        header = RunHeader(
            run_id=f"run-{len(runs)}",
            node_id="test_it.py::test_it",
            scenario=Scenario(id="98-test", title="A test"),
            seed=seed,
            session_folder=str(tmp_path / "results" / "sessions" / "session"),
            iteration=iteration,
        )
        runs.append(Run(Journal(tmp_path / f"run-{len(runs)}"), header, lambda: client, replay=replay))
        return runs[-1]

    yield start
    for run in runs:
        run.conclude()


@pytest.fixture
def run(start_run: StartRun) -> Run:
    """Return a run that nothing has happened in."""
    return start_run()
