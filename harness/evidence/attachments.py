"""Files that a run adds to its evidence: a recording, a failing state. Copied as they are, within a limit."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from harness.journal import ATTACHMENTS

if TYPE_CHECKING:
    from pathlib import Path

    from harness.evidence.limits import Limits
    from harness.evidence.problems import Problems


def copy(journal_folder: Path, building: Path, limits: Limits, problems: Problems) -> None:
    """Copy what was attached into the pack; what is no plain file, or too much, is named and left out."""
    source = journal_folder / ATTACHMENTS
    left_bytes = limits.attachments_bytes_max
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        part = f"{ATTACHMENTS}/{path.relative_to(source).as_posix()}"
        if path.is_dir() and not path.is_symlink():
            continue
        with problems.catching(part):
            if path.is_symlink() or not path.is_file():
                problems.cut(part, "it is no plain file, and was not copied")
            elif (size := path.stat().st_size) > left_bytes:
                problems.cut(part, f"{size} bytes, of which {left_bytes} fit: it was not copied")
            else:
                left_bytes -= size
                (building / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, building / part)
