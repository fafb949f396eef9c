"""Artifacts: old content or new content, whole, whatever happens; and no way out of the folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from durable_agents import ARTIFACT_CRASH_POINTS, Artifacts, FileSha256, Reason
from durable_agents.errors import ArtifactNotWritten, InvalidArtifact, InvalidEvidence, InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60
_NOBODY: Final = 65534
_OUTSIDE: Final = ("/etc/passwd", "../secret", "a/../../secret", "a/..", "", ".", "nul\0", "lone \ud800")

_heard: list[tuple[str, tuple[object, ...]]] | None = None
_on_event: Callable[[str], object] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _heard is not None and (event.startswith("recovery.artifact.") or event in {"open", "os.rename"}):
        _heard.append((event, arguments))
    if _on_event is not None:
        _on_event(event)


sys.addaudithook(_listen)


@pytest.fixture(name="artifacts")
def _artifacts(tmp_path: Path) -> Artifacts:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Artifacts(folder)


@pytest.fixture(name="heard")
def _hear() -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """Return the events of a test. A hook cannot be removed, so there is one, switched off."""
    global _heard  # noqa: PLW0603 - the one place that switches the hook
    _heard = []
    yield _heard
    _heard = None


@pytest.fixture(name="at")
def _at() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Return what makes something happen at a crash point, once."""

    def do_at(point: str, action: Callable[[], object]) -> None:
        global _on_event  # noqa: PLW0603 - the hook of this module looks here

        def act(event: str) -> None:
            global _on_event  # noqa: PLW0603 - once only
            if event == point:
                _on_event = None
                action()

        _on_event = act

    yield do_at
    globals()["_on_event"] = None


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_there_with_its_evidence(artifacts: Artifacts) -> None:
    """The file has the content, the evidence has its path and hash,
    and nothing else is left in the folder.
    """
    content = "итог\n".encode() * 1000
    evidence = artifacts.write("runs/7/result.txt", content)
    assert evidence == FileSha256("runs/7/result.txt", hashlib.sha256(content).hexdigest())
    assert _files(artifacts.folder) == {"runs/7/result.txt": content}
    assert artifacts.look("runs/7/result.txt", with_hash=True).sha256 == evidence.sha256


def test_writing_again_replaces(artifacts: Artifacts) -> None:
    """The second content takes the place of the first, an empty one too."""
    artifacts.write("a", b"first, and longer")
    artifacts.write("a", b"second")
    assert _files(artifacts.folder) == {"a": b"second"}
    artifacts.write("a", b"")
    assert _files(artifacts.folder) == {"a": b""}


def test_a_write_passes_every_crash_point_once_and_in_order(
    artifacts: Artifacts, heard: list[tuple[str, tuple[object, ...]]]
) -> None:
    """The audit events of a write are exactly the declared ones, with the path."""
    artifacts.write("a", b"1")
    ours = [(event, arguments) for event, arguments in heard if event.startswith("recovery.")]
    assert ours == [(point, ("a",)) for point in ARTIFACT_CRASH_POINTS]


def test_file_and_folder_are_flushed_around_the_rename(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the file, then the rename, then the folder;
    and the parent of each new folder before anything in it.
    """
    steps: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('-')[0]}")
        real_sync(descriptor)

    def rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        steps.append("rename")
        real_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    artifacts.write("outer/inner/a", b"1")
    assert steps == ["sync artifacts", "sync outer", "sync .unfinished", "rename", "sync inner"]
    steps.clear()
    artifacts.write("outer/inner/b", b"1")
    assert steps == ["sync .unfinished", "rename", "sync inner"]


_KILLED: Final = """
import os, signal, sys
from durable_agents import Artifacts
folder, point = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
Artifacts(folder).write("a", b"new" * 1000)
"""


@pytest.mark.parametrize("point", ARTIFACT_CRASH_POINTS)
def test_a_kill_leaves_the_old_content_or_the_new(artifacts: Artifacts, point: str) -> None:
    """Up to the rename the old file is there, after it the new one;
    what else is left can be discarded.
    """
    artifacts.write("a", b"old")
    command = [sys.executable, "-c", _KILLED, str(artifacts.folder), point]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(_ROOT)}, timeout=_TIMEOUT_S, check=False)
    assert ended.returncode == -signal.SIGKILL
    is_renamed = ARTIFACT_CRASH_POINTS.index(point) >= ARTIFACT_CRASH_POINTS.index("recovery.artifact.after_rename")
    assert (artifacts.folder / "a").read_bytes() == (b"new" * 1000 if is_renamed else b"old")
    is_left_over = not is_renamed and point != "recovery.artifact.before_create"
    assert artifacts.discard_leftovers() == is_left_over
    assert list(_files(artifacts.folder)) == ["a"]


def test_the_file_of_a_writer_at_work_is_not_discarded(
    artifacts: Artifacts, at: Callable[[str, Callable[[], object]], None]
) -> None:
    """Cleaning up in the middle of a write takes nothing away from it."""
    discarded: list[int] = []
    at("recovery.artifact.after_write", lambda: discarded.append(artifacts.discard_leftovers()))
    artifacts.write("a", b"1")
    assert discarded == [0]
    assert _files(artifacts.folder) == {"a": b"1"}


def test_a_file_that_is_discarded_before_it_is_locked_is_made_anew(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment in which a writer's file is not locked costs it another attempt,
    and no content.
    """
    real_lock = fcntl.flock
    discarded: list[int] = []

    def lock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not discarded:
            discarded.append(artifacts.discard_leftovers())
        real_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    artifacts.write("a", b"1")
    assert discarded == [1]
    assert _files(artifacts.folder) == {"a": b"1"}


@pytest.mark.parametrize("path", _OUTSIDE)
def test_a_path_that_leads_out_is_refused(artifacts: Artifacts, path: str) -> None:
    """Writing raises, evidence cannot be made, and a look says that it is outside;
    nothing is written.
    """
    with pytest.raises(InvalidArtifact, match="must be a path below its folder"):
        artifacts.write(path, b"1")
    with pytest.raises(InvalidEvidence, match="path of an artifact must be relative"):
        FileSha256(path, "0" * 64)
    assert artifacts.look(path).reason is Reason.OUTSIDE
    assert _files(artifacts.folder.parent) == {}


def test_links_are_not_followed(artifacts: Artifacts, tmp_path: Path) -> None:
    """Neither a link to a file nor one to a folder leads a look or a write out;
    a link under the name is replaced.
    """
    (tmp_path / "secret").write_bytes(b"secret")
    (artifacts.folder / "file").symlink_to(tmp_path / "secret")
    (artifacts.folder / "folder").symlink_to(tmp_path)
    (artifacts.folder / "loop").symlink_to("loop")
    for path in ("file", "folder/secret", "folder", "loop", "loop/x"):
        assert artifacts.look(path, with_hash=True).reason is Reason.OUTSIDE, path
    with pytest.raises(InvalidArtifact, match="through no link"):
        artifacts.write("folder/new", b"1")
    artifacts.write("file", b"1")
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert artifacts.look("file").reason is Reason.VERIFIED


def test_what_is_no_file_is_told_apart(artifacts: Artifacts) -> None:
    """A folder, a FIFO that nobody writes to, a socket,
    a missing file and one below a file each get their reason.
    """
    (artifacts.folder / "folder").mkdir()
    os.mkfifo(artifacts.folder / "fifo")
    os.mknod(artifacts.folder / "socket", 0o140600)
    artifacts.write("file", b"1")
    expected = {
        "folder": Reason.NOT_A_FILE,
        "fifo": Reason.NOT_A_FILE,
        "socket": Reason.NOT_A_FILE,
        "missing": Reason.MISSING,
        "no/folder": Reason.MISSING,
        "file/below": Reason.MISSING,
        "n" * 300: Reason.MISSING,
        "file": Reason.VERIFIED,
    }
    for with_hash in (False, True):
        assert {path: artifacts.look(path, with_hash=with_hash).reason for path in expected} == expected


def test_a_file_swapped_for_a_fifo_does_not_block(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular file that becomes a FIFO between looking and opening is found out,
    without waiting for a writer.
    """
    path = artifacts.folder / "a"
    artifacts.write("a", b"1")
    real_open = os.open

    def swap_and_open(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if name == "a" and not path.is_fifo():
            path.unlink()
            os.mkfifo(path)
        return real_open(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap_and_open)
    assert artifacts.look("a", with_hash=True).reason is Reason.CHANGED


_UNREADABLE: Final = """
import os, sys
from durable_agents import Artifacts
artifacts = Artifacts(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
print(artifacts.look("a", with_hash=True).reason, artifacts.look("closed/a").reason)
"""


def test_an_unreadable_file_is_told_apart(artifacts: Artifacts) -> None:
    """A file without permission, and one in a folder without, are unreadable and not missing."""
    artifacts.write("a", b"1")
    artifacts.write("closed/a", b"1")
    (artifacts.folder / "a").chmod(0)
    (artifacts.folder / "closed").chmod(0)
    for folder in (artifacts.folder, *artifacts.folder.parents[:2]):
        folder.chmod(0o755)  # pytest closes its folders to others, and here is one
    command = [sys.executable, "-c", _UNREADABLE, str(artifacts.folder), str(_NOBODY)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    (artifacts.folder / "closed").chmod(0o755)
    assert output.stdout.split() == ["unreadable", "unreadable"]


@pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten", "is replaced"])
def test_a_file_that_changes_while_it_is_hashed_is_not_believed(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Whatever happens to it between two reads, the look says so."""
    artifacts.write("a", bytes(3 * 1024 * 1024))
    path = artifacts.folder / "a"
    real_read = os.read
    is_done = False

    def read_and_change(descriptor: int, size: int) -> bytes:
        nonlocal is_done
        content = real_read(descriptor, size)
        if not is_done:
            is_done = True
            _change(path, change, artifacts)
        return content

    monkeypatch.setattr(os, "read", read_and_change)
    assert artifacts.look("a", with_hash=True).reason is Reason.CHANGED


def _change(path: Path, change: str, artifacts: Artifacts) -> None:
    if change == "is replaced":
        artifacts.write("a", b"other")
        return
    if change == "shrinks":
        os.truncate(path, 1_500_000)
        return
    with path.open("ab" if change == "grows" else "r+b") as file:
        file.write(b"more")
    os.utime(path, ns=(1, 1))  # the next tick of the file system's clock may be some milliseconds away


def test_a_file_above_the_bound_is_not_hashed(tmp_path: Path) -> None:
    """The bound is on what is hashed; that it exists can still be told."""
    artifacts = Artifacts(tmp_path, bytes_max=3)
    artifacts.write("a", b"1234")
    assert artifacts.look("a", with_hash=True).reason is Reason.TOO_LARGE
    assert artifacts.look("a").reason is Reason.VERIFIED
    artifacts.write("a", b"123")
    assert artifacts.look("a", with_hash=True).reason is Reason.VERIFIED


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The folder is the caller's to make, and a bound is not negative."""
    with pytest.raises(InvalidSetting, match="folder of the artifacts must exist"):
        Artifacts(tmp_path / "none")
    with pytest.raises(InvalidSetting, match="bytes_max must be 0 or more"):
        Artifacts(tmp_path, bytes_max=-1)


@pytest.mark.parametrize("content", ["text", None, bytearray(b"1")])
def test_only_bytes_are_written(artifacts: Artifacts, content: object) -> None:
    """Text is not encoded by guess, and what another thread could change is not taken."""
    with pytest.raises(InvalidArtifact, match="and bytes; got"):
        artifacts.write("a", content)  # type: ignore[arg-type]  # the wrong type is the point
    assert _files(artifacts.folder) == {}


def test_a_folder_in_the_way_is_an_error_and_stays(artifacts: Artifacts) -> None:
    """A write does not replace a folder, nor make one where a file is."""
    (artifacts.folder / "a").mkdir()
    artifacts.write("b", b"1")
    for path in ("a", "b/c"):
        with pytest.raises(ArtifactNotWritten, match="from the file system"):
            artifacts.write(path, b"1")
    assert _files(artifacts.folder) == {"b": b"1"}


def test_a_full_disk_leaves_the_old_content(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of writing is told, and neither the target nor the folder shows it."""
    artifacts.write("a", b"old")

    def write(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ArtifactNotWritten, match="No space left on device"):
        artifacts.write("a", b"new")
    assert _files(artifacts.folder) == {"a": b"old"}
