"""Kills among stores through memory: a part of the families *crash* and *recovery*.

The order of such stores is not known. So a finding in a state between them is the target's only if
every order comes through such a state: two fields that must be equal differ whichever is stored
first. Otherwise the right order may avoid it, as with a commit word that is stored last. Then the
exploration cannot decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.judge import StateTask
from pytest_chaos.explore.simulate.crash import WORDS_EXHAUSTIVE_MAX, crash_states, look_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.session import Collector
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.model.values import Finding

UNKNOWN_ORDER: Final = "harness:store-order"


def explore_stores(recorded: Recorded, found: Collector) -> None:
    """Judge the states between stores of one look of the run."""
    if any(step.look for step in recorded.recording.steps):
        judge_stores(found, crash_states(recorded.recording, recorded.store, recorded.seed))


def judge_stores(found: Collector, states: Iterable[State]) -> None:
    """Judge those of the states that are between stores; keep the findings that no order avoids."""
    looks: dict[str, dict[int, tuple[State, tuple[Finding, ...]]]] = {}

    def between() -> Iterator[State]:
        for state in states:
            if state.stored is None:
                continue
            if found.is_over:
                found.is_complete = False
                return
            found.is_sampled |= len(state.stored.lines) > WORDS_EXHAUSTIVE_MAX
            yield state

    for state, judgement in found.session.pool.answers(
        between(), lambda state: StateTask(state.items, state.marks, state=state)
    ):
        if judgement.is_out_of_time:
            found.is_complete = False
            continue
        found.states += 1
        if state.stored is not None and judgement.findings:
            looks.setdefault(look_of(state.code), {})[state.stored.mask] = (state, judgement.findings)
    for bad in looks.values():
        _settle(found, list(bad.values()))


def _settle(found: Collector, bad: Sequence[tuple[State, tuple[Finding, ...]]]) -> None:
    first, findings = bad[0]
    masks = {state.stored.mask for state, _ in bad if state.stored is not None}
    if first.stored is None or not is_certain(first.stored.lines, masks):
        text = (
            f"the check found {findings[0].text!r} if the program was {first} (--state '{first.code}'): the order of "
            "the stores decides whether that can be. Let a call that flushes (msync) come between the stores"
        )
        found.fail(UNKNOWN_ORDER, text)
        return
    for state, each in bad:
        found.count_violated(each)
        for finding in each:
            found.note(finding, state)


def is_certain(lines: Sequence[int], bad: Collection[int]) -> bool:
    """Whether every order of the stores comes through a bad choice of words.

    ``lines`` has the line of memory of each changed word: one instruction may store several words
    of a line at once.

    >>> is_certain((0, 1), {0b01, 0b10}), is_certain((0, 1), {0b01})
    (True, False)
    >>> is_certain((0, 0), {0b01, 0b10})
    False
    """
    count, full = len(lines), (1 << len(lines)) - 1
    if count > WORDS_EXHAUSTIVE_MAX:
        if len(set(lines)) < count:
            return False
        is_first_bad = all(1 << word in bad for word in range(count))
        return is_first_bad or all(full ^ (1 << word) in bad for word in range(count))
    reached, waiting = {0}, [0]
    while waiting:
        mask = waiting.pop()
        for more in range(1, full + 1):
            is_once = not mask & more and len({lines[word] for word in range(count) if more >> word & 1}) == 1
            if is_once and mask | more not in bad and mask | more not in reached:
                reached.add(mask | more)
                waiting.append(mask | more)
    return full not in reached
