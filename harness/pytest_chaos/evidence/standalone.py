"""A pack of one database without the plugin: one call in an ``except`` block."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pytest_chaos.evidence import pack
from pytest_chaos.evidence.redact import redactor
from pytest_chaos.model.values import Json, RunRecord, Scenario, Verdict
from pytest_chaos.runtime.journal import Journal, RunHeader

DIRECTORY: Final = Path("store/artifacts/chaos-failures")
"""Default folder of stand-alone packs, below the current folder."""


def dump_failure_evidence(
    test_name: str,
    db_path: str | Path,
    error_message: str,
    task_id: str | None = None,
    *,
    directory: str | Path | None = None,
) -> Path:
    """Make an evidence pack of one database and return its folder.

    ``task_id`` is any text; it is kept among the notes of the run. ``directory`` replaces
    :data:`DIRECTORY`. A database that is missing or broken does not stop the pack. Raises
    EvidenceError when the pack cannot be written.

    Example::

        try:
            assert store.count() == 100
        except AssertionError as error:
            dump_failure_evidence("test_count", "store.db", str(error))
            raise
    """
    now = datetime.now(UTC)
    plain_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", test_name).strip("-.")[:80] or "test"
    run_id = f"{plain_name}-{now:%Y%m%dT%H%M%S%f}"
    destination = Path(DIRECTORY if directory is None else directory).absolute() / run_id
    header = RunHeader(
        run_id=run_id,
        node_id=test_name,
        scenario=Scenario(id="stand-alone", title=test_name),
        seed="",
        started=now.isoformat(),
        session_folder=str(destination.parent),
        command=shlex.join(redactor().words(sys.argv)),
        root=str(Path.cwd()),
    )
    with tempfile.TemporaryDirectory(prefix="chaos-evidence-") as folder:
        journal = Journal(Path(folder) / "journal")
        journal.create(header)
        journal.add_database(Path(db_path).absolute())
        journal.write_record(_record(header, error_message, {} if task_id is None else {"task_id": task_id}))
        return pack.write(journal.folder, destination)


def _record(header: RunHeader, error_message: str, notes: dict[str, Json]) -> RunRecord:
    return RunRecord(
        scenario=header.scenario,
        node_id=header.node_id,
        run_id=header.run_id,
        seed=header.seed,
        verdict=Verdict.VIOLATED,
        notes=notes,
        started=header.started,
        failure=error_message,
    )
