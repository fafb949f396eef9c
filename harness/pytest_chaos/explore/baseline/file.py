"""The file of a baseline: JSON, one entry a line, so that a merge and a review can read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.evidence.manifest import sync_folder
from pytest_chaos.explore.baseline.compare import FORMAT, Baseline, known_findings
from pytest_chaos.model.verdict import encodable

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.report import Exploration

BYTES_MAX: Final = 64 << 20
_AGAIN: Final = "Write it again with --write-baseline"


class BaselineError(ChaosError):
    """A baseline that nothing can be compared with: of another target or format, or damaged."""


class _Head(msgspec.Struct):
    """What every format has: read first, so that a newer one is told by its number."""

    format: int


def read_baseline(path: Path, target: str) -> Baseline:
    """Return the baseline of a target.

    Raises UsageError for a file that cannot be read, and BaselineError for one that is damaged, of
    another format, or of another target.
    """
    try:
        if path.stat().st_size > BYTES_MAX:
            msg = f"--baseline must be at most {BYTES_MAX:,} bytes; got {path}. {_AGAIN}"
            raise BaselineError(msg)
        written = path.read_bytes()
    except OSError as error:
        rule = "--baseline must be a file that can be read"
        msg = f"{rule}; got {path}: {error.strerror}. Give one that --write-baseline has written"
        raise UsageError(msg) from error
    try:
        found = msgspec.json.decode(written, type=_Head).format
        if found != FORMAT:
            msg = f"--baseline must be of format {FORMAT}, that of this version; got {path} of format {found}. {_AGAIN}"
            raise BaselineError(msg)
        baseline = msgspec.json.decode(written, type=Baseline)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = f"--baseline must be what --write-baseline has written; got {path}, damaged: {error}. {_AGAIN}"
        raise BaselineError(msg) from error
    if baseline.target != encodable(target):
        msg = f"--baseline must be of the target {target!r}; got {path} of {baseline.target!r}. Give its own file"
        raise BaselineError(msg)
    return baseline


def check_destination(path: Path) -> None:
    """Raise UsageError for a file that cannot be written or is no baseline, before exploring."""
    rule = "--write-baseline must be a file that can be written"
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            why = "that cannot be written" if path.parent.is_dir() else "there is no such folder"
            msg = f"{rule}; got {path}: {why}. Give another"
            raise UsageError(msg)
        return
    if not path.is_file() or not os.access(path, os.R_OK) or not os.access(path.parent, os.W_OK):
        msg = f"{rule}; got {path}. Give another"
        raise UsageError(msg)
    if written := path.read_bytes():
        try:
            msgspec.json.decode(written, type=_Head)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            msg = f"--write-baseline must be a new file or a baseline; got {path}, which is neither. Give another"
            raise UsageError(msg) from error


def write_baseline(explored: Exploration, path: Path) -> Baseline:
    """Write the findings of an exploration as the baseline of its target, and return it.

    The file is written whole or not at all, and flushed. Raises UsageError if it cannot be written.
    """
    families = tuple(str(each.family) for each in explored.families)
    baseline = Baseline(
        target=encodable(explored.target), format=FORMAT, families=families, known=known_findings(explored)
    )
    entries = ",\n".join(f"  {msgspec.json.encode(entry).decode()}" for entry in baseline.known)
    head = msgspec.json.encode({"format": FORMAT, "target": baseline.target, "families": families}).decode()
    text = f'{head[:-1]},"known":[\n{entries}\n]}}\n' if entries else f'{head[:-1]},"known":[]}}\n'
    path = path.resolve()  # a link stays one
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        msg = f"--write-baseline must be a file that can be written; got {path}: {error.strerror}. Give another"
        raise UsageError(msg) from error
    return baseline
