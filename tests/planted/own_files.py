"""The harness's own files with one known bug each: what scenario 22 found, and what it has to find.

| variant | bug | seen by |
|---|---|---|
| TornReceipts | a short write counts as a whole one | an I/O error: a short write |
| write_unsynced | a baseline is renamed into a folder that is not synced | a loss of power |
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import msgspec
from pytest_chaos.explore.baseline import file, write_baseline
from pytest_chaos.runtime.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.report import Exploration


class TornReceipts(Journal):
    """Writes, and does not ask how much."""

    def _append(self, name: str, value: object) -> None:
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, b"\n" + msgspec.json.encode(value) + b"\n")
        finally:
            os.close(descriptor)


def write_unsynced(explored: Exploration, path: Path) -> None:
    """Write as before, but for the sync of the folder."""
    with mock.patch.object(file, "sync_folder"):
        write_baseline(explored, path)
