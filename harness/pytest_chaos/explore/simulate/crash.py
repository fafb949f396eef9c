"""Crash states: the state before each durable step, and those within a large write. Pure.

A kill undoes no completed system call: all that was written stays, synced or not. Only a write of
several pages can be cut, and only between pages (measured: SIGKILL within writes of 4 MB tore 18 of
150 on ext4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.simulate.content import PAGE_BYTES, PageStore
from pytest_chaos.explore.simulate.disk import Disk, Writing
from pytest_chaos.explore.simulate.state import Item, State, live_items
from pytest_chaos.model.history import MarkParser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.disk import Effect
    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Step

TEARS_MAX: Final = 64
"""At most this many prefixes of one write are built, spread evenly."""


class Moment(NamedTuple):
    """A moment between two steps: ``step`` is next, and ``marks`` marks were written so far.

    ``step`` is None at the end of the run, and where a mark is next (``precedes_mark``): a process
    can be killed there, too, with the work done and not acknowledged.
    """

    number: int
    marks: int
    step: Step | None
    precedes_mark: bool


def moments(recording: Recording, disk: Disk) -> Iterator[tuple[Moment, Effect | None]]:
    """Apply the recording to the disk, and yield each moment with the effect of its next step.

    That effect is not yet applied. It is None for a mark and at the end.
    """
    parser = MarkParser()
    number = 1
    for item in recording.steps:
        if item.is_mark:
            yield Moment(number, parser.count, None, precedes_mark=True), None
            parser.feed(recording.content(item))
            continue
        number = item.number
        effect = disk.effect_of(item)
        yield Moment(number, parser.count, item, precedes_mark=False), effect
        disk.perform(effect)
        number += 1
    yield Moment(number, parser.count, None, precedes_mark=False), None


def crash_states(recording: Recording, store: PageStore) -> Iterator[State]:
    """Yield every state that a kill may leave, in the order of the run.

    The state before the first step is included. The state at the end is that of the clean run, and
    is not.
    """
    disk = Disk(recording, store)
    for moment, effect in moments(recording, disk):
        if moment.step is None and not moment.precedes_mark:
            return
        at = "before a mark" if moment.step is None else f"before step {moment.step}"
        code = f"crash:{moment.number}"
        if moment.step is None:
            code += f"m{moment.marks}"
        yield State(
            code, moment.number, moment.marks, live_items(disk), text=f"killed {at}", kill=moment.step is not None
        )
        if isinstance(effect, Writing) and effect.is_write:
            yield from _torn(disk, moment, effect, code)


def find_crash(recording: Recording, store: PageStore, code: str) -> State | None:
    """Return the crash state of a code; None if the recording has no such state."""
    return next((state for state in crash_states(recording, store) if state.code == code), None)


def _torn(disk: Disk, moment: Moment, effect: Writing, code: str) -> Iterator[State]:
    before = disk.contents[effect.node]
    for upto in tears(effect.offset, effect.length):
        torn = disk.written(before, effect, upto=upto)

        def content_of(node: int, torn: Content = torn) -> Content:
            return torn if node == effect.node else disk.contents[node]

        items: dict[str, Item] = live_items(disk, content_of)
        text = f"killed within step {moment.step}, after {upto} bytes"
        yield State(f"{code}+{upto}", moment.number, moment.marks, items, lost=1, text=text)


def tears(offset: int, length: int) -> list[int]:
    """Return the lengths to which a write may be cut: page boundaries, at most 64 of them."""
    first = PAGE_BYTES - offset % PAGE_BYTES
    cuts = range(first, length, PAGE_BYTES)
    if len(cuts) <= TEARS_MAX:
        return list(cuts)
    return [cuts[place * (len(cuts) - 1) // (TEARS_MAX - 1)] for place in range(TEARS_MAX)]
