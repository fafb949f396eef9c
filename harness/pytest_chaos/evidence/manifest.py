"""The manifest of a pack: every file with its size and SHA-256, written last; and its check.

It is not signed: a person who can change a file can change the manifest, too. It shows a torn, cut,
mixed up or edited pack.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

FILE_NAME: Final = "manifest.json"
FORMAT: Final = 1
"""Version of a pack; raised when something in it changes its meaning."""

NOTICE: Final = (
    "Secrets are redacted in all text of this pack (evidence.sqlite, agents/, marks.jsonl, failure.txt). The files "
    "under database/, files/ and attachments/ are byte-exact copies and are NOT redacted: they hold what the program "
    "stored."
)
_MANIFEST_BYTES_MAX: Final = 16 * 1024 * 1024


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a pack; ``path`` is relative to the pack, with slashes."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a pack and its files. ``created`` is UTC in ISO 8601."""

    format: int = FORMAT
    run_id: str = ""
    node_id: str = ""
    scenario: str = ""
    seed: str = ""
    verdict: str = ""
    created: str = ""
    notice: str = NOTICE
    files: tuple[FileEntry, ...] = ()


class _Format(msgspec.Struct):
    format: int


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of all other files of the folder, synced and then renamed into place.

    The files are synced before it: after a loss of power, a pack with a manifest is a whole one.
    """
    entries = tuple(_entry(folder, path) for path in sorted(_walk(folder)) if path != folder / FILE_NAME)
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        sync_folder(Path(root))
    fresh = folder / f".{FILE_NAME}.new"
    with fresh.open("xb") as stream:
        stream.write(
            msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=entries)), indent=1)
        )
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(folder / FILE_NAME)
    sync_folder(folder)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, and sync the name of each."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's names to the disk."""
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int = 0) -> None:
    if path.is_symlink():  # a link has no content: its name is the folder's
        return
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(pack: Path) -> Manifest:
    """Read a pack's manifest. Raises EvidenceError for no pack, or one of a newer format."""
    path = pack / FILE_NAME
    if not path.is_file():
        msg = f"{pack} must be an evidence pack; got no {FILE_NAME} in it. Give the folder that the failure named"
        raise EvidenceError(msg)
    try:
        with opened(pack, FILE_NAME) as stream:
            content = stream.read(_MANIFEST_BYTES_MAX)
        newer = msgspec.json.decode(content, type=_Format).format > FORMAT
        if not newer:
            return msgspec.json.decode(content, type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as a manifest: {error}. The pack is damaged or was edited"
        raise EvidenceError(msg) from error
    msg = f"{pack} must be of format {FORMAT} at most; got a newer format than {FORMAT}. Upgrade pytest-chaos"
    raise EvidenceError(msg)


def verify(path: Path) -> list[str]:
    """Return the problems of a pack, a sentence each; none if it is as it was written.

    Raises nothing for the content of the folder, and follows no link out of it.
    """
    try:
        manifest = read(path)
    except EvidenceError as error:
        return [str(error)]
    counts = Counter(entry.path for entry in manifest.files)
    problems = [f"{name!r} is listed {count} times in the manifest" for name, count in counts.items() if count > 1]
    for entry in manifest.files:
        problems += problems_of(path, entry)
    for present in sorted(_walk(path)):
        name = present.relative_to(path).as_posix()
        if name not in counts and name != FILE_NAME:
            problems.append(f"{name!r} is not in the manifest: it was added after the pack was written")
    return problems


@contextmanager
def opened(pack: Path, name: str) -> Iterator[BufferedReader]:
    """Open a regular file of a pack by its name in the manifest. Raises OSError for a link."""
    folder = os.open(pack, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, last = PurePosixPath(name).parts
        for part in parents:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"{name!r} is not a regular file"
            raise OSError(msg)
        yield stream


def start_of(pack: Path, entry: FileEntry, size_bytes_max: int) -> str:
    """Return the start of a listed text file. Raises OSError if its size has changed."""
    if not inside(entry.path):
        msg = f"{entry.path!r} is not a path inside a pack"
        raise OSError(msg)
    with opened(pack, entry.path) as stream:
        if os.fstat(stream.fileno()).st_size != entry.size_bytes:
            msg = f"{entry.path!r} has changed since it was written"
            raise OSError(msg)
        return stream.read(size_bytes_max).decode(errors="replace")


def problems_of(pack: Path, entry: FileEntry) -> Iterator[str]:
    """Yield the problems of one file of a pack."""
    if not inside(entry.path):
        yield f"{entry.path!r} is not a path inside a pack: the manifest was edited"
        return
    path = pack / entry.path
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or any((pack / part).is_symlink() for part in _parents(entry.path)):
            yield f"{entry.path!r} is not a file but a link or something else"
            return
        with opened(pack, entry.path) as stream:
            if (size := os.fstat(stream.fileno()).st_size) != entry.size_bytes:
                yield f"{entry.path!r} has {size} bytes, it was written with {entry.size_bytes}"
            elif hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                yield f"{entry.path!r} has changed since it was written (its SHA-256 is another)"
    except FileNotFoundError:
        yield f"{entry.path!r} is missing"
    except (OSError, ValueError) as error:
        yield f"{entry.path!r} cannot be read: {error}"


def inside(name: str) -> bool:
    """Whether a manifest's path stays in its pack."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
        and path.as_posix() == name
    )


def _parents(name: str) -> tuple[PurePosixPath, ...]:
    return tuple(PurePosixPath(name).parents)[:-1]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder; links are yielded, not followed."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())


def _entry(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
