"""A database on a file system without working locks: real mounts, in namespaces of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.sqlite.fuse import CANNOT_MOUNT
from tests.harness.sqlite.watching import events_of

if TYPE_CHECKING:
    from pytest_chaos.trace.step import Event

HERE = Path(__file__).parents[3]


def found_on(kind: str, lock_errno: str) -> list[list[str]]:
    """Watch a program on a mount of this type that answers locks so; return what is found."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of mounts can be made here")
    module = [sys.executable, "-m", "tests.harness.sqlite.fuse", kind, lock_errno]
    watch = [sys.executable, "-m", "tests.harness.sqlite.mounted"]
    done = subprocess.run(
        [unshare, "-rm", *module, *watch], capture_output=True, text=True, check=False, cwd=HERE, timeout=300
    )
    if done.returncode == CANNOT_MOUNT:
        pytest.skip(done.stderr.strip())
    if "Skipped: " in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["databases"] == ["state.db"]
    found: list[list[str]] = told["found"]
    return found


@pytest.mark.parametrize(
    ("kind", "lock_errno", "words"),
    [
        ("fuse.sshfs", "none", "type fuse.sshfs: POSIX locks cannot be relied upon"),
        ("fuse.fuse-overlayfs", "ENOLCK", "answers each lock with ENOLCK: SQLite fails with 'database is locked'"),
        ("fuse.fuse-overlayfs", "ENOSYS", "answers each lock with ENOSYS: SQLite fails with 'disk I/O error'"),
    ],
)
def test_a_mount_without_working_locks_is_found(kind: str, lock_errno: str, words: str) -> None:
    """By its type where the kernel would keep the locks; by the errno that answers a lock."""
    ((signature, text),) = found_on(kind, lock_errno)
    assert signature.startswith("sqlite:file-system:state.db")
    assert words in text
    assert "mounted.py:" in text


def test_a_mount_whose_locks_the_kernel_keeps_is_left_alone() -> None:
    """The same file system, of a type that shows a local disk."""
    assert found_on("fuse.fuse-overlayfs", "none") == []


def test_a_local_disk_answers_a_lock_that_another_process_has(tmp_path: Path) -> None:
    """A lock that is refused because it is taken is no errno of the file system."""
    events: list[Event] = events_of(_meets_a_lock, tmp_path)
    assert [event for event in events if event.system]
    assert [event for event in events if event.refused] == []


def _meets_a_lock() -> None:
    code = "import sqlite3, sys; c = sqlite3.connect('l.db', isolation_level=None); c.execute('BEGIN EXCLUSIVE'); "
    code += "print('taken', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        own = "import sqlite3; c = sqlite3.connect('l.db', timeout=0)\ntry: c.execute('CREATE TABLE t (x)')\n"
        own += "except sqlite3.OperationalError: pass"
        subprocess.run([sys.executable, "-c", own], check=True)
