"""Copies the files of a run's folder that a check may have looked at, other than databases.

Each plain file under the work folder is listed. As many as the budget allows are copied, byte for
byte, to ``files/``; of a text, an excerpt without secrets goes into the index.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.evidence.databases import SIDE_FILES, printable
from pytest_chaos.evidence.reading import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.evidence.limits import Limits, Problems
    from pytest_chaos.evidence.redact import Redactor

FOLDER: Final = "files"
_FOREIGN: Final = "__pycache__"


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of the run's folder. ``path`` is relative to it; ``kind`` is file, link or other.

    ``excerpt`` is the beginning of a text, or None; ``head`` the first bytes of any other file.
    ``modified`` is UTC in ISO 8601. ``target`` is the text of a link.
    """

    path: str
    kind: str
    size_bytes: int
    modified: str
    copied: bool = False
    excerpt: str | None = None
    head: str = ""
    target: str = ""


def copy_files(
    work: Path, pack: Path, databases: Iterable[Path], redactor: Redactor, limits: Limits, problems: Problems
) -> tuple[RunFile, ...]:
    """Copy the files under ``work`` to ``pack/files`` within the limits, and describe them.

    The files of ``databases`` are left out: the pack has them already. Raises OSError for a full
    disk alone.
    """
    known = {str(path) + suffix for path in databases for suffix in SIDE_FILES}
    found: list[RunFile] = []
    left_bytes = limits.files_bytes_max
    for path in _walk(work):
        if str(path) in known:
            continue
        if len(found) == limits.files_max:
            problems.cut(FOLDER, f"only the first {limits.files_max} files of the run's folder are here")
            break
        name = path.relative_to(work.resolve())
        with problems.catching(f"{FOLDER}/{printable(name)}"):
            file = _copied(path, name, pack / FOLDER, left_bytes, redactor, limits)
            left_bytes -= file.size_bytes if file.copied else 0
            found.append(file)
    if left_out := [file.path for file in found if file.kind == "file" and not file.copied]:
        problems.cut(FOLDER, f"too large to be copied: {', '.join(left_out[:20])}")
    return tuple(found)


def _walk(work: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(work.resolve()):
        folders[:] = sorted(name for name in folders if name != _FOREIGN)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in sorted([*names, *links]))


def _copied(path: Path, name: Path, folder: Path, left_bytes: int, redactor: Redactor, limits: Limits) -> RunFile:
    status = path.lstat()
    shown = redactor.text(printable(name))
    modified = datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC).isoformat()
    if not stat.S_ISREG(status.st_mode):
        target = redactor.text(printable(os.readlink(path))) if path.is_symlink() else ""
        return RunFile(shown, "link" if path.is_symlink() else "other", 0, modified, target=target)
    with reading(path) as stream:
        start = stream.read(limits.excerpt_bytes_max)
        is_copied = status.st_size <= min(limits.file_bytes_max, left_bytes)
        if is_copied:
            destination = folder / printable(name)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with destination.open("xb") as copy:
                copy.write(start)
                left = status.st_size - len(start)  # it may still grow
                while left > 0 and (block := stream.read(min(left, 1 << 20))):
                    left -= copy.write(block)
    text = _text(start, is_whole=len(start) == status.st_size)
    excerpt = None if text is None else redactor.text(text)
    head = "" if text is not None else start[: limits.head_bytes_max].hex()
    return RunFile(shown, "file", status.st_size, modified, is_copied, excerpt, head)


def _text(content: bytes, *, is_whole: bool) -> str | None:
    """Return the content as text, or None if it is none; a cut one ends with a whole line."""
    whole = content if is_whole else content[: content.rfind(b"\n") + 1] or content
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
