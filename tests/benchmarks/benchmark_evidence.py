"""Compare a fenced checkpoint that has verified evidence with bare SQLite and with others' saves;
run it as a script.

Printed are medians in microseconds and ratios (peer / ours), each with the target of the project.
Ours looks at its lease, examines one item of evidence, a file and its SHA-256, inserts the
checkpoint and its evidence, and commits; what the artifact's own flushes cost is measured apart and
not part of the ratio. The bare side inserts the same bytes into one table and commits. langgraph's
SqliteSaver.put and a step of DBOS save a value of the same size, where they are installed (extra
``bench``); DBOS also notes that the step began. All run interleaved, in WAL mode with
synchronous=FULL, each on its own file in one folder on a disk.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sqlite3
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import Artifacts, CheckpointManager, LeaseManager, TaskManager

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import Bare, flush_us, medians_us, snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Evidence

_SAVES: Final = 1000
_TASK: Final = "benchmark"
_TARGETS: Final = {"bare": 0.5, "langgraph": 0.6, "DBOS": 5.0}
_DURABLE: Final = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def langgraph_put(folder: Path, snapshot: object, stack: ExitStack) -> Callable[[], object] | None:
    """Return what saves one checkpoint with langgraph, or None where it is not installed."""
    base, sqlite = _module("langgraph.checkpoint.base"), _module("langgraph.checkpoint.sqlite")
    if sqlite is None:
        return None
    connection = stack.enter_context(closing(sqlite3.connect(folder / "langgraph.db", check_same_thread=False)))
    saver = sqlite.SqliteSaver(connection)
    saver.setup()
    for pragma in _DURABLE:
        connection.execute(pragma)
    config = {"configurable": {"thread_id": _TASK, "checkpoint_ns": ""}}
    step = [0]

    def put() -> object:
        step[0] += 1
        checkpoint = base.empty_checkpoint()
        checkpoint["channel_values"] = {"state": snapshot}
        return saver.put(config, checkpoint, {"source": "loop", "step": step[0], "parents": {}}, {})

    return put


def with_dbos_step(
    folder: Path, snapshot: object, measured: Callable[[Callable[[], object]], dict[str, float]]
) -> dict[str, float] | None:
    """Measure within a workflow of DBOS, and give it what does one step there;
    None where it is not installed.
    """
    dbos, alchemy = _module("dbos"), _module("sqlalchemy")
    if dbos is None:
        return None

    def durable(connection: Any, _: object) -> None:
        for pragma in _DURABLE:
            connection.execute(pragma)

    alchemy.event.listen(alchemy.engine.Engine, "connect", durable)
    url = f"sqlite:///{folder / 'dbos.db'}"
    settings = {"name": _TASK, "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"}
    dbos.DBOS(config=settings)
    step = dbos.DBOS.step()(lambda: snapshot)

    def run() -> dict[str, float]:
        return measured(step)

    workflow = dbos.DBOS.workflow()(run)
    dbos.DBOS.launch()
    try:
        found: dict[str, float] = workflow()
    finally:
        dbos.DBOS.destroy()
        alchemy.event.remove(alchemy.engine.Engine, "connect", durable)
    return found


def compared(
    work: dict[str, Callable[[], object]], folder: Path, snapshot: object, saves: int, stack: ExitStack
) -> dict[str, float]:
    """Measure the work and, interleaved, what the peers do that are installed."""
    medians = medians_us(work, saves)  # these alone: what else runs between two flushes changes their time
    peers = dict(work)
    if (put := langgraph_put(folder, snapshot, stack)) is not None:
        peers["langgraph"] = put
        medians |= {"langgraph": medians["ours"] * _ratio(medians_us(peers, saves), "langgraph")}
    with_step = with_dbos_step(folder, snapshot, lambda step: medians_us({**work, "DBOS": step}, saves // 2))
    if with_step is not None:
        medians |= {"DBOS": medians["ours"] * _ratio(with_step, "DBOS")}
    return medians


def _ratio(medians: dict[str, float], name: str) -> float:
    return medians[name] / medians["ours"]


def measure(folder: Path, saves: int, snapshot_bytes: int, artifact_bytes: int) -> list[str]:
    """Run everything in the folder and return the lines to print."""
    snapshot = snapshot_of(snapshot_bytes)
    bare = Bare(folder / "bare.db", msgspec.json.encode(snapshot))
    artifacts = Artifacts(folder)
    content = bytes(range(256)) * (artifact_bytes // 256)
    written = artifacts.write("artifacts/result", content)
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    evidence: list[Evidence] = [written]
    with ExitStack() as stack, CheckpointManager(db_path=folder / "ours.db", artifacts=artifacts) as manager:
        TaskManager(manager.store).create(_TASK)
        leases = LeaseManager(manager.store)
        leases.enqueue(_TASK, "work")
        lease = leases.acquire("benchmark", ttl_s=3600)
        work: dict[str, Callable[[], object]] = {
            "bare": bare.save,
            "ours": lambda: manager.save(_TASK, snapshot, evidence=evidence, lease=lease),
        }
        medians = compared(work, folder, snapshot, saves, stack)
        assert manager.latest_verified(_TASK).checkpoint is not None
        apart = medians_us({"ours, latest_verified": lambda: manager.latest_verified(_TASK)}, saves)
        apart |= medians_us(
            {
                "ours, without evidence": lambda: manager.save(_TASK, snapshot),
                "ours, write of an artifact": lambda: artifacts.write("artifacts/other", content),
                "ours, look at an artifact": lambda: artifacts.look("artifacts/result", with_hash=True),
            },
            saves // 2,
        )
    bare.close()
    return [
        f"snapshot {snapshot_bytes} bytes, artifact {artifact_bytes} bytes, {folder}",
        f"flush of {snapshot_bytes} bytes: {flush_us(folder, snapshot_bytes):.0f} us",
        f"ours, fenced and with one file verified: {medians['ours']:.1f} us",
        *(
            f"{name}: {medians[name]:.1f} us, ratio {_ratio(medians, name):.2f} (target {target})"
            for name, target in _TARGETS.items()
            if name in medians
        ),
        *(f"{name}: {median:.1f} us" for name, median in apart.items()),
    ]


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--saves", type=int, default=_SAVES, help="how many saves on each side")
    parser.add_argument("--snapshot-bytes", type=int, default=4096, help="how large a snapshot is")
    parser.add_argument("--artifact-bytes", type=int, default=4096, help="how large the artifact is, above 256")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-evidence-") as folder:
        lines = measure(Path(folder), options.saves, options.snapshot_bytes, options.artifact_bytes)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
