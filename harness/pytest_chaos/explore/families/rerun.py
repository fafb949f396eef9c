"""A state that only a real run leaves: the run is made again, with the same directive."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.explore.record import Rebuilt
from pytest_chaos.explore.simulate.folder import StateFolder, read_folder
from pytest_chaos.model.history import History

if TYPE_CHECKING:
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.trace.source import Directive


def rebuilt_by_run(
    recorded: Recorded, directive: Directive, text: str, folder: Path, *, timeout_s: float
) -> Rebuilt | None:
    """Run the program under a directive, and return the state and the marks that it left.

    None if the directive was not carried out: then the run left no state of that name.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        directory, marks = Path(name) / "directory", Path(name) / "marks"
        StateFolder(directory).put(recorded.before)
        program = recorded.subject.program(directory, marks)
        seen = recorded.source.observe(program, directory, marks=marks, directive=directive, timeout_s=timeout_s)
        if not seen.fired:
            return None
        written = History.from_lines(marks.read_bytes()).marks
        return Rebuilt(read_folder(directory, recorded.store), written, text)
