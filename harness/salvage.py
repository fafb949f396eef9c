"""What is saved of a run whose pytest is gone: its evidence, and the record that nobody else will write.

For the guardian, which outlives pytest, and for the sweep of a later session, in case that the guardian died as well.
Under xdist the controller writes all records; only where it is gone, too, this does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from harness.evidence import open_pack, salvage
from harness.journal import Journal
from harness.model import RunRecord, SessionHeader
from harness.records import SessionFolder

FAILURE_CHARACTERS_MAX: Final = 4000


def save(journal_folder: Path, reason: str, *, alone: bool = False) -> Path | None:
    """Make the evidence pack of a journal and add its record to its session's; return the pack.

    The record of an xdist worker's run is left to xdist's controller, unless with ``alone``: it is gone. ``None`` when
    the folder holds no journal. Raises EvidenceError and ResultsError.
    """
    path = salvage(journal_folder, reason)
    if path is None:
        return None
    header = Journal(journal_folder).header()
    if alone or not header.worker:
        session = Path(header.session_folder)
        SessionFolder(session.parents[1], session.name).add_orphan(
            SessionHeader(
                session=session.name,
                seed=header.seed,
                started=header.started,
                versions=header.versions,
                command=header.command,
            ),
            record_of(path),
        )
    return path


def record_of(path: Path, failure: str = "") -> RunRecord:
    """Return what a pack knows of its run as a record; ``failure`` is a better text for it than the pack's own."""
    pack = open_pack(path)
    return RunRecord(
        scenario=pack.scenario,
        node_id=pack.node_id,
        run_id=pack.run_id,
        seed=pack.seed,
        verdict=pack.verdict,
        iteration=pack.iteration,
        plan=pack.plan,
        receipts=pack.receipts,
        findings=pack.findings,
        assertions=pack.assertions,
        started=pack.started,
        failure=(failure or pack.failure)[-FAILURE_CHARACTERS_MAX:],
        evidence=f"evidence/{path.name}",
        reproduce=pack.reproduce,
    )
