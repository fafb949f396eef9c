"""The order of calls: what a chooser chooses, and that a seed gives the same order again."""

from __future__ import annotations

import atexit
import fcntl
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.trace import seccomp
from pytest_chaos.trace.schedule import CHANGES, TURNS_MAX, Chooser, Policy, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.trace.lab import Lab

ROUNDS = 4
TRIES = 6
WAITS_S = 0.5
"""How long a program waits, many times as long as the observer has it quiet."""


def _schedule(number: int, seed: str = "s") -> Schedule:
    return Schedule(number=number, seed=seed, calls=20)


def _orders(number: int, waiting: list[int], count: int = 20, seed: str = "s") -> list[int]:
    chooser = Chooser(_schedule(number, seed))
    return [chooser.choose(waiting) for _ in range(count)]


def test_round_robin_serves_all_alike() -> None:
    """Of three that always wait each goes on as often, in turn."""
    assert _schedule(1).policy is Policy.ROUND_ROBIN
    assert _orders(1, [1, 2, 3], 6) == [1, 2, 3, 1, 2, 3]


def test_run_on_stays_with_one_until_it_blocks() -> None:
    """Only when it does not wait here does another one go on."""
    chooser = Chooser(_schedule(2))
    assert [chooser.choose(waiting) for waiting in ([1, 2], [1, 2], [2], [1, 2], [1])] == [1, 1, 2, 2, 1]


def test_priorities_change_as_often_as_they_may() -> None:
    """PCT with d changes: at most d times does another thread go on, and some seed uses all."""
    changes: Counter[int] = Counter()
    for seed in range(100):
        order = _orders(3, [1, 2, 3], seed=str(seed))
        assert set(order) <= {1, 2, 3}
        changes[sum(one != other for one, other in itertools.pairwise(order))] += 1
    assert max(changes) <= CHANGES
    assert len(changes) > 1


def test_a_seed_is_an_order() -> None:
    """Equal seeds choose alike; of other seeds some choose otherwise."""
    assert _orders(3, [1, 2, 3], seed="a") == _orders(3, [1, 2, 3], seed="a")
    assert len({tuple(_orders(3, [1, 2, 3], seed=str(seed))) for seed in range(20)}) > 5


def _append(name: str) -> None:
    with Path(name).open("ab", 0) as file:
        for number in range(ROUNDS):
            file.write(b"%d" % number)


def _two_threads() -> None:
    threads = [threading.Thread(target=_append, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _names(lab: Lab, number: int) -> str:
    for name in "ab":
        (lab.directory / name).unlink(missing_ok=True)
    observation = lab.watch(_two_threads, schedule=_schedule(number))
    assert (observation.exit_code, observation.failure) == (0, "")
    return "".join(step.path for step in observation.steps)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_threads_go_on_in_the_order_of_the_schedule(lab: Lab, number: int) -> None:
    """Two threads that write alike: one order again and again, and that of the policy.

    A thread that gets no processor for two seconds is not waited for, so on a busy machine a run
    may come out otherwise.
    """
    seen: Counter[str] = Counter()
    while max(seen.values(), default=0) < 2:
        assert seen.total() < TRIES, seen
        seen[_names(lab, number)] += 1
    once = seen.most_common(1)[0][0]
    if number == 1:
        assert max(len(list(run)) for _, run in itertools.groupby(once)) <= 2  # a first call may be no step
    if number == 2:
        assert once in {"a" * (1 + ROUNDS) + "b" * (1 + ROUNDS), "b" * (1 + ROUNDS) + "a" * (1 + ROUNDS)}


def test_a_held_thread_that_owns_a_lock_goes_on(lab: Lab) -> None:
    """The other one waits in the kernel, so there is one choice."""

    def work() -> None:
        guard = threading.Lock()

        def one(name: str) -> None:
            for _ in range(ROUNDS):
                with guard, Path("log").open("ab", 0) as file:
                    file.write(name.encode())

        threads = [threading.Thread(target=one, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for number in (1, 2, 3):
        (lab.directory / "log").unlink(missing_ok=True)
        observation = lab.watch(work, schedule=_schedule(number), timeout_s=30)
        assert (observation.exit_code, observation.is_timed_out) == (0, False)
        assert sorted((lab.directory / "log").read_text()) == sorted("ab" * ROUNDS)


def test_a_thread_that_computes_is_not_waited_for(lab: Lab) -> None:
    """It never makes a call; the other one comes to its end."""

    def work() -> None:
        is_over = threading.Event()

        def compute() -> None:
            while not is_over.is_set():
                pass

        thread = threading.Thread(target=compute)
        thread.start()
        _append("a")
        is_over.set()
        thread.join()

    observation = lab.watch(work, schedule=_schedule(3), timeout_s=30)
    assert (observation.exit_code, observation.is_timed_out) == (0, False)


def _wakes_from_alarm() -> None:
    reader, writer = os.pipe()
    signal.signal(signal.SIGALRM, lambda *_: os.write(writer, b"+"))
    signal.setitimer(signal.ITIMER_REAL, WAITS_S)
    os.read(reader, 1)  # goes on after the handler
    Path("log").write_text("up")


def _waits_for_a_child_with_an_alarm() -> None:
    """Wait for a child that its alarm kills."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, WAITS_S)
        os.read(os.pipe()[0], 1)
    os.waitpid(child, 0)
    Path("log").write_text("up")


def _waits_for_a_lock_of_another_program() -> None:
    with Path("../outside").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    Path("log").write_text("up")


def _hands_a_turn_over() -> None:
    """Two processes, of which one waits at any time."""
    ends_s = time.monotonic() + WAITS_S
    turns = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)
    child = os.fork()
    while time.monotonic() < ends_s:
        turns[child == 0].release()
        turns[child != 0].acquire()
    turns[child == 0].release()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    Path("log").write_text("up")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "program",
    [_wakes_from_alarm, _waits_for_a_child_with_an_alarm, _waits_for_a_lock_of_another_program, _hands_a_turn_over],
)
def test_a_program_that_will_go_on_is_in_no_deadlock(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, program: Callable[[], None], number: int
) -> None:
    """A timer, or a process that is not of the program, may end a wait that shows no end."""
    monkeypatch.setattr(seccomp, "_QUIET_S", 0.01)
    with (lab.folder / "outside").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unlock = threading.Timer(WAITS_S, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        unlock.start()
        observation = lab.watch(program, schedule=_schedule(number) if number else None, timeout_s=30)
        unlock.join()
    assert (observation.waits, observation.exit_code) == ((), 0)
    assert (lab.directory / "log").read_text() == "up"


def _locks_twice() -> None:
    with Path("log").open("w") as first, Path("log").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)


def _reads_what_nobody_writes() -> None:
    reader, _writer = os.pipe()
    os.read(reader, 1)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("program", "waits"),
    [
        (_locks_twice, "in flock) waits for the lock of log"),
        (_reads_what_nobody_writes, "in read) waits for another process to write to a pipe"),
    ],
)
def test_a_program_that_can_never_go_on_is_in_a_deadlock(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, program: Callable[[], None], waits: str, number: int
) -> None:
    """It waits for itself; it is ended, and shows in which call, and for what."""
    monkeypatch.setattr(seccomp, "_QUIET_S", 0.01)
    observation = lab.watch(program, schedule=_schedule(number) if number else None, timeout_s=30)
    (shown,) = observation.waits
    assert shown.startswith("thread 1 (")
    assert shown.endswith(waits)
    assert observation.is_timed_out


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_thread_that_calls_without_a_pause_lets_another_one_go_on(lab: Lab, number: int) -> None:
    """It waits for the other one, and would make calls for ever."""

    def work() -> None:
        is_over = threading.Event()

        def beat() -> None:
            with Path("beat").open("wb", 0) as file:
                while not is_over.is_set():
                    os.pwrite(file.fileno(), b"+", 0)

        thread = threading.Thread(target=beat)
        thread.start()
        _append("a")
        is_over.set()
        thread.join()

    observation = lab.watch(work, schedule=_schedule(number), timeout_s=30)
    assert (observation.exit_code, observation.is_timed_out) == (0, False)


@pytest.mark.parametrize("policy", [2, 3, 4])
def test_no_thread_waits_for_ever(policy: int) -> None:
    """Whatever the policy, one that always waits is chosen after some calls of another one."""
    assert set(_orders(policy, [1, 2], 2 * TURNS_MAX)) == {1, 2}


def test_a_function_ends_as_a_program_does(lab: Lab) -> None:
    """Its threads are waited for, then its exit functions run; none of the parent's does."""
    of_the_parent = Path("parent").touch
    atexit.register(of_the_parent)
    may_end = threading.Event()

    def late() -> None:
        may_end.wait()
        _append("late")

    def work() -> None:
        atexit.register(Path("last").touch)
        threading.Thread(target=late).start()
        threading.Thread(target=may_end.set).start()

    try:
        observation = lab.watch(work)
    finally:
        atexit.unregister(of_the_parent)
    assert observation.exit_code == 0
    assert sorted(os.listdir(lab.directory)) == ["last", "late"]
    assert observation.steps[-1].path == "last"
