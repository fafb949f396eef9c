"""Processes are told apart by pid and start time, and exactly those that were meant are ended."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.runtime import processes

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILY = """
import os, signal, sys
os.write(1, b"up\\n")
for depth in range(3):
    if os.fork():
        break
    if depth == 1:
        os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"up\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes, and end them with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*argv: str, variables: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | (variables or {}))
        started.append(process)
        return process

    yield start_one
    for process in started:
        processes.end_all(process.pid, reap=lambda: None)
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def family(
    start: Callable[..., subprocess.Popen[bytes]], **variables: str
) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a process with a child, a grandchild in a session of its own and a great-grandchild;
    return their pids.
    """
    head = start(sys.executable, "-c", FAMILY, variables=variables)
    assert head.stdout is not None
    assert [head.stdout.readline() for _ in range(5)] == [b"up\n"] * 5
    return head, [process.pid for process in processes.descendants(head.pid)]


def test_a_process_is_read_from_the_kernel() -> None:
    """Pid, parent, state and start time of this very process."""
    here = processes.read(os.getpid())
    assert here is not None
    assert (here.pid, here.parent_pid, here.alive) == (os.getpid(), os.getppid(), True)
    assert processes.is_running(here.pid, here.start_ticks)
    assert processes.own() == here


def test_a_name_with_parentheses_does_not_confuse_the_reader(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """A program may call itself anything, ") R 1" included."""
    name = "import ctypes,os,signal; ctypes.CDLL(None).prctl(15, b') R 1 (x'); os.write(1, b'.'); signal.pause()"
    process = start(sys.executable, "-c", name)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    found = processes.read(process.pid)
    assert found is not None
    assert (found.parent_pid, found.state) != (1, "x")
    assert found.parent_pid == os.getpid()


def test_there_is_no_process_without_one(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A process that was reaped is nobody, and one that was not is dead."""
    process = start("/bin/true")
    until(lambda: (found := processes.read(process.pid)) is not None and not found.alive)
    zombie = processes.read(process.pid)
    assert zombie is not None
    assert not processes.is_running(zombie.pid, zombie.start_ticks)
    process.wait(10)
    assert processes.read(process.pid) is None
    assert not processes.send(zombie.pid, zombie.start_ticks, signal.SIGKILL)


def test_another_process_of_the_same_pid_is_left_alone(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """With another start time it is somebody else: nothing is sent."""
    process = start("/bin/cat", "/dev/zero")
    found = processes.read(process.pid)
    assert found is not None
    assert not processes.is_running(found.pid, found.start_ticks - 1)
    assert not processes.end(found._replace(start_ticks=found.start_ticks - 1))
    assert process.poll() is None
    assert processes.end(found)
    assert process.wait(10) == -signal.SIGKILL


def test_descendants_are_found_at_any_depth_and_in_any_session(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """Children, grandchildren and daemons-to-be, without those that are left out but with what
    descends from them.
    """
    head, pids = family(start)
    assert len(pids) == 3
    assert sorted(pids) == sorted(process.pid for process in processes.descendants(os.getpid()) if process.pid in pids)
    without = processes.descendants(head.pid, without={pids[0]})
    assert [process.pid for process in without] == pids[1:]


def test_all_descendants_are_ended(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """SIGTERM ignored, stopped, in another session: all are ended, and the root is not."""
    head, pids = family(start)
    os.kill(pids[1], signal.SIGSTOP)
    assert processes.end_all(head.pid, reap=lambda: None) == []
    assert head.poll() is None
    assert not [pid for pid in pids if (found := processes.read(pid)) is not None and found.alive]


def test_those_that_are_left_out_live_on(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """What is not to be ended is not, and does not keep the call from returning."""
    head, pids = family(start)
    assert processes.end_all(head.pid, without=set(pids[:2]), reap=lambda: None) == []
    alive = [pid for pid in pids if (found := processes.read(pid)) is not None and found.alive]
    assert alive == pids[:2]


def test_a_mark_in_the_environment_finds_orphans(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Where nobody is left who knows them, the variable they were started with does;
    no other process is touched.
    """
    value = secrets.token_hex(8)
    other, others = family(start, CHAOS_TEST_MARK=value + "0")
    head, pids = family(start, CHAOS_TEST_MARK=value)
    head.kill()
    head.wait(10)
    assert not set(pids) & {process.pid for process in processes.descendants(os.getpid())}, "they are orphans"
    assert processes.end_marked("CHAOS_TEST_MARK", value) == []
    assert not [pid for pid in pids if (found := processes.read(pid)) is not None and found.alive]
    assert other.poll() is None
    assert [pid for pid in others if (found := processes.read(pid)) is not None and found.alive] == others


@pytest.mark.parametrize("has_lists", [True, False])
def test_descendants_are_found_by_the_kernels_lists_or_by_a_look_at_all(
    start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, *, has_lists: bool
) -> None:
    """Both ways find a child, a grandchild and a great-grandchild, and leave out what is told."""
    monkeypatch.setattr(processes, "_has_lists", lambda: has_lists)
    head, pids = family(start)

    assert len(pids) == 3
    assert [each.pid for each in processes.descendants(head.pid, without=pids[:1])] == pids[1:]


def test_a_process_that_a_list_lacks_beside_a_dead_one_is_found(
    start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list read while a process ends has gaps: a dead process in it means another look."""
    head, pids = family(start)
    gone = subprocess.Popen(["/bin/true"])
    gone.wait(10)
    monkeypatch.setattr(processes, "_listed_children", lambda pid: [gone.pid] if pid == head.pid else [])

    assert sorted(each.pid for each in processes.descendants(head.pid)) == sorted(pids)
