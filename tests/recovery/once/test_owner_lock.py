"""Owner locks: the kernel says whether an owner lives, through forks, kills,
stops and foreign process numbers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from durable_agents.errors import DatabaseUnavailable
from durable_agents.once.owner_lock import SUFFIX, OwnerLock, ProcessOwnerLock

PROGRAM = """
import sys
from durable_agents.once.owner_lock import OwnerLock
lock = OwnerLock(sys.argv[1])
print(lock.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


def started(path: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that is present; return it and its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> None:
    """Kill the process and reap it."""
    process.kill()
    process.communicate(timeout=30)


def test_an_owner_is_alive_until_its_process_is_killed(path: str) -> None:
    """The kernel takes the lock back, and everybody knows at once."""
    mine = OwnerLock(path)
    process, name = started(path)
    assert mine.is_alive(name)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie still, whose number signal 0 finds alive
    os.kill(process.pid, 0)
    assert not mine.is_alive(name)
    ended(process)


def test_a_stopped_owner_is_alive(path: str) -> None:
    """It may go on at any moment."""
    mine = OwnerLock(path)
    process, name = started(path)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert mine.is_alive(name)
    ended(process)


def test_owners_are_told_apart(path: str) -> None:
    """Two of one process are two, and one that leaves is gone, for itself too."""
    one, other = OwnerLock(path), OwnerLock(path)
    assert one.name != other.name
    assert one.is_alive(other.name)
    assert one.is_alive(one.name)
    other.leave()
    other.leave()
    assert not one.is_alive(other.name)
    assert not other.is_alive(other.name)


def test_a_process_with_the_same_number_is_not_the_owner(path: str) -> None:
    """The number in a name is for people: a dead owner whose number is in use again is dead."""
    mine = OwnerLock(path)
    gone = OwnerLock(path)
    name = gone.name
    gone.leave()
    assert name.endswith(f".{os.getpid()}")
    assert not mine.is_alive(name)


@pytest.mark.parametrize("name", ["", "x", "1.2.3", "?.abc", "{inode}.x.1", "{inode}.99999999999999999999.1"])
def test_what_cannot_be_told_counts_as_alive(path: str, name: str) -> None:
    """A name of another file, of another kind, or beyond what the kernel can hold,
    is not declared dead.
    """
    mine = OwnerLock(path)
    assert mine.is_alive(name.format(inode=mine.name.partition(".")[0]))


def test_nobody_is_dead_because_the_file_was_replaced(path: str) -> None:
    """The owner holds its lock on the old file, of which the new one knows nothing."""
    old = OwnerLock(path)
    Path(path + SUFFIX).rename(path + ".old")
    assert OwnerLock(path).is_alive(old.name)


def test_a_forked_child_does_not_keep_its_parent_alive(path: str) -> None:
    """The child closes what it inherited, and takes a lock of its own when it asks."""
    program = f"""
import os, sys
from durable_agents.once.owner_lock import ProcessOwnerLock
lock = ProcessOwnerLock({path!r})
print(lock.get().name, flush=True)
if os.fork() == 0:
    print(lock.get().name, flush=True)
    sys.stdin.read()
    os._exit(0)
os._exit(0)
"""
    mine = OwnerLock(path)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    parent, child = (process.stdout.readline().strip() for _ in range(2))
    process.wait(timeout=30)
    assert parent != child
    assert not mine.is_alive(parent)
    assert mine.is_alive(child)
    process.communicate("", timeout=30)


def test_a_program_that_was_handed_the_file_keeps_the_owner_alive(path: str) -> None:
    """So a tool that outlives its executor is seen; one that was not handed the file is not."""
    mine, owner = OwnerLock(path), OwnerLock(path)
    sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    tool = subprocess.Popen(sleeper, stdin=subprocess.PIPE, text=True, pass_fds=(owner.descriptor,))
    owner.leave()
    assert mine.is_alive(owner.name)
    tool.communicate("", timeout=30)
    assert not mine.is_alive(owner.name)


def test_a_process_has_one_lock_until_it_leaves(path: str) -> None:
    """It is made when first asked for, and anew after leaving."""
    lock = ProcessOwnerLock(path)
    lock.leave()
    first = lock.get()
    assert lock.get() is first
    lock.leave()
    assert lock.get().name != first.name


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(DatabaseUnavailable, match=r"missing/store\.db-owners"):
        OwnerLock(str(tmp_path / "missing" / "store.db"))
