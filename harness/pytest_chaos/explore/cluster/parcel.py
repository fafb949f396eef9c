"""The parcel of an exploration: all that a worker has to know, in one value with a digest.

It has the target (pickled), the sources of its modules, the files that its commands name, and the
recording. Whatever the target needs beside has to be installed where the workers run.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from functools import cache
from hashlib import blake2b
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec

from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.explore.cluster.sources import ModuleSource, import_from, sources_of
from pytest_chaos.explore.record import Recorded
from pytest_chaos.explore.target import CommandSubject
from pytest_chaos.trace.recording import Recording
from pytest_chaos.trace.schedule import Schedule
from pytest_chaos.trace.source import source_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.explore.target import Subject

PARCEL_BYTES_MAX: Final = 1 << 30
"""A larger recording is not sent to a cluster: each worker would hold it in memory."""
_FILES_BYTES_MAX: Final = 64 << 20
_PACKAGE: Final = Path(__file__).resolve().parents[2]
_SYSTEM: Final = ("/usr/", "/bin/", "/sbin/", "/lib", "/dev/", "/proc/", "/sys/", "/etc/")


class _NamedFile(msgspec.Struct, frozen=True, array_like=True):
    """A file that a command of the target names."""

    path: str
    mode: int
    content: bytes


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """A parcel as it travels."""

    subject: bytes
    sources: tuple[ModuleSource, ...]
    files: tuple[_NamedFile, ...]
    paths: tuple[str, ...]
    seed: str
    source: str
    schedule: Schedule | None
    check_timeout_s: float
    recording: dict[str, bytes]


@cache
def own_versions() -> str:
    """Return the versions that a worker must share: Python, and pytest-chaos with its code.

    Two checkouts may have one number, so a digest of the code counts, too.
    """
    digest = blake2b(digest_size=4)
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    try:
        number = version("pytest-chaos")
    except PackageNotFoundError:
        number = "not installed"
    return f"Python {platform.python_version()}, pytest-chaos {number} (code {digest.hexdigest()})"


def pickled(subject: Subject) -> bytes:
    """Return a target as bytes. Raises UsageError for one that cannot leave its process.

    What can be imported goes by its name, anything else by its code (cloudpickle).
    """
    cloudpickle = import_module("cloudpickle")  # only where there is a cluster

    try:
        return cast("bytes", cloudpickle.dumps(subject))
    except Exception as error:
        msg = (
            f"the target {subject.name} must be one that can be sent to another process, for a cluster; got "
            f"{type(error).__name__}: {error}. Open in run() and check() what cannot be sent, or leave the cluster out"
        )
        raise UsageError(msg) from error


def packed(recorded: Recorded, *, check_timeout_s: float) -> bytes:
    """Return the parcel of a recorded run. Raises ChaosError if it is too large to be sent."""
    folder = recorded.recording.folder
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > PARCEL_BYTES_MAX:
        msg = (
            f"a recording must have {PARCEL_BYTES_MAX >> 20:,} MiB at most, to be sent to a cluster; got "
            f"{size >> 20:,} MiB. Explore it with --jobs on one machine"
        )
        raise ChaosError(msg)
    parcel = _Packed(
        subject=pickled(recorded.subject),
        sources=sources_of(sys.modules.values()),
        files=_files_of(recorded.subject),
        paths=tuple(path or str(Path.cwd()) for path in sys.path),
        seed=recorded.seed,
        source=recorded.source.name,
        schedule=recorded.schedule,
        check_timeout_s=check_timeout_s,
        recording={path.name: path.read_bytes() for path in folder.iterdir()},
    )
    return msgspec.msgpack.encode(parcel)


def _files_of(subject: Subject) -> tuple[_NamedFile, ...]:
    if not isinstance(subject, CommandSubject):
        return ()
    found: dict[str, _NamedFile] = {}
    left = _FILES_BYTES_MAX
    for word in subject.words:
        path = Path(word)
        if not path.is_absolute() or not path.is_file() or _is_installed(path):
            continue
        left -= path.stat().st_size
        if left < 0:
            msg = (
                f"the files that the commands name must have {_FILES_BYTES_MAX >> 20} MiB at most, to be sent to a "
                f"cluster; got more with {path}. Install them on the workers, in the same place"
            )
            raise ChaosError(msg)
        found[word] = _NamedFile(word, path.stat().st_mode & 0o777, path.read_bytes())
    return tuple(found.values())


def _is_installed(path: Path) -> bool:
    prefixes = (*_SYSTEM, *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "scripts")))
    return str(path).startswith(prefixes)


class Unpacked:
    """A parcel in a folder of a worker, with the recorded run.

    Raises ChaosError if the target cannot be made here.
    """

    def __init__(self, content: bytes, folder: Path) -> None:
        cloudpickle = import_module("cloudpickle")  # as in pickled

        parcel = msgspec.msgpack.decode(content, type=_Packed)
        sys.path.extend(path for path in parcel.paths if path not in sys.path and Path(path).exists())
        import_from(parcel.sources, folder / "sources")
        try:
            subject: Subject = cloudpickle.loads(parcel.subject)
        except Exception as error:
            msg = (
                f"the target must be one that can be made on a worker; got {type(error).__name__}: {error}. Install "
                "there what it imports"
            )
            raise ChaosError(msg) from error
        if isinstance(subject, CommandSubject):
            subject.move(_moved(parcel.files, folder / "files"))
        kept = folder / "recording"
        kept.mkdir()
        for name, data in parcel.recording.items():
            (kept / Path(name).name).write_bytes(data)
        recording = Recording(kept)
        self.check_timeout_s = parcel.check_timeout_s
        self.recorded = Recorded(
            subject, source_for(parcel.source, recording.files), recording, folder, seed=parcel.seed
        )
        self.recorded.schedule = parcel.schedule


def _moved(files: Iterable[_NamedFile], folder: Path) -> dict[str, str]:
    """Write the files that are not in their place here; return where they are."""
    moved: dict[str, str] = {}
    for number, file in enumerate(files):
        try:
            is_here = Path(file.path).read_bytes() == file.content
        except OSError:
            is_here = False
        if not is_here:
            place = folder / str(number) / Path(file.path).name
            place.parent.mkdir(parents=True)
            place.write_bytes(file.content)
            place.chmod(file.mode)
            moved[file.path] = str(place)
    return moved
