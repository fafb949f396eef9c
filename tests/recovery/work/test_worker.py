"""The worker: real processes that are killed wherever it hurts,
and work that is there exactly once in the end.
"""

from __future__ import annotations

import collections
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import (
    ARTIFACT_CRASH_POINTS,
    CHECKPOINT_CRASH_POINTS,
    WORKER_CRASH_POINTS,
    ArtifactExists,
    Artifacts,
    CheckpointManager,
    SupervisedRun,
    Supervisor,
    TaskClaims,
    TaskManager,
    TaskStatus,
    WorkEnding,
    Worker,
    WorkOutcome,
)
from durable_agents.errors import InvalidSetting, UnknownProgress, WorkerNotStarted
from durable_agents.work.supervisor import BACKOFF_S

from tests.planted.work.evidence import BelievesNewest
from tests.recovery.work.worker_program import ITERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents import Iteration

_ROOT: Final = Path(__file__).parents[3]
_PROGRAM: Final = "tests.recovery.work.worker_program"
_ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(_ROOT)}
_TIMEOUT_S: Final = 60
_FIFTH: Final = 5
_POINTS: Final = (*WORKER_CRASH_POINTS, *CHECKPOINT_CRASH_POINTS, *ARTIFACT_CRASH_POINTS)

_heard: list[tuple[str, tuple[object, ...]]] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _heard is not None and event.startswith("recovery.worker."):
        _heard.append((event, arguments))


sys.addaudithook(_listen)


@pytest.fixture(name="heard")
def _hear() -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """Return the worker's events of a test. A hook cannot be removed, so there is one,
    switched off.
    """
    global _heard  # noqa: PLW0603 - the one place that switches the hook
    _heard = []
    yield _heard
    _heard = None


@pytest.fixture(name="artifacts")
def _artifacts(tmp_path: Path) -> Artifacts:
    (tmp_path / "artifacts").mkdir()
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture(name="manager")
def _manager(tmp_path: Path, artifacts: Artifacts) -> Iterator[CheckpointManager]:
    with CheckpointManager(db_path=tmp_path / "store.db", artifacts=artifacts) as manager:
        TaskManager(manager.store).create("t")
        yield manager


def _worker(manager: CheckpointManager, artifacts: Artifacts, work: Any, kind: type[Worker] = Worker) -> Worker:
    return kind(_claims(manager), manager, artifacts, work, iterations=3, start=[])


def _claims(manager: CheckpointManager) -> TaskClaims:
    return TaskClaims(TaskManager(manager.store), manager, "t")


def _append(iteration: Iteration) -> list[int]:
    """Return the state with the number of this iteration, after writing it down."""
    iteration.write("n", b"%d" % iteration.number)
    return [*iteration.state, iteration.number]


def _command(folder: Path, point: str, number: int, worker: str = "durable_agents:Worker") -> list[str]:
    return [sys.executable, "-m", _PROGRAM, str(folder), worker, "durable_agents:Artifacts", point, str(number)]


def _supervised(
    folder: Path, point: str, number: int, deaths: int, worker: str = "durable_agents:Worker"
) -> SupervisedRun:
    (folder / "deaths").write_text(str(deaths))
    command = _command(folder, point, number, worker)
    return Supervisor(command, restarts_max=deaths, environment=_ENVIRONMENT, wait=lambda _: False).run()


def _effects(artifacts: Artifacts) -> dict[str, bytes]:
    files = (path for path in artifacts.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(artifacts.folder)): path.read_bytes() for path in files}


def _expected_effects() -> dict[str, bytes]:
    return {
        f"task-t/{n:06d}/result.txt": f"sum up to {n} is {n * (n + 1) // 2}\n".encode() * 100
        for n in range(1, ITERATIONS + 1)
    }


def test_work_is_done_from_the_first_to_the_last_iteration(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Each iteration gets the state that the one before it returned; the task succeeds;
    nothing is left to do.
    """
    worker = _worker(manager, artifacts, _append)
    assert worker.run_once() == WorkOutcome("t", WorkEnding.COMPLETED, 0, 3, 0)
    assert [checkpoint.snapshot for checkpoint in manager.list("t")] == [
        {"iteration": n, "state": list(range(1, n + 1))} for n in (1, 2, 3)
    ]
    assert TaskManager(manager.store).get("t").status is TaskStatus.SUCCEEDED
    assert worker.run_once() is None
    assert worker.progress("t") == 3


def test_a_run_passes_every_crash_point_in_order(
    manager: CheckpointManager, artifacts: Artifacts, heard: list[tuple[str, tuple[object, ...]]]
) -> None:
    """The audit events are exactly the declared ones, with the task and the iteration."""
    _worker(manager, artifacts, _append).run_once()
    before_claim, after_claim, after_resume, *middle, before_complete, after_complete = WORKER_CRASH_POINTS
    assert heard == [
        (before_claim, ("", 0)),
        (after_claim, ("t", 0)),
        (after_resume, ("t", 0)),
        *((point, ("t", number)) for number in (1, 2, 3) for point in middle),
        (before_complete, ("t", 3)),
        (after_complete, ("t", 3)),
    ]


@pytest.mark.parametrize("point", _POINTS)
def test_a_kill_anywhere_costs_one_attempt_and_nothing_else(
    manager: CheckpointManager, artifacts: Artifacts, tmp_path: Path, point: str
) -> None:
    """Killed once at any crash point of any part: every effect once and right,
    at most one attempt more.
    """
    number = {WORKER_CRASH_POINTS[0]: 0, WORKER_CRASH_POINTS[1]: 0, WORKER_CRASH_POINTS[2]: 0}.get(point, _FIFTH)
    if point in {*WORKER_CRASH_POINTS[-2:]}:
        number = ITERATIONS
    if point in ARTIFACT_CRASH_POINTS or point in CHECKPOINT_CRASH_POINTS[:2]:
        number = 0  # they carry a path, or no number yet
    run = _supervised(tmp_path, point, number, deaths=1)
    assert run.exits == (-signal.SIGKILL, 0)
    assert artifacts.discard_leftovers() <= 1
    assert _effects(artifacts) == _expected_effects()
    attempts = collections.Counter((tmp_path / "attempts").read_text().split())
    assert sum(attempts.values()) <= ITERATIONS + 1
    assert len(attempts) == ITERATIONS
    assert TaskManager(manager.store).get("t").status is TaskStatus.SUCCEEDED


def test_an_iteration_is_attempted_once_more_per_kill(
    manager: CheckpointManager, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Four kills in the same iteration, each between its effect and its checkpoint:
    five attempts, one of others.
    """
    run = _supervised(tmp_path, "recovery.worker.after_iteration", _FIFTH, deaths=4)
    assert run.exits == (-signal.SIGKILL,) * 4 + (0,)
    attempts = collections.Counter(map(int, (tmp_path / "attempts").read_text().split()))
    assert attempts == {n: 5 if n == _FIFTH else 1 for n in range(1, ITERATIONS + 1)}
    assert _effects(artifacts) == _expected_effects()
    assert [checkpoint.sequence_number for checkpoint in manager.list("t")] == list(range(1, ITERATIONS + 1))
    found = manager.latest_verified("t").checkpoint
    assert found is not None
    assert found.snapshot == {"iteration": ITERATIONS, "state": {"sum": 55}}


@pytest.mark.parametrize(("kind", "is_whole"), [(Worker, True), (BelievesNewest, False)])
def test_a_lost_effect_is_written_again(
    manager: CheckpointManager,
    artifacts: Artifacts,
    kind: type[Worker],
    is_whole: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The sound worker goes back behind a checkpoint whose file is gone;
    the planted one finishes without it.
    """

    def stop_in_third(iteration: Iteration) -> list[int]:
        if iteration.number == 3:
            raise KeyboardInterrupt
        return _append(iteration)

    with pytest.raises(KeyboardInterrupt):
        _worker(manager, artifacts, stop_in_third, kind).run_once()
    (artifacts.folder / "task-t/000002/n").unlink()
    outcome = _worker(manager, artifacts, _append, kind).run_once()
    assert outcome is not None
    assert (outcome.ending, outcome.resumed_from) == (WorkEnding.COMPLETED, 1 if is_whole else 2)
    assert outcome.skipped == is_whole
    assert ("task-t/000002/n" in _effects(artifacts)) == is_whole


def test_what_leaves_no_evidence_is_done_again(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Iterations without evidence are not relied upon:
    the next worker begins behind the last one that has some.
    """
    begun: list[int] = []

    def work(iteration: Iteration) -> list[int]:
        begun.append(iteration.number)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return _append(iteration) if iteration.number == 1 else [*iteration.state, iteration.number]

    with pytest.raises(KeyboardInterrupt):
        _worker(manager, artifacts, work).run_once()
    assert _worker(manager, artifacts, work).run_once() == WorkOutcome("t", WorkEnding.COMPLETED, 1, 3, 1)
    assert begun == [1, 2, 3, 2, 3]


def test_an_error_of_the_work_fails_the_task(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """The task says what was raised and where; what was done before stays."""

    def work(iteration: Iteration) -> list[int]:
        if iteration.number == 2:
            raise ZeroDivisionError("oh")  # noqa: EM101 - what work does
        return _append(iteration)

    outcome = _worker(manager, artifacts, work).run_once()
    error = "Iteration 2 raised ZeroDivisionError: oh"
    assert outcome == WorkOutcome("t", WorkEnding.FAILED, 0, 1, 0, error)
    tasks = TaskManager(manager.store)
    assert tasks.get("t").status is TaskStatus.FAILED
    assert tasks.audits("t")[-1].detail == error
    assert len(manager.list("t")) == 1


@pytest.mark.parametrize("result", [float("nan"), (1, 2), {1: 2}, object()])
def test_a_result_that_cannot_be_kept_fails_the_task(
    manager: CheckpointManager, artifacts: Artifacts, result: object
) -> None:
    """It would be the same after a restart: nobody is sent round in circles."""
    outcome = _worker(manager, artifacts, lambda _: result).run_once()
    assert outcome is not None
    assert (outcome.ending, outcome.done) == (WorkEnding.FAILED, 0)
    assert outcome.error.startswith("Iteration 1 returned what cannot be kept: A snapshot must")
    assert TaskManager(manager.store).get("t").status is TaskStatus.FAILED


def test_an_error_about_a_file_whose_name_is_not_utf8_fails_the_task(
    manager: CheckpointManager, artifacts: Artifacts
) -> None:
    """The reason is kept, with the name's bytes as escapes."""
    outcome = _worker(manager, artifacts, lambda _: (artifacts.folder / "\udcff").read_bytes()).run_once()
    assert outcome is not None
    assert outcome.ending is WorkEnding.FAILED
    assert TaskManager(manager.store).audits("t")[-1].detail == outcome.error
    assert "\\udcff" in outcome.error


def test_evidence_that_does_not_verify_fails_the_task(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """A worker does not go on over a hole: an effect that is not there is an error at once."""

    def work(iteration: Iteration) -> None:
        iteration.give(ArtifactExists("never written"))

    outcome = _worker(manager, artifacts, work).run_once()
    assert outcome is not None
    assert (outcome.ending, outcome.done) == (WorkEnding.FAILED, 0)
    assert outcome.error.startswith("Iteration 1 gave evidence that does not verify")


@pytest.mark.parametrize("number", [2, 3])
def test_a_task_that_is_cancelled_is_left(manager: CheckpointManager, artifacts: Artifacts, number: int) -> None:
    """The worker finds out at its next step, or when it completes, and changes no status."""
    tasks = TaskManager(manager.store)

    def work(iteration: Iteration) -> list[int]:
        if iteration.number == number:
            tasks.set_status("t", TaskStatus.CANCELLED, expected=TaskStatus.RUNNING)
        return _append(iteration)

    outcome = _worker(manager, artifacts, work).run_once()
    assert outcome is not None
    assert (outcome.ending, outcome.done) == (WorkEnding.LOST, number)
    assert "cancelled" in outcome.error
    assert tasks.get("t").status is TaskStatus.CANCELLED


def test_checkpoints_of_others_are_not_mistaken_for_progress(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Another type is passed over; the worker's own type with another content is an error and no
    guess.
    """
    evidence = [artifacts.write("a", b"1")]
    manager.save("t", {"mine": 1}, type="my own", evidence=evidence)
    worker = _worker(manager, artifacts, _append)
    assert worker.progress("t") == 0
    for snapshot in ({"iteration": 1}, {"iteration": 0, "state": 1}, {"iteration": 1, "state": 1, "more": 1}, 7):
        manager.save("t", snapshot, evidence=evidence)
        with pytest.raises(UnknownProgress, match="not saved by a worker"):
            worker.run_once()


@pytest.mark.parametrize("task_id", ["../../out", "a/b", "..", "задача 7", "nul%00"])
def test_effects_of_any_task_stay_in_the_folder(manager: CheckpointManager, artifacts: Artifacts, task_id: str) -> None:
    """The id of a task is one part of a path, whatever it contains."""
    tasks = TaskManager(manager.store)
    tasks.create(task_id)
    claims = TaskClaims(tasks, manager, task_id)
    outcome = Worker(claims, manager, artifacts, _append, iterations=1, start=[]).run_once()
    assert outcome is not None
    assert outcome.ending is WorkEnding.COMPLETED
    (effect,) = _effects(artifacts)
    assert len(Path(effect).parts) == 3


def test_a_worker_has_something_to_do(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """Less than one iteration is refused."""
    with pytest.raises(InvalidSetting, match="iterations must be 1 or more"):
        Worker(_claims(manager), manager, artifacts, _append, iterations=0)


def test_a_supervisor_spends_its_budget_and_no_more() -> None:
    """A program that always fails is started once and then as often as the budget says,
    with growing pauses.
    """
    pauses: list[float] = []

    def wait(duration_s: float) -> bool:
        pauses.append(duration_s)
        return False

    restarts = len(BACKOFF_S) + 1
    run = Supervisor([sys.executable, "-c", "raise SystemExit(3)"], restarts_max=restarts, wait=wait).run()
    assert run == SupervisedRun((3,) * (restarts + 1), is_stopped=False)
    assert run.restarts == restarts
    assert pauses == [*BACKOFF_S, BACKOFF_S[-1]]


def test_a_supervisor_may_be_told_to_stop_while_it_pauses() -> None:
    """A wait that says so ends the run, and so does stop, however long the pause is."""
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert Supervisor(command, restarts_max=5, wait=lambda _: True).run().exits == (3,)
    pausing = threading.Event()
    runs: list[SupervisedRun] = []

    def pause(duration_s: float) -> bool:
        pausing.set()
        return supervisor._pause(duration_s)

    supervisor = Supervisor(command, restarts_max=5, backoff_s=(3600.0,), wait=pause)
    thread = threading.Thread(target=lambda: runs.append(supervisor.run()))
    thread.start()
    assert pausing.wait(_TIMEOUT_S)
    supervisor.stop()
    thread.join(_TIMEOUT_S)
    assert len(runs[0].exits) == 1
    assert runs[0].is_stopped


_STUBBORN: Final = """
import os, pathlib, signal, sys, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "3600"])
pathlib.Path(sys.argv[1] + ".part").write_text(str(child.pid))
os.rename(sys.argv[1] + ".part", sys.argv[1])
signal.pause()
signal.pause()
"""


def test_stopping_has_a_bound_and_takes_the_whole_group(tmp_path: Path) -> None:
    """A worker that ignores SIGTERM is killed with its child, and is not started again."""
    ready = tmp_path / "ready"
    supervisor = Supervisor([sys.executable, "-c", _STUBBORN, str(ready)], restarts_max=5, stop_timeout_s=0.2)
    runs: list[SupervisedRun] = []
    thread = threading.Thread(target=lambda: runs.append(supervisor.run()))
    thread.start()
    deadline = time.monotonic() + _TIMEOUT_S
    while not ready.exists() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    child = os.pidfd_open(int(ready.read_text()))
    stopped = time.monotonic()
    supervisor.stop()
    thread.join(_TIMEOUT_S)
    assert time.monotonic() - stopped < _TIMEOUT_S / 2
    assert runs == [SupervisedRun((-signal.SIGKILL,), is_stopped=True)]
    assert select.select([child], [], [], _TIMEOUT_S)[0] == [child]  # a pidfd is readable when its process is dead
    os.close(child)
    assert supervisor.pid is None


@pytest.mark.parametrize(
    "settings",
    [
        {"restarts_max": -1},
        {"restarts_max": 10**9},
        {"restarts_max": 1, "backoff_s": ()},
        {"restarts_max": 1, "backoff_s": (-1.0,)},
        {"restarts_max": 1, "backoff_s": (float("inf"),)},
        {"restarts_max": 1, "backoff_s": (10**400,)},
        {"restarts_max": 1, "stop_timeout_s": float("nan")},
        {"restarts_max": 1, "command": "text"},
        {"restarts_max": 1, "command": []},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    """A budget, a pause and a command are checked before anything is started."""
    with pytest.raises(InvalidSetting, match=" must "):
        Supervisor(**{"command": ["true"], **settings})


def test_a_program_that_is_not_there_is_told() -> None:
    """What cannot be started at all is an error and not five restarts."""
    with pytest.raises(WorkerNotStarted, match="'/no/such/program' must be a program"):
        Supervisor(["/no/such/program"], restarts_max=5).run()
