"""Starts an exploration: finds the source of steps, and a folder in memory for the states, which is gone afterwards."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from harness import scratch
from harness.errors import StepsUnavailable, UsageError
from harness.explore.explorer import ROOM_BYTES_MIN, Explorer
from harness.explore.guarding import guarded
from harness.explore.result import Exploration, ExplorationError
from harness.model import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.explore.session import Options, Progress
    from harness.explore.target import Subject
    from harness.steps.source import StepSource

MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - the folders made in it are this user's alone
_MOUNTS: Final = Path("/proc/self/mounts")


def launch(
    subject: Subject,
    options: Options,
    *,
    base: Path | None = None,
    source_name: str | None = None,
    kept: Path | None = None,
    kept_as: str = "",
    progress: Path | None = None,
    command: str = "",
    listen: Callable[[Progress], None] = lambda _: None,
) -> Exploration:
    """Explore a target in a folder of its own under ``base``, by default in memory, and remove the folder.

    ``source_name`` is seccomp or audit, or None for the best of this machine.
    Raises UsageError for options and folders that cannot be used. That no steps can be seen here is a finding, which
    leaves the exploration INCONCLUSIVE.
    """
    place = base or default_base()
    if not place.is_dir():
        msg = f"states are written to {place}, which is no folder: give another with --scratch"
        raise UsageError(msg)
    try:
        source = step_source(source_name)
    except StepsUnavailable as error:
        finding = Finding(signature="harness:no-steps-here", text=str(error), kind="harness", checker="explore")
        return Exploration(target=subject.name, seed=options.seed, findings=(finding,))
    with work_folders(place, Path(tempfile.gettempdir())) as folders:

        def explore(tell: Callable[[Progress], None]) -> Exploration:
            return Explorer(
                subject,
                source,
                options,
                folders[0],
                disk=folders[1],
                kept=kept,
                kept_as=kept_as,
                progress=progress,
                command=command,
                listen=tell,
            ).explore()

        try:
            found = guarded(explore, folders=folders, listen=listen)
        except ExplorationError as error:
            finding = Finding(signature=error.signature, text=str(error), kind="harness", checker="explore")
            return Exploration(target=subject.name, seed=options.seed, findings=(finding,))
    if source.name == "audit" and source_name is None:
        found = _fallen_back(found)
    return found if is_memory(place) else _with_note(found, place)


@contextlib.contextmanager
def work_folders(*bases: Path) -> Iterator[list[Path]]:
    """Make a folder of this process in each base, and remove them at the end; those that others left go, too."""
    made: list[Path] = []
    try:
        for base in bases:
            scratch.sweep(base)
            made.append(scratch.create(base))
        yield made
    finally:
        for folder in made:
            scratch.remove(folder)


def step_source(name: str | None = None) -> StepSource:
    """Return the source of steps of this name, or the best of this machine. Raises StepsUnavailable, UsageError."""
    from harness.steps.choosing import source_for  # it looks at the machine when it is imported

    return source_for(name)


def default_base() -> Path:
    """Return where states are written: the memory file system, or the folder for temporary files without one."""
    if is_memory(MEMORY_FOLDER):
        import shutil

        if shutil.disk_usage(MEMORY_FOLDER).free >= ROOM_BYTES_MIN:
            return MEMORY_FOLDER
    return Path(tempfile.gettempdir())


def is_memory(folder: Path) -> bool:
    """Whether a folder lies on a memory file system."""
    if not folder.is_dir():
        return False
    device = folder.stat().st_dev
    try:
        mounts = [line.split() for line in _MOUNTS.read_text(errors="replace").splitlines()]
    except OSError:
        return False
    points = [Path(fields[1]) for fields in mounts if fields[2] in {"tmpfs", "ramfs"}]
    return any(_device(point) == device for point in points)


def _device(point: Path) -> int:
    try:
        return point.stat().st_dev
    except OSError:
        return -1


def _fallen_back(found: Exploration) -> Exploration:
    """Return the result with what keeps it from being taken for more than it is: nobody asked for named events only."""
    from harness.steps.choosing import why_not_seccomp

    text = f"only named audit events were explored, which --source audit accepts, since {why_not_seccomp()}"
    finding = Finding(signature="harness:named-events-only", text=text, kind="harness", checker="explore")
    return msgspec.structs.replace(found, findings=(*found.findings, finding))


def _with_note(found: Exploration, place: Path) -> Exploration:
    note = f"states were written to {place}, which is no memory file system: it takes longer, and finds the same"
    return msgspec.structs.replace(found, notes=(*found.notes, note))
