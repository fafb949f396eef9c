"""The questions about files: artifacts, and the status files of workspaces."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import Artifacts
from durable_agents.errors import RecoveryError
from durable_agents.state.status_files import StatusFiles, WorkspaceStatus, check_workspace, is_status
from durable_agents.work import artifacts as artifact_files
from durable_agents.work.artifacts import read_in

from scenarios.questions.world import Questions, World, open_in, refused

if TYPE_CHECKING:
    from collections.abc import Callable


REFUSING: Final = OSError(errno.EACCES, os.strerror(errno.EACCES))
ODD: Final = OSError("of no number")
"""An error that is not the kernel's: it has a text and nothing else."""


def short_read(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """Return a read that gives less than it is asked for."""
    return lambda file, size: read(file, min(size, 1_000_003))


def synced(world: World) -> list[str]:
    """Return what a write makes, flushes and renames, in this order."""
    artifacts, done, is_on = Artifacts(world.folder), list[str](), True
    flush = os.fsync

    def note_rename(event: str, _: Any) -> None:
        if is_on and event in {"os.rename", "os.mkdir"}:
            done.append(event.removeprefix("os."))

    def fsync(file: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        flush(file)

    sys.addaudithook(note_rename)
    with mock.patch("os.fsync", fsync):
        artifacts.write("a/b/file", b"content")
        is_on = False
    return done


def looked_at(world: World) -> list[Any]:
    """Return what is said of a file of three chunks, and of one that is read up to its size."""
    artifacts = Artifacts(world.folder)
    content = os.urandom(3 * 1024 * 1024 + 1)
    written = artifacts.write("a/file", content)
    with mock.patch("os.read", short_read(os.read)):  # a signal may cut it short
        look, read = artifacts.look("a/file", with_hash=True), artifacts.read("a/file", bytes_max=len(content))
    is_right = {written.sha256, look.sha256} == {hashlib.sha256(content).hexdigest()} and read.content == content
    less = artifacts.read("a/file", bytes_max=len(content) - 1)
    bounded = [
        str(Artifacts(world.folder, bytes_max=each).look("a/file", with_hash=True).reason)
        for each in (len(content), len(content) - 1)
    ]
    bounds = [refused(lambda each=each: Artifacts(world.folder, bytes_max=each)) for each in (-1, 0)]  # type: ignore[misc]
    return [str(look.reason), is_right, str(less.reason), bounded, bounds]


def artifact_paths(world: World) -> list[Any]:
    """Return how paths are answered that lead nowhere or out, and what is not bytes."""
    artifacts = Artifacts(world.folder)
    (world.folder / "link").symlink_to("/tmp")  # noqa: S108 - nothing is written there
    (world.folder / "folder").mkdir()
    paths = ("", "/", "..", "a/../b", "link/file", "folder")
    written = [refused(lambda path=path: artifacts.write(path, b"1")) for path in paths]  # type: ignore[misc]
    return [written, refused(lambda: artifacts.write("text", "text"))]  # type: ignore[arg-type]


def discarded(world: World) -> list[int]:
    """Return what others discard while a writer has a temporary file, and what afterwards."""
    artifacts, meanwhile = Artifacts(world.folder), []
    is_on = True

    def discard(event: str, _: Any) -> None:
        if is_on and event == "recovery.artifact.after_write":
            meanwhile.append(Artifacts(world.folder).discard_leftovers())

    sys.addaudithook(discard)
    artifacts.write("file", b"content")
    is_on = False
    return [*meanwhile, artifacts.discard_leftovers(), len((world.folder / "file").read_bytes())]


def walked(world: World) -> list[str]:
    """Return the workspaces that a walk finds, of two at depths 4 and 5."""
    files = StatusFiles(world.folder / "workspaces")
    files.write("a/b/c/d", WorkspaceStatus(status="queued"))
    deep = world.folder / "workspaces/a/b/e/f/g"
    deep.mkdir(parents=True)
    content = (world.folder / "workspaces/a/b/c/d/status.json").read_bytes()
    for folder in (deep, world.folder / "workspaces"):  # too deep, and the root itself
        (folder / "status.json").write_bytes(content)
    return [name for name, _ in files.walk()]


def odd_paths(world: World) -> list[Any]:
    """Return what looks and reads say of links, folders, pipes, what is too large, and nothing."""
    artifacts = Artifacts(world.folder)
    (world.folder / "folder").mkdir()
    (world.folder / "folder/file").write_bytes(b"content")
    (world.folder / "link").symlink_to("folder/file")
    (world.folder / "to-folder").symlink_to("folder")
    os.mkfifo(world.folder / "pipe")
    paths = [
        "",
        "../x",
        "/etc/passwd",
        "nothing",
        "folder/file/x",
        "folder/none/x",
        "n" * 300,
        "link",
        "to-folder/file",
        "folder",
        "pipe",
        "folder/file",
    ]
    found: list[Any] = []
    for path in paths:
        looks = (artifacts.look(path), artifacts.look(path, with_hash=True), artifacts.read(path, bytes_max=6))
        found.append([path[:20], *dict.fromkeys(f"{look.reason} {look.detail.partition(': ')[2]}" for look in looks)])
    descriptor = os.open(world.folder, os.O_RDONLY)
    within = [read_in(descriptor, name, bytes_max=6) for name in ("none", "link", "folder")]
    os.close(descriptor)
    refusals = []
    for error in (REFUSING, ODD):
        with mock.patch("os.open", side_effect=error):
            look = artifacts.look("folder/file")
        refusals.append([look.reason.value, look.detail])
    return [found, [look.reason.value for look in within], refusals]


def changed_files(world: World) -> list[str]:
    """Return what is said of a file that is changed while it is hashed, in each way, and opened."""
    found = []
    path, read, stat_of = world.folder / "file", os.read, os.stat
    changes: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: os.truncate(path, 5),
        lambda: path.open("ab").write(b"more"),
        lambda: os.utime(path, (1, 1)),
        lambda: os.link(path, world.folder / "other"),
        lambda: path.chmod(0o600),
    )
    for change in changes:
        path.unlink(missing_ok=True)
        path.write_bytes(b"content")

        def changing(file: int, size: int, change: Callable[[], object] = change) -> bytes:
            change()
            return read(file, size)

        with mock.patch("os.read", changing):
            found.append(Artifacts(world.folder).look("file", with_hash=True).reason.value)
    growing = Artifacts(world.folder, bytes_max=None)
    with mock.patch("os.read", lambda file, size: (path.open("ab").write(b"x" * 9), read(file, size))[1]):
        found.append(growing.look("file", with_hash=True).reason.value)
    path.write_bytes(b"content")

    def exchanged(name: Any, **more: Any) -> os.stat_result:
        before = stat_of(name, **more)
        if name == "file":
            path.unlink()
            os.mkfifo(path)
        return before

    with mock.patch("os.stat", exchanged):
        found.append(Artifacts(world.folder).look("file").reason.value)
    return found


def identities(_: World) -> list[bool]:
    """Return whether two statuses tell two files, of which one field differs."""

    def status(**fields: int) -> Any:
        return mock.Mock(**{"st_size": 1, "st_mtime_ns": 2, "st_ctime_ns": 3, "st_nlink": 4, **fields})

    fields = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_nlink", "st_atime_ns")
    identity = artifact_files._identity  # noqa: SLF001 - the kernel changes several fields at once
    return [identity(status(**{name: 9})) != identity(status()) for name in fields]


def failing_writes(world: World) -> list[Any]:
    """Return what a write that fails says and leaves: in the file, in its folder, in descriptors.

    A call fails, the target is a folder or behind a file, or the writer is interrupted.
    """
    artifacts, found = Artifacts(world.folder), list[Any]()
    artifacts.write("a/file", b"old")
    (world.folder / "a/folder").mkdir()
    (world.folder / "a/linked").symlink_to("folder")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = open_in(world.folder)
    for call, path, error in (
        ("os.write", "a/file", full), ("os.fsync", "a/file", full), ("os.rename", "a/file", full),
        ("os.rename", "a/file", KeyboardInterrupt()), ("os.mkdir", "new/file", full), ("os.open", "a/file", full),
        ("os.write", "a/file", ODD),
        ("os.getppid", "a/folder", None), ("os.getppid", "a/file/x", None), ("os.getppid", "a/linked/x", None),
    ):  # fmt: skip
        said = ""
        try:
            with mock.patch(call, side_effect=error):
                artifacts.write(path, b"new")
        except (RecoveryError, KeyboardInterrupt) as told:
            said = f"{type(told).__name__} {str(told).partition('; got ')[2].partition(' from')[0]}"
        found.append([call, path, said.replace(str(world.folder), "")])
    content = (world.folder / "a/file").read_text()
    left = sorted(path.name for path in world.folder.rglob(".unfinished-*"))
    more = open_in(world.folder) - before
    return [found, content, left, more, refused(lambda: Artifacts(world.folder / "none"))]


def flushed_folders(world: World) -> list[int]:
    """Return how often folders are flushed: new ones, known ones, by another, after an error."""
    counts, flush = list[Any](), os.fsync
    count = 0

    def fsync(file: int) -> None:
        nonlocal count
        count += stat.S_ISDIR(os.fstat(file).st_mode)
        flush(file)

    with mock.patch("os.fsync", fsync):
        artifacts = Artifacts(world.folder)
        for each in (artifacts, artifacts, Artifacts(world.folder)):
            count = 0
            each.write("a/b/file", b"content")
            counts.append(count)
        count = 0
        artifacts.look("a/b/file")
        artifacts.look("x/y")
        counts.append(count)
        with mock.patch("os.mkdir", side_effect=OSError(errno.ENOSPC, "full")):
            counts.append(refused(lambda: artifacts.write("c/file", b"content")))
        count = 0
        artifacts.write("c/file", b"content")
        counts.append(count)
    return counts


def odd_leftovers(world: World) -> list[Any]:
    """Return what is discarded: of dead writers and living ones, and what is said if that fails.

    A leftover may go while others look, and a writer may find that its own has gone.
    """
    artifacts, found = Artifacts(world.folder), list[Any]()
    (world.folder / "a/b").mkdir(parents=True)
    for name in ("a/.unfinished-1", "a/b/.unfinished-2"):
        (world.folder / name).write_bytes(b"half")
    (world.folder / "a/.unfinished-link").symlink_to("b")
    (world.folder / "a/.unfinished-folder").mkdir()
    os.mkfifo(world.folder / "a/.unfinished-pipe")
    for error in (REFUSING, ODD):
        with mock.patch("os.open", side_effect=error):
            found.append([refused(artifacts.discard_leftovers), refused(lambda: artifacts.discard_leftovers_of("a"))])
    found.append([artifacts.discard_leftovers_of(name) for name in ("none", "a/b/none/x", "a")])
    found.append(sorted(path.name for path in world.folder.rglob(".unfinished-*")))
    (world.folder / "file").write_bytes(b"")
    found.append([artifacts.discard_leftovers_of("file"), artifacts.discard_leftovers()])
    path = world.folder / "a/.unfinished-3"
    for call in ("os.open", "fcntl.flock"):
        path.write_bytes(b"half")
        real = os.open if call == "os.open" else fcntl.flock

        def gone(*arguments: Any, real: Any = real, is_lock: bool = call != "os.open", **more: Any) -> Any:
            if is_lock or str(arguments[0]).endswith("-3"):
                path.unlink(missing_ok=True)
            return real(*arguments, **more)

        with mock.patch(call, gone):
            found.append(artifacts.discard_leftovers())
    taken: list[str] = []

    def stolen(file: int, operation: int) -> None:
        if not taken:  # somebody discards it before it is locked
            taken.append(os.readlink(f"/proc/self/fd/{file}"))
            Path(taken[0]).unlink()
        lock(file, operation)

    lock, before = fcntl.flock, open_in(world.folder)
    with mock.patch("fcntl.flock", stolen):
        artifacts.write("file", b"content")
    found += [len(taken), (world.folder / "file").read_text(), open_in(world.folder) - before]
    with (world.folder / "a/.unfinished-4").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found.append([artifacts.discard_leftovers(), (world.folder / "a/.unfinished-4").exists()])
    return found


def odd_workspaces(world: World) -> list[Any]:
    """Return what a walk finds among links, hidden folders, plain files and unreadable names."""
    root = world.folder / "workspaces"
    files = StatusFiles(root)
    found: list[Any] = [list(files.walk()), files.has_folder("a"), str(files.read("a").problem)]
    files.write("org/task", WorkspaceStatus(status="queued"))
    (root / ".hidden").mkdir()
    (root / "empty").mkdir()
    for name in (".hidden/status.json", "plain", "org/notes"):
        (root / name).write_bytes((root / "org/task/status.json").read_bytes())
    (root / "linked").symlink_to(root / "org")
    nameless = Path(os.fsdecode(os.fsencode(root) + b"/\xff"))
    nameless.mkdir()
    (nameless / "status.json").write_bytes(b"{}")
    for name in (".unfinished-0", "org/.unfinished-1", "org/task/.unfinished-2"):
        (root / name).write_bytes(b"half")
    found.append([[name, str(reading.problem), reading.detail] for name, reading in files.walk()])
    found.append(files.discard_leftovers())
    found.append(sorted(path.name for path in root.rglob(".unfinished-*")))
    for error in (REFUSING, ODD):
        with mock.patch("durable_agents.state.status_files.open_folder", side_effect=error):
            found.append([[name, str(reading.problem), reading.detail] for name, reading in files.walk()])
    found.append([files.has_folder(name) for name in ("org", "org/task", "none", "linked", "plain")])
    shutil.rmtree(root)
    reading = files.read("org/task")
    return [*found, str(reading.problem), reading.detail]


def written_statuses(world: World) -> list[Any]:
    """Return what a write makes of files that are sound, torn, empty, newer and links.

    And of a leftover beside them, and of a root that cannot be made.
    """
    root = world.folder / "workspaces"
    files, found = StatusFiles(root), list[Any]()
    root.mkdir()
    contents = {
        "sound": b'{"status": "queued", "extra": 1}', "torn": b'{"status"', "empty": b"", "newer": b'{"version": 9}',
    }  # fmt: skip
    for name, content in contents.items():
        (root / name).mkdir()
        (root / name / "status.json").write_bytes(content)
        (root / name / ".unfinished-1").write_bytes(b"half")
    (root / "link").mkdir()
    (root / "link/status.json").symlink_to(root / "sound/status.json")
    for name in (*contents, "link", "new"):
        told = refused(lambda name=name: files.write(name, WorkspaceStatus(status="failed")))  # type: ignore[misc]
        there = sorted(path.name for path in (root / name).iterdir())
        found.append([name, told, there, "extra" in (root / name / "status.json").read_text()])
    (world.folder / "file").write_bytes(b"")
    nowhere = StatusFiles(world.folder / "file/workspaces")
    found.append(refused(lambda: nowhere.write("a", WorkspaceStatus(status="failed"))))
    return found


def statuses(_: World) -> list[Any]:
    """Return which values are statuses, and which names are those of workspaces."""
    odd: tuple[Any, ...] = (
        WorkspaceStatus(status="queued"), WorkspaceStatus(status=""), {"status": "queued"}, None,
        WorkspaceStatus(status=7), WorkspaceStatus(status="a", pid="1"), WorkspaceStatus(status="\ud800"),  # type: ignore[arg-type]
        WorkspaceStatus(status="a", started_at=2**65), WorkspaceStatus(status="a", agent=object()),  # type: ignore[arg-type]
    )  # fmt: skip
    names: tuple[Any, ...] = ("", "a//b", "./a", "a/", "/a", "a/../b", ".a/b", "a/.b", 7, None, "a/b", "a\0b")
    return [
        [is_status(each) for each in odd],
        [refused(lambda name=name: check_workspace(name)) for name in names],  # type: ignore[misc]
    ]


QUESTIONS: Final[Questions] = {
    "state: names of workspaces": (
        lambda _: [
            refused(lambda name=name: check_workspace(name))  # type: ignore[misc]
            for name in ("a/b/c/d", "a/b/c/d/e", "n" * 512, "n" * 513)
        ],
        ["", "InvalidWorkspace", "", "InvalidWorkspace"],
    ),
    "state: depth of a walk": (walked, ["a/b/c/d"]),
    "state: files": (
        looked_at,
        ["verified", True, "too_large", ["verified", "too_large"], ["InvalidSetting", ""]],
    ),
    "state: what a write flushes": (synced, ["mkdir", "folder", "mkdir", "folder", "file", "rename", "folder"]),
    "state: leftovers": (discarded, [0, 0, 7]),
    "state: paths of artifacts": (
        artifact_paths,
        [[*["InvalidArtifact"] * 5, "ArtifactNotWritten"], "InvalidArtifact"],
    ),
    "state: odd paths": (
        odd_paths,
        [
            [
                ["", "outside "],
                ["../x", "outside "],
                ["/etc/passwd", "outside "],
                ["nothing", "missing No such file or directory"],
                ["folder/file/x", "missing Not a directory"],
                ["folder/none/x", "missing No such file or directory"],
                ["nnnnnnnnnnnnnnnnnnnn", "missing File name too long"],
                ["link", "outside is a link"],
                ["to-folder/file", "outside is a link, or behind one"],
                ["folder", "not_a_file is not a regular file"],
                ["pipe", "not_a_file is not a regular file"],
                ["folder/file", "verified ", "too_large has 7 bytes, more than 6"],
            ],
            ["missing", "outside", "not_a_file"],
            [["unreadable", "folder/file: Permission denied"], ["unreadable", "folder/file: of no number"]],
        ],
    ),
    "state: files that change": (
        changed_files,
        ["verified", "changed", "changed", "changed", "changed", "changed", "changed", "changed"],
    ),
    "state: what tells two files": (identities, [True, True, True, True, False]),
    "state: writes that fail": (
        failing_writes,
        [
            [
                ["os.write", "a/file", "ArtifactNotWritten 'No space left on device'"],
                ["os.fsync", "a/file", "ArtifactNotWritten 'No space left on device'"],
                ["os.rename", "a/file", "ArtifactNotWritten 'No space left on device'"],
                ["os.rename", "a/file", "KeyboardInterrupt "],
                ["os.mkdir", "new/file", "ArtifactNotWritten 'No space left on device'"],
                ["os.open", "a/file", "ArtifactNotWritten 'No space left on device'"],
                ["os.write", "a/file", "ArtifactNotWritten 'of no number'"],
                ["os.getppid", "a/folder", "ArtifactNotWritten 'Is a directory'"],
                ["os.getppid", "a/file/x", "ArtifactNotWritten 'Not a directory'"],
                ["os.getppid", "a/linked/x", "InvalidArtifact /a/linked/x. Write to the file's own place."],
            ],
            "old",
            [],
            0,
            "InvalidSetting",
        ],
    ),
    "state: folders that are flushed": (flushed_folders, [3, 1, 3, 0, "ArtifactNotWritten", 2]),
    "state: odd leftovers": (
        odd_leftovers,
        [
            ["ArtifactNotWritten", "ArtifactNotWritten"],
            ["ArtifactNotWritten", "ArtifactNotWritten"],
            [0, 0, 1],
            [".unfinished-2", ".unfinished-folder", ".unfinished-link", ".unfinished-pipe"],
            [0, 1],
            0,
            0,
            1,
            "content",
            0,
            [0, True],
        ],
    ),
    "state: odd workspaces": (
        odd_workspaces,
        [
            [],
            False,
            "missing",
            [
                ["linked", "link", "its folder: Too many levels of symbolic links"],
                ["org/task", "None", ""],
                ["\\xff", "unreadable", "the name of its folder is not UTF-8; rename it"],
            ],
            2,
            [".unfinished-0"],
            [
                ["empty", "unreadable", "its folder: Permission denied"],
                ["linked", "unreadable", "its folder: Permission denied"],
                ["org", "unreadable", "its folder: Permission denied"],
                ["\\xff", "unreadable", "its folder: Permission denied"],
            ],
            [
                ["empty", "unreadable", "its folder: of no number"],
                ["linked", "unreadable", "its folder: of no number"],
                ["org", "unreadable", "its folder: of no number"],
                ["\\xff", "unreadable", "its folder: of no number"],
            ],
            [True, True, False, False, False],
            "missing",
            "org/task/status.json: No such file or directory",
        ],
    ),
    "state: statuses that are written": (
        written_statuses,
        [
            ["sound", "", ["status.json"], True],
            ["torn", "", ["status.json", "status.json.damaged"], False],
            ["empty", "", ["status.json"], False],
            ["newer", "WorkspaceNotWritten", [".unfinished-1", "status.json"], False],
            ["link", "WorkspaceNotWritten", ["status.json"], True],
            ["new", "", ["status.json"], False],
            "WorkspaceNotWritten",
        ],
    ),
    "state: statuses and names": (
        statuses,
        [
            [True, False, False, False, False, False, False, True, False],
            [
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "InvalidWorkspace",
                "",
                "InvalidWorkspace",
            ],
        ],
    ),
}
