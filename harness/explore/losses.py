"""Which part of what is pending has reached the disk: choices, all of them or a fair sample, and their short names.

Pure arithmetic on bits: what a bit stands for is for ``power`` to know.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.seed import Stream

EXHAUSTIVE_MAX: Final = 64
"""A moment that allows at most this many states has all of them built; of others a sample is drawn."""
SAMPLES: Final = 24
"""States of a moment that allows more, drawn in equal parts from all kinds of loss."""

_EVEN: Final = 0.5
_GROUP: Final = re.compile(r"([0-9a-f]+|w)(?:x(\d+))?")


class Choice(NamedTuple):
    """What has reached the disk. ``metadata`` has a bit for each pending change, from the oldest (bit 0).

    ``data`` has, for each pending change of a file's content, a bit for each sector, from the lowest.
    """

    metadata: int
    data: tuple[int, ...]


class Pending(NamedTuple):
    """What there is to choose from: ``changes`` of metadata, ``in_order`` or not, and writes of so many ``sectors``."""

    changes: int
    in_order: bool
    sectors: tuple[int, ...]

    @property
    def everything(self) -> Choice:
        """The choice by which nothing is lost."""
        return Choice((1 << self.changes) - 1, tuple((1 << count) - 1 for count in self.sectors))

    @property
    def choices_count(self) -> int:
        """How many choices there are."""
        orders = self.changes + 1 if self.in_order else 1 << self.changes
        return orders << sum(self.sectors)

    @property
    def is_exhaustive(self) -> bool:
        """Whether all choices are few enough to build every one."""
        return sum(self.sectors) + self.changes <= EXHAUSTIVE_MAX and self.choices_count <= EXHAUSTIVE_MAX

    def choices(self, randomness: Callable[[], Stream], *, samples: int = SAMPLES) -> Iterator[Choice]:
        """Return all choices when they are few, else a sample that has some of every kind of loss."""
        if self.is_exhaustive:
            return self._all()
        return itertools.islice(_in_turns(_Sample(self, randomness()).kinds()), samples)

    def _all(self) -> Iterator[Choice]:
        ranges = [range((1 << count) - 1, -1, -1) for count in self.sectors]
        count = self.changes
        metadata = [(1 << bits) - 1 for bits in range(count + 1)] if self.in_order else range(1 << count)
        return (Choice(bits, data) for bits in reversed(metadata) for data in itertools.product(*ranges))

    def smaller(self, choice: Choice) -> Iterator[Choice]:
        """Return choices by which less is lost: all metadata there, one more change, one more write whole."""
        everything = self.everything
        if choice.metadata != everything.metadata:
            yield choice._replace(metadata=everything.metadata)
        missing = [bit for bit in range(self.changes) if not choice.metadata >> bit & 1]
        for bit in missing[:1] if self.in_order else missing:
            yield choice._replace(metadata=choice.metadata | 1 << bit)
        for place, full in enumerate(everything.data):
            if choice.data[place] != full:
                yield choice._replace(data=_with(choice.data, place, full))

    def lost(self, choice: Choice) -> int:
        """Return how many changes and writes are missing or torn."""
        everything = self.everything
        changes = (everything.metadata & ~choice.metadata).bit_count()
        return changes + sum(mask != full for mask, full in zip(choice.data, everything.data, strict=True))

    def encode(self, choice: Choice) -> str:
        """Return a short text for a choice: ``3.wx12-0-f0`` (``w`` is a whole write, ``x12`` twelve times)."""
        full = self.everything.data
        masks = ["w" if mask == full[place] else f"{mask:x}" for place, mask in enumerate(choice.data)]
        groups = [(mask, len(list(group))) for mask, group in itertools.groupby(masks)]
        return f"{choice.metadata:x}." + "-".join(mask if count == 1 else f"{mask}x{count}" for mask, count in groups)

    def decode(self, text: str) -> Choice:
        """Return the choice that ``encode`` gave this text. Raises UsageError when it does not fit what is pending."""
        metadata, _, groups = text.partition(".")
        matches = [_GROUP.fullmatch(group) for group in groups.split("-") if group]
        masks = [match[1] for match in matches if match is not None for _ in range(int(match[2] or 1))]
        full = self.everything
        if None in matches or len(masks) != len(full.data) or not re.fullmatch("[0-9a-f]+", metadata):
            msg = f"the state {text!r} does not fit {len(full.data)} pending writes: it was made of another recording"
            raise UsageError(msg)
        pairs = zip(masks, full.data, strict=True)
        data = tuple(whole if mask == "w" else int(mask, 16) & whole for mask, whole in pairs)
        return Choice(int(metadata, 16) & full.metadata, data)


class _Sample:
    """Draws choices of each kind of loss: all or nothing, one missing, one alone, a prefix, a tear, chance."""

    def __init__(self, pending: Pending, randomness: Stream) -> None:
        self._pending = pending
        self._random = randomness.random
        self._all = pending.everything
        self._none = (0,) * len(pending.sectors)

    def kinds(self) -> list[Iterator[Choice]]:
        everything, none = self._all, self._none
        extremes = (everything, Choice(0, none), Choice(everything.metadata, none), Choice(0, everything.data))
        return [
            iter(extremes),
            (Choice(self._change_missing(place), everything.data) for place in self._places(self._pending.changes)),
            (Choice(self._change_alone(place), none) for place in self._places(self._pending.changes)),
            (everything._replace(data=_with(everything.data, place, 0)) for place in self._places(len(none))),
            (everything._replace(data=_with(none, place, everything.data[place])) for place in self._places(len(none))),
            (
                Choice(self._some_metadata(), everything.data[:place] + none[place:])
                for place in self._places(len(none))
            ),
            (self._torn(place) for place in self._places(len(none)) if self._pending.sectors[place] > 1),
            (Choice(self._some_metadata(), self._some_writes()) for _ in range(SAMPLES)),
            (Choice(self._some_metadata(), tuple(map(self._some, everything.data))) for _ in range(SAMPLES)),
        ]

    def _places(self, count: int) -> Iterator[int]:
        """Return places in a random order; of very many only as many as can be used."""
        if count > SAMPLES:
            return (int(self._random() * count) for _ in range(SAMPLES))
        return iter(sorted(range(count), key=lambda _: self._random()))

    def _change_missing(self, place: int) -> int:
        return (1 << place) - 1 if self._pending.in_order else self._all.metadata & ~(1 << place)

    def _change_alone(self, place: int) -> int:
        return (2 << place) - 1 if self._pending.in_order else 1 << place

    def _some_metadata(self) -> int:
        changes = self._pending.changes
        return (
            (1 << int(self._random() * (changes + 1))) - 1 if self._pending.in_order else self._some(self._all.metadata)
        )

    def _some_writes(self) -> tuple[int, ...]:
        return tuple(mask if self._random() < _EVEN else 0 for mask in self._all.data)

    def _torn(self, place: int) -> Choice:
        return self._all._replace(data=_with(self._all.data, place, self._some(self._all.data[place])))

    def _some(self, mask: int) -> int:
        return sum(1 << bit for bit in range(mask.bit_length()) if self._random() < _EVEN)


def _with(data: Sequence[int], place: int, mask: int) -> tuple[int, ...]:
    return (*data[:place], mask, *data[place + 1 :])


def _in_turns(kinds: list[Iterator[Choice]]) -> Iterator[Choice]:
    while kinds:
        for kind in tuple(kinds):
            try:
                yield next(kind)
            except StopIteration:
                kinds.remove(kind)
