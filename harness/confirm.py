"""Is a violation reproducible? It is run again from its evidence pack before it is reported.

Each replay is a pytest session of its own, with the seed and the plan of the pack, in a folder of its own. One that
violates by a finding of the same signature counts; one that holds, or comes to no answer, does not. A violation that
no replay repeats is *flaky*: still a violation, and it says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from harness import records
from harness.errors import ResultsError
from harness.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from harness.model import RunRecord

TIMEOUT_S: Final = 120.0
"""How long one replay may take; one that takes longer repeated nothing."""


class Confirmation(NamedTuple):
    """How many of the replays showed the violation again."""

    repeated: int
    replays: int

    def __str__(self) -> str:
        """Return ``2/2``, or ``0/2, flaky``."""
        return f"{self.repeated}/{self.replays}" + (", flaky" if self.replays and not self.repeated else "")


def signatures(record: RunRecord) -> frozenset[str]:
    """Return what a violated run was violated by."""
    return frozenset(finding.signature for finding in record.findings if finding.verdict is Verdict.VIOLATED)


def confirm(
    record: RunRecord, pack: Path, *, root: Path, folder: Path, arguments: Sequence[str], replays: int
) -> Confirmation:
    """Replay a violated run; ``folder`` is for the results of the replays, ``arguments`` are the project's own."""
    wanted = signatures(record)
    return Confirmation(
        sum(_replay(record, pack, root, folder / f"replay-{number}", arguments, wanted) for number in range(replays)),
        replays,
    )


def _replay(
    record: RunRecord, pack: Path, root: Path, results: Path, arguments: Sequence[str], wanted: Collection[str]
) -> bool:
    command = [sys.executable, "-m", "pytest", record.node_id, "--chaos-replay", str(pack), "-q"]
    command += ["-p", "no:cacheprovider", "--chaos-results", str(results), "--chaos-report", "json", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_CORE_"))}
    try:
        subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        runs = records.read(results).runs
    except (subprocess.TimeoutExpired, OSError, ResultsError):
        return False
    return any(run.verdict is Verdict.VIOLATED and signatures(run) & set(wanted) for run in runs)
