"""A worker process for tests: ten iterations, each with one effect,
and one line in a log for each attempt.

Arguments: folder, class of the worker (module:name), class of the artifacts, and the crash point to
die at, with the number of the iteration, while a file named ``deaths`` says that it may.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durable_agents import Artifacts, CheckpointManager, TaskClaims, TaskManager, Worker

if TYPE_CHECKING:
    from durable_agents import Iteration

ITERATIONS = 10


def named(name: str) -> Any:
    """Return the class that ``module:name`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def die_at(folder: Path, point: str, number: int) -> None:
    """Arrange for a kill at the crash point, in that iteration, if there is a death left."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == point and (number == 0 or number in arguments):
            deaths = folder / "deaths"
            if left := int(deaths.read_text()):
                deaths.write_text(str(left - 1))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(folder: Path, worker: type[Worker], artifacts: type[Artifacts], point: str, number: int) -> int:
    """Work on the task t; exit with 0 when nothing is left to do."""
    attempts = os.open(folder / "attempts", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def work(iteration: Iteration) -> dict[str, int]:
        os.write(attempts, b"%d\n" % iteration.number)
        total = iteration.state["sum"] + iteration.number
        iteration.write("result.txt", f"sum up to {iteration.number} is {total}\n".encode() * 100)
        return {"sum": total}

    place = artifacts(folder / "artifacts")
    with CheckpointManager(db_path=folder / "store.db", artifacts=place) as checkpoints:
        claims = TaskClaims(TaskManager(checkpoints.store), checkpoints, "t")
        die_at(folder, point, number)
        outcome = worker(claims, checkpoints, place, work, iterations=ITERATIONS, start={"sum": 0}).run_once()
    return 0 if outcome is None or outcome.ending == "completed" else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), named(sys.argv[2]), named(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
