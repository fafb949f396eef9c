"""Is a violation reproducible? It is run again from its evidence pack before it is reported.

Each replay is a pytest session of its own, with the seed and the plan of the pack, in a folder of
its own. One that violates by a finding of the same signature counts; one that holds does not. A
violation that no replay repeats is *flaky*: still a violation, and it says so. Where no replay came
to an answer, that is said instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_chaos.model.values import RunRecord

TIMEOUT_S: Final = 120.0
"""How long one replay may take; one that takes longer repeated nothing."""

_OF_THIS_SESSION: Final = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_", "COV_CORE_")
"""What the environment says of this session; what the user wrote there (``PYTEST_ADDOPTS``) is for replays, too."""


class Confirmation(NamedTuple):
    """How many of the replays showed the violation again, and how many came to an answer at all."""

    repeated: int
    replays: int
    answered: int

    def __str__(self) -> str:
        """Return ``2/2``, or ``0/2, flaky``, or that the replays say nothing."""
        if self.replays and not self.answered:
            return f"0/{self.replays}, no replay came to an answer"
        return f"{self.repeated}/{self.replays}" + (", flaky" if self.replays and not self.repeated else "")


def signatures(record: RunRecord) -> frozenset[str]:
    """Return what a violated run was violated by."""
    return frozenset(finding.signature for finding in record.findings if finding.verdict is Verdict.VIOLATED)


def options(pack: Path, results: Path) -> list[str]:
    """Return what pytest has to be told for a replay.

    A selection in the project's own ``addopts`` (``-m "not chaos"``) does not hold for it. Paths
    are joined to their options: pytest looks for the root folder at every other argument that is a
    path, before it knows the options.
    """
    return ["-m", "", "-k", "", f"--chaos-replay={pack}", f"--chaos-results={results}"]


def confirm(
    record: RunRecord, pack: Path, *, root: Path, folder: Path, arguments: Sequence[str], replays: int
) -> Confirmation:
    """Replay a violated run; ``folder`` is for the results of the replays, ``arguments`` are the project's own."""
    wanted = signatures(record)
    answers = [_replay(record, pack, root, folder / f"replay-{number}", arguments) for number in range(replays)]
    return Confirmation(
        repeated=sum(answer is not None and bool(answer & wanted) for answer in answers),
        replays=replays,
        answered=sum(answer is not None for answer in answers),
    )


def _replay(
    record: RunRecord, pack: Path, root: Path, results: Path, arguments: Sequence[str]
) -> frozenset[str] | None:
    """Return what a replay was violated by, nothing if it held, ``None`` if it came to no answer."""
    command = [sys.executable, "-m", "pytest", record.node_id, *options(pack, results), f"--rootdir={root}"]
    command += ["-q", "-p", "no:cacheprovider", "--chaos-report=json", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THIS_SESSION)}
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
        return None
    if not runs or any(run.verdict is Verdict.INCONCLUSIVE for run in runs):
        return None
    return frozenset().union(*(signatures(run) for run in runs if run.verdict is Verdict.VIOLATED))
