"""Crash states: the state before each durable step, and those within a large write. Pure.

A kill undoes no completed system call: all that was written stays, synced or not. Only a write of
several pages can be cut, and only between pages (measured: SIGKILL within writes of 4 MB tore 18 of
150 on ext4).

Stores through memory can be cut between any two of them, and their order is not known. So the
states within the stores of one look are choices of the changed words, in addition to those before
and after all of them, and say so (``State.stored``). No real kill can be made there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.simulate.content import PAGE_BYTES, PageStore
from pytest_chaos.explore.simulate.disk import Disk, Writing
from pytest_chaos.explore.simulate.live import LiveItems
from pytest_chaos.explore.simulate.state import State, StoredWords
from pytest_chaos.model.history import MarkParser
from pytest_chaos.model.seed import stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.disk import Effect
    from pytest_chaos.model.seed import Stream
    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Step

TEARS_MAX: Final = 64
"""At most this many prefixes of one write are built, spread evenly."""
WORD_BYTES: Final = 8
"""The unit of a store through memory."""
WORDS_EXHAUSTIVE_MAX: Final = 4
"""Of so few changed words every subset is built, of more a sample."""
WORD_SAMPLES: Final = 24
_LINE_BYTES: Final = 64
"""The most that one instruction stores."""
_PIECES_MAX: Final = 1024
"""Of more changed words a sample is made of larger blocks."""
_COMPARISONS_MAX: Final = 1 << 16
_COARSER: Final = 8
_EVEN: Final = 0.5


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


def crash_states(recording: Recording, store: PageStore, seed: str) -> Iterator[State]:
    """Yield every state that a kill may leave, in the order of the run.

    The state before the first step is included. The state at the end is that of the clean run, and
    is not. The seed draws the samples within stores through memory.
    """
    looks = _looks(recording)
    disk = Disk(recording, store)
    live, performed = LiveItems(disk), None
    for moment, effect in moments(recording, disk):
        live.follow(performed)
        performed = effect
        if moment.step is None and not moment.precedes_mark:
            return
        step = moment.step
        at = "before a mark" if step is None else f"before step {step}"
        code = f"crash:{moment.number}"
        if step is None:
            code += f"m{moment.marks}"
        is_call = step is not None and not step.look
        if step is None or step.look in {0, *looks}:  # not before the other stores of a look
            yield State(
                code,
                moment.number,
                moment.marks,
                live.items(),
                text=f"killed {at}",
                kill=is_call,
                updates=partial(_next, step, "lost"),
                identity=live.identity,
            )
        if step is not None and step.look:
            yield from _partly_stored(disk, live, moment, looks.pop(step.look, ()), code, seed)  # once, at the first
        elif isinstance(effect, Writing) and effect.is_write:
            yield from _torn(disk, live, moment, effect, code)


def find_crash(recording: Recording, store: PageStore, code: str, seed: str) -> State | None:
    """Return the crash state of a code; None if the recording has no such state."""
    return next((state for state in crash_states(recording, store, seed) if state.code == code), None)


def _looks(recording: Recording) -> dict[int, list[Step]]:
    """Return the stores through memory of each look."""
    looks: dict[int, list[Step]] = {}
    for step in recording.steps:
        if step.look:
            looks.setdefault(step.look, []).append(step)
    return looks


class _Piece(NamedTuple):
    """A changed part of a file, and its new bytes."""

    node: int
    offset: int
    content: bytes


def _partly_stored(
    disk: Disk, live: LiveItems, moment: Moment, stored: Sequence[Step], code: str, seed: str
) -> Iterator[State]:
    """Yield states in which some of the changed words are stored: all such states, or a sample."""
    pieces = _pieces(disk, stored)
    numbers: dict[tuple[int, int], int] = {}
    lines = tuple(numbers.setdefault((each.node, each.offset // _LINE_BYTES), len(numbers)) for each in pieces)
    count, is_sample = len(pieces), len(pieces) > WORDS_EXHAUSTIVE_MAX
    for place, chosen in enumerate(_subsets(count, stream(seed, "stores", moment.number)), 1):
        contents: dict[int, Content] = {}
        for bit, piece in enumerate(pieces):
            if chosen >> bit & 1:
                before = contents.get(piece.node) or disk.contents[piece.node]
                contents[piece.node] = before.write(piece.offset, piece.content)
        items, identity = live.items_with(contents)
        text = (
            f"killed among the stores through memory from step {moment.number} on, in an order that is not known: "
            f"{chosen.bit_count()} of {count} changed words are stored{' (sampled)' if is_sample else ''}"
        )
        lost = count - chosen.bit_count()
        words = StoredWords(chosen, lines)
        at = (f"{code}{_OF_A_LOOK}{place}", moment.number, moment.marks)
        yield State(*at, items, lost=lost, text=text, stored=words, identity=identity)


def look_of(code: str) -> str:
    """Return the look of a state between stores, by the state's code.

    >>> look_of("crash:5~3")
    'crash:5'
    """
    return code.rpartition(_OF_A_LOOK)[0]


_OF_A_LOOK: Final = "~"


def _pieces(disk: Disk, stored: Sequence[Step]) -> list[_Piece]:
    """Return the changed words of stores; of very many words, the changed blocks."""
    size = WORD_BYTES
    while sum(step.length for step in stored) > _COMPARISONS_MAX * size:
        size *= _COARSER
    while len(pieces := [piece for step in stored for piece in _changed(disk, step, size)]) > _PIECES_MAX:
        size *= _COARSER
    return pieces


def _changed(disk: Disk, step: Step, size: int) -> Iterator[_Piece]:
    data, end = disk.bytes_of(step), step.offset + step.length
    pages = range(step.offset // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1)
    before = b"".join(map(disk.contents[step.node].page, pages))[step.offset % PAGE_BYTES :]
    for start in range(step.offset - step.offset % size, end, size):
        first, last = max(start, step.offset) - step.offset, min(start + size, end) - step.offset
        if before[first:last] != data[first:last]:
            yield _Piece(step.node, step.offset + first, data[first:last])


def _subsets(count: int, randomness: Stream) -> Iterator[int]:
    """Yield subsets as bits, neither empty nor full: all, or a sample of three kinds.

    Of few words every one is alone once, and missing once: that may tell that no order avoids a
    finding.
    """
    full = (1 << count) - 1
    if count <= WORDS_EXHAUSTIVE_MAX:
        yield from range(1, full)
        return
    kind = WORD_SAMPLES // 3
    for word in sorted(randomness.sample(range(count), min(count, kind))):
        yield 1 << word
        yield full ^ 1 << word
    for _ in range(kind):
        yield sum(1 << bit for bit in range(count) if randomness.random() < _EVEN)


def _next(step: Step | None, how: str) -> list[tuple[str, str, str]]:
    """Return the update that comes next, of a mark nothing."""
    return [] if step is None else [(step.call, step.path or step.target, how)]


def _torn(disk: Disk, live: LiveItems, moment: Moment, effect: Writing, code: str) -> Iterator[State]:
    before = disk.contents[effect.node]
    for upto in tears(effect.offset, effect.length):
        items, identity = live.items_with({effect.node: disk.written(before, effect, upto=upto)})
        text = f"killed within step {moment.step}, after {upto} bytes"
        updates = partial(_next, moment.step, "torn")
        at = (f"{code}+{upto}", moment.number, moment.marks)
        yield State(*at, items, lost=1, text=text, updates=updates, identity=identity)


def tears(offset: int, length: int) -> list[int]:
    """Return the lengths to which a write may be cut: page boundaries, at most 64 of them."""
    first = PAGE_BYTES - offset % PAGE_BYTES
    cuts = range(first, length, PAGE_BYTES)
    if len(cuts) <= TEARS_MAX:
        return list(cuts)
    return [cuts[place * (len(cuts) - 1) // (TEARS_MAX - 1)] for place in range(TEARS_MAX)]
