"""The order of calls: what a chooser chooses, and that a seed gives the same order again."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.trace.schedule import CHANGES, Chooser, Policy, Schedule

if TYPE_CHECKING:
    from tests.harness.trace.lab import Lab

ROUNDS = 4


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
    assert observation.choices
    return "".join(step.path for step in observation.steps)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_threads_go_on_in_the_order_of_the_schedule(lab: Lab, number: int) -> None:
    """Two threads that write alike: one order each time, and that of the policy."""
    once, again = _names(lab, number), _names(lab, number)
    assert once == again
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
