"""Planted defects that a scenario has caught, kept in the results folder for the matrix page.

A planted defect is a target with one known bug: a mutant that was written by hand. A test that runs
a scenario against it, and finds it caught, keeps that here. The matrix page lists it with the
scenario, beside the mutants of ``chaos mutate``.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "planted.jsonl"
_FOLDER: Final = "mutation"


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """A planted defect, the scenario that caught it, and the signature of the finding.

    ``test`` is the node id of the run that did; ``started`` is UTC in ISO 8601.
    """

    scenario: str
    defect: str
    signature: str
    test: str = ""
    started: str = ""


def keep(results: Path, planted: Planted) -> None:
    """Append a caught defect to the results folder, in one write. A folder that is full is borne.

    Example::

        caught = Planted(scenario="shop", defect="store:AckFirst", signature="check:order is lost")
        keep(Path("chaos-results"), caught)
    """
    with contextlib.suppress(OSError):
        folder = results / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, msgspec.json.encode(planted) + b"\n")
        finally:
            os.close(descriptor)
