"""Compare a checkpoint that has verified evidence with bare SQLite, interleaved in one process; run it as a script.

Printed are medians in microseconds and their ratios (bare / ours; the target is 0.5). The bare side inserts the same
bytes into one table and commits. Ours examines one item of evidence, a file and its SHA-256, inserts the checkpoint and
its evidence, and commits; what the artifact's own flushes cost is measured apart and not part of the ratio. Both sides
run in WAL mode with synchronous=FULL, each on its own file in one folder on a disk.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from recovery import Artifacts, CheckpointManager, TaskManager
from tests.benchmarks.benchmark_checkpoints import Bare, flush_us, medians_us, snapshot_of

if TYPE_CHECKING:
    from recovery import Evidence

_SAVES: Final = 1000
_TASK: Final = "benchmark"
_TARGET: Final = 0.5


def measure(folder: Path, saves: int, snapshot_bytes: int, artifact_bytes: int) -> list[str]:
    """Run everything in the folder and return the lines to print."""
    snapshot = snapshot_of(snapshot_bytes)
    bare = Bare(folder / "bare.db", msgspec.json.encode(snapshot))
    artifacts = Artifacts(folder)
    content = bytes(range(256)) * (artifact_bytes // 256)
    written = artifacts.write("artifacts/result", content)
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    evidence: list[Evidence] = [written]
    with CheckpointManager(db_path=folder / "ours.db", artifacts=artifacts) as manager:
        TaskManager(manager.store).create(_TASK)
        compared = medians_us(  # these two alone: what else runs between two flushes of the device changes their time
            {"bare": bare.save, "ours, one file verified": lambda: manager.save(_TASK, snapshot, evidence=evidence)},
            saves,
        )
        assert manager.latest_verified(_TASK).checkpoint is not None
        recovered = medians_us({"ours, latest_verified": lambda: manager.latest_verified(_TASK)}, saves)
        medians = medians_us(
            {
                "ours, without evidence": lambda: manager.save(_TASK, snapshot),
                "ours, write of an artifact": lambda: artifacts.write("artifacts/other", content),
                "ours, look at an artifact": lambda: artifacts.look("artifacts/result", with_hash=True),
            },
            saves,
        )
    bare.close()
    ratio = compared["bare"] / compared["ours, one file verified"]
    return [
        f"snapshot {snapshot_bytes} bytes, artifact {artifact_bytes} bytes, {folder}",
        f"flush of {snapshot_bytes} bytes: {flush_us(folder, snapshot_bytes):.0f} us",
        *(f"{name}: {median:.1f} us" for name, median in (compared | recovered | medians).items()),
        f"ratio {ratio:.2f} (target {_TARGET})",
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
