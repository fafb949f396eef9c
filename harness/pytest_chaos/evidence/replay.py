"""Replays of a violation from its evidence pack, before it is reported.

Each replay is a pytest session of its own, with the seed and plan of the pack and its own results
folder. A replay counts if it is violated by a finding of the same signature. A violation that no
replay repeats is *flaky*: still a violation, and labelled. If no replay came to an answer, the
label says so.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.errors import EvidenceError, ResultsError
from pytest_chaos.evidence import manifest, records
from pytest_chaos.evidence.open import open_pack
from pytest_chaos.model.promises import named_by
from pytest_chaos.model.story import STEPS_NAME, RunSteps
from pytest_chaos.model.values import MarkKind, Verdict
from pytest_chaos.runtime.journal import ATTACHMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_chaos.model.values import RunRecord

STEPS_OPTION: Final = "--chaos-steps"
TIMEOUT_S: Final = 120.0
"""Limit of one replay; a longer one repeated nothing."""

_OF_THIS_SESSION: Final = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_", "COV_CORE_")
"""Variables of this session alone; a user's own (``PYTEST_ADDOPTS``) hold for replays, too."""


class Confirmation(NamedTuple):
    """How many replays repeated the violation, and how many came to an answer."""

    repeated: int
    replays: int
    answered: int

    def __str__(self) -> str:
        """Return ``2/2``, or ``0/2, flaky``, or that the replays say nothing."""
        if self.replays and not self.answered:
            return f"0/{self.replays}, no replay came to an answer"
        return f"{self.repeated}/{self.replays}" + (", flaky" if self.replays and not self.repeated else "")


def signatures(record: RunRecord) -> frozenset[str]:
    """Return the signatures of the findings that violated a run."""
    return frozenset(finding.signature for finding in record.findings if finding.verdict is Verdict.VIOLATED)


def options(pack: Path, results: Path) -> list[str]:
    """Return pytest's options for a replay.

    They undo a selection in the project's ``addopts`` (``-m "not chaos"``). Paths are joined to
    their options: before pytest knows the options, it takes any other path for a test.
    """
    return ["-m", "", "-k", "", f"--chaos-replay={pack}", f"--chaos-results={results}"]


def of_this_session() -> dict[str, str]:
    """Return the environment for another pytest process: without what is of this session alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_THIS_SESSION)}


def confirm(
    record: RunRecord, pack: Path, *, root: Path, folder: Path, arguments: Sequence[str], replays: int
) -> Confirmation:
    """Replay a violated run with the project's own ``arguments``; results go to ``folder``."""
    wanted = signatures(record)
    answers = [_replay(record, pack, root, folder / f"replay-{number}", arguments) for number in range(replays)]
    return Confirmation(
        repeated=sum(answer is not None and bool(answer & wanted) for answer in answers),
        replays=replays,
        answered=sum(answer is not None for answer in answers),
    )


def watch(record: RunRecord, pack: Path, *, root: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Replay a violation once more with its durable steps watched; add what they say to the pack.

    Only where a finding names what was acknowledged, and if the replay has the same finding. A
    watched program is slower, so this replay confirms nothing.
    """
    results, attachments = folder / "replay-watched", pack / ATTACHMENTS
    violations = [each for each in record.findings if each.verdict is Verdict.VIOLATED]
    with contextlib.suppress(OSError, EvidenceError):  # a full disk: the pack stays as it was, or says what was added
        marks = open_pack(pack, whole=True).marks
        if not named_by(violations, [mark for mark in marks if mark.kind is MarkKind.ACK]):
            return
        if not _replay(record, pack, root, results, [STEPS_OPTION, *arguments]):
            return
        if (seen := _steps_seen(results, record)) is None:
            return
        attachments.mkdir(exist_ok=True)
        (attachments / STEPS_NAME).write_bytes(msgspec.json.encode(msgspec.structs.replace(seen, is_repeat=True)))
        manifest.write(pack, manifest.read(pack))


def _steps_seen(results: Path, record: RunRecord) -> RunSteps | None:
    """Return what a watched replay has seen of the items of the same finding."""
    wanted = signatures(record)
    for run in records.read(results).runs:
        path = results / "latest" / run.evidence / ATTACHMENTS / STEPS_NAME
        if signatures(run) & wanted and run.evidence and path.is_file():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                seen = msgspec.json.decode(path.read_bytes(), type=RunSteps)
                if seen.lost:
                    return seen
    return None


def _replay(
    record: RunRecord, pack: Path, root: Path, results: Path, arguments: Sequence[str]
) -> frozenset[str] | None:
    """Return the signatures of a replay, none if it held, None if it came to no answer."""
    command = [sys.executable, "-m", "pytest", record.node_id, *options(pack, results), f"--rootdir={root}"]
    command += ["-q", "-p", "no:cacheprovider", "--chaos-report=json", *arguments]
    try:
        subprocess.run(
            command,
            cwd=root,
            env=of_this_session(),
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
