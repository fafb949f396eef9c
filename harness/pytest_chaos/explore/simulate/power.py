"""Power-loss states of the disk, under two named models. Pure.

Synced data is certain. Everything else is pending. A pending write may be there whole, not at all,
or torn by sectors of 512 bytes, in any order with others (Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014). The models differ in names, permissions and sizes:

``strict`` is what POSIX promises. A name is certain once its folder was fsynced, and until then
names come and go independently of each other; an fsync of a file says nothing about its name. A
rename happens whole or not at all.

``ext4`` keeps changes of metadata in their order: a failure leaves a prefix of them. An fsync
commits the metadata of that file or folder, and so everything before it in the journal. It is
weaker than ext4 with default mount options, which also writes out a file before it replaces another
by rename (``auto_da_alloc``). No program may rely on that.

Only the newest 512 changes are pending; older ones count as written. A kernel writes back after
some seconds by itself, and the losses of older changes were tried while they were new.

A file that is moved in from outside, or from an ignored name, counts as flushed.

Volatile files (SQLite's ``-shm``, LMDB's lock file) are shared memory; no power-loss state has one.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import operator
import re
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.simulate.content import PAGE_BYTES
from pytest_chaos.explore.simulate.crash import moments
from pytest_chaos.explore.simulate.disk import FILE, Disk, Moding, Naming, Syncing, Writing, renamed
from pytest_chaos.explore.simulate.metadata import PendingMetadata, kind_of
from pytest_chaos.explore.simulate.near import Base, Tokens
from pytest_chaos.explore.simulate.state import Item, State, items_of
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.step import NO_NODE, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_chaos.explore.simulate.content import Content, PageStore
    from pytest_chaos.explore.simulate.crash import Moment
    from pytest_chaos.explore.simulate.disk import Effect, Names
    from pytest_chaos.explore.simulate.metadata import Kind, Metadata
    from pytest_chaos.explore.simulate.near import Built
    from pytest_chaos.model.seed import Stream
    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Step

EXHAUSTIVE_MAX: Final = 64
"""All states of a moment are built if they are at most this many; else a sample is drawn."""
SAMPLES: Final = 24
"""Size of that sample, drawn in equal parts from all kinds of loss."""
SECTOR_BYTES: Final = 512
PENDING_MAX: Final = 512
"""At most this many changes of contents, and of metadata, are uncertain at a time."""
_NEAR_MIN: Final = 8
"""With fewer pending changes of metadata, each state is built as a whole."""
MANY_FILES: Final = 32
"""With so many pending changes of metadata, states that are alike come one after the other."""
_SHOWN: Final = 12
_EVEN: Final = 0.5
_GROUP: Final = re.compile(r"([0-9a-f]+|w)(?:x(\d{1,9}))?")


class Model(enum.StrEnum):
    """The promises of a file system."""

    STRICT = "strict"
    EXT4 = "ext4"


class Choice(NamedTuple):
    """The pending changes that have reached the disk, as bits.

    ``metadata`` has a bit for each pending change, from the oldest (bit 0). ``data`` has, for each
    pending change of a file's content, a bit for each sector, from the lowest.
    """

    metadata: int
    data: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pending:
    """The pending changes at a moment, of which each choice loses some.

    ``changes`` counts those of metadata, which are lost ``in_order`` or in any order; ``sectors``
    has the number of sectors of each pending write.
    """

    changes: int
    in_order: bool
    sectors: tuple[int, ...]

    @cached_property
    def everything(self) -> Choice:
        """The choice by which nothing is lost."""
        return Choice((1 << self.changes) - 1, tuple((1 << count) - 1 for count in self.sectors))

    @property
    def choices_count(self) -> int:
        """The number of choices."""
        orders = self.changes + 1 if self.in_order else 1 << self.changes
        return orders << sum(self.sectors)

    @cached_property
    def is_exhaustive(self) -> bool:
        """Whether the choices are few enough to build every one."""
        return sum(self.sectors) + self.changes <= EXHAUSTIVE_MAX and self.choices_count <= EXHAUSTIVE_MAX

    def choices(self, randomness: Callable[[], Stream], *, samples: int = SAMPLES) -> Iterator[Choice]:
        """Return all choices if they are few, else a sample with some of every kind of loss."""
        if self.is_exhaustive:
            return self._all()
        return itertools.islice(_in_turns(_Sample(self, randomness()).kinds()), samples)

    def _all(self) -> Iterator[Choice]:
        ranges = [range((1 << count) - 1, -1, -1) for count in self.sectors]
        count = self.changes
        metadata = [(1 << bits) - 1 for bits in range(count + 1)] if self.in_order else range(1 << count)
        return (Choice(bits, data) for bits in reversed(metadata) for data in itertools.product(*ranges))

    def smaller(self, choice: Choice) -> Iterator[Choice]:
        """Yield choices that lose less: no metadata, one change less, or one write less."""
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
        """Return the number of changes and writes that are missing or torn."""
        everything = self.everything
        changes = (everything.metadata & ~choice.metadata).bit_count()
        return changes + sum(mask != full for mask, full in zip(choice.data, everything.data, strict=True))

    def encode(self, choice: Choice) -> str:
        """Return a choice as a short text, such as ``3.wx12-0-f0``.

        ``w`` is a whole write; ``x12`` means twelve times.
        """
        full = self.everything.data
        masks = ["w" if mask == full[place] else f"{mask:x}" for place, mask in enumerate(choice.data)]
        groups = [(mask, len(list(group))) for mask, group in itertools.groupby(masks)]
        return f"{choice.metadata:x}." + "-".join(mask if count == 1 else f"{mask}x{count}" for mask, count in groups)

    def decode(self, text: str) -> Choice:
        """Return the choice of a text of ``encode``. Raises UsageError if it does not fit."""
        metadata, _, groups = text.partition(".")
        matches = [_GROUP.fullmatch(group) for group in groups.split("-") if group]
        full = self.everything
        counted = sum(int(match[2] or 1) for match in matches if match is not None)
        is_number = re.fullmatch("[0-9a-f]+", metadata) is not None and int(metadata, 16) <= full.metadata
        data: list[int] = []
        if None not in matches and counted == len(full.data) and is_number:
            masks = [match[1] for match in matches if match is not None for _ in range(int(match[2] or 1))]
            pairs = zip(masks, full.data, strict=True)
            data = [whole if mask == "w" else int(mask, 16) for mask, whole in pairs]
        if len(data) < len(full.data) or not is_number or any(map(operator.gt, data, full.data)):
            msg = (
                f"state code must have a choice for {len(full.data)} pending writes; got {text!r}, which is of another "
                "recording. Explore the target again"
            )
            raise UsageError(msg)
        return Choice(int(metadata, 16), tuple(data))


class _Sample:
    """Choices of each kind of loss: all, none, one missing, one alone, a prefix, torn, random."""

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
        """Return places in a random order, no more than can be used."""
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
        bits = ["1" if self._random() < _EVEN else "0" for _ in range(mask.bit_length())]
        return int("".join(reversed(bits)) or "0", 2)


def _with(data: Sequence[int], place: int, mask: int) -> tuple[int, ...]:
    return (*data[:place], mask, *data[place + 1 :])


def _in_turns(kinds: list[Iterator[Choice]]) -> Iterator[Choice]:
    while kinds:
        for kind in tuple(kinds):
            try:
                yield next(kind)
            except StopIteration:
                kinds.remove(kind)


class _Unit(NamedTuple):
    """A pending change of a file's content. ``is_certain``: the journal has it already."""

    change: Writing
    is_certain: bool = False


class PowerLoss:
    """Certain and pending changes while a recorded program runs; builds power-loss states."""

    def __init__(self, disk: Disk, model: Model) -> None:
        self._disk = disk
        self._model = model
        self._names: Names = disk.names
        self._modes = dict(disk.modes)
        self._contents: dict[int, Content] = dict(disk.contents)
        self._metadata = PendingMetadata(names_files=model is Model.EXT4)
        self._data: dict[int, list[_Unit]] = {}
        self._waiting: deque[Writing] = deque()
        self._files = disk.files
        self._volatile = _volatile_nodes(disk)
        self._built: dict[tuple[int, tuple[int, ...]], Content] = {}
        self._tokens = Tokens()
        self._bases: dict[Choice, Base] = {}
        self._now: _Uncertain | None = None

    # Steps of the program

    def follow(self, effect: Effect | None) -> None:
        """Add the effect of a step, once it is applied to the disk."""
        self._built.clear()
        self._bases.clear()
        self._now = None
        if isinstance(effect, Syncing):
            self._sync(effect.node)
        elif isinstance(effect, Naming):
            self._name(effect)
        elif isinstance(effect, Moding):
            self._metadata.add(effect)
        elif isinstance(effect, Writing) and effect.node not in self._volatile:
            self._data.setdefault(effect.node, []).append(_Unit(effect))
            self._waiting.append(effect)
            if self._is_journalled(effect):
                self._metadata.add(effect)
        self._write_back()

    def _write_back(self) -> None:
        """Count the oldest changes as written if too many are pending."""
        while len(self._waiting) > PENDING_MAX:
            change = self._waiting.popleft()
            units = self._data.get(change.node, [])
            if units and units[0].change is change:  # else it was synced meanwhile
                before = self._contents.get(change.node) or self._disk.empty
                self._contents[change.node] = self._disk.written(before, change, keep=self._disk.keep)
                del units[0]
                if self._is_journalled(change):
                    self._metadata.drop(change)
        if len(self._metadata.changes) > PENDING_MAX:
            self._commit(1)

    def _is_journalled(self, change: Writing) -> bool:
        return not change.is_write and self._model is Model.EXT4

    def _name(self, effect: Naming) -> None:
        for _, _, node in effect.settings:
            if node != NO_NODE:
                self._modes.setdefault(node, self._disk.modes[node])
                if effect.step is not None and not effect.step.path:  # from outside, where no flush of it was seen
                    self._contents[node] = self._disk.contents[node]
        if not all(map(self._files.is_volatile, _paths(effect.step))):
            self._metadata.add(effect)

    def _sync(self, node: int) -> None:
        for pending in (node,) if node != NO_NODE else tuple(self._data):
            if pending in self._data:
                self._settle(pending)
        touched = self._metadata.synced_by(node)
        if self._model is Model.EXT4:
            self._commit((1 << touched.bit_length()) - 1)
        else:
            self._commit(self._metadata.with_earlier_names(touched))

    def _settle(self, node: int) -> None:
        """Make a file's content certain; its journalled changes keep their place in the order."""
        self._contents[node] = self._disk.contents[node]
        del self._data[node]

    def _commit(self, chosen: int) -> None:
        taken = self._metadata.take(chosen)
        self._names = renamed(self._names, *(change for change in taken if isinstance(change, Naming)))
        for change in taken:
            if isinstance(change, Moding):
                self._modes[change.node] = change.mode
            elif isinstance(change, Writing) and change.node in self._data:
                units = self._data[change.node]
                self._data[change.node] = [
                    _Unit(unit.change, unit.is_certain or unit.change is change) for unit in units
                ]

    # States that a failure may leave now

    @property
    def _uncertain(self) -> _Uncertain:
        """What is pending now."""
        if self._now is None:
            units = (unit for units in self._data.values() for unit in units)
            free = [unit.change for unit in units if not unit.is_certain and not self._is_journalled(unit.change)]
            sectors, writings = tuple(map(_sectors, free)), tuple(self._metadata.writings())
            self._now = _Uncertain(
                Pending(len(self._metadata.changes), self._model is Model.EXT4, sectors),
                tuple(self._metadata.changes),
                tuple(free),
                tuple(self._metadata.kinds.items()),
                tuple(kind_of(change.step) for change in free),
                writings,
                {id(change): place for place, change in (*enumerate(free), *writings)},
            )
        return self._now

    @property
    def pending(self) -> Pending:
        """The pending changes now."""
        return self._uncertain.pending

    def build(self, pending: Pending, choice: Choice, moment: Moment) -> State:
        """Return the state in which exactly the chosen changes have reached the disk."""
        now = self._uncertain
        items, identity = self._near(pending, choice) or self._whole(choice).built
        prefix = f"power:{self._model}:{moment.number}m{moment.marks}:"
        loss = _Loss(moment, now, choice)
        return State(
            lambda: prefix + pending.encode(choice),
            moment.number,
            moment.marks,
            items,
            lost=pending.lost(choice),
            text=loss.words,
            updates=loss.updates,
            identity=identity,
        )

    def _whole(self, choice: Choice) -> Base:
        """Build the state of a choice as a whole."""
        names = self._metadata.names_after(self._names, choice.metadata)
        modes = self._metadata.modes_after(self._modes, choice.metadata)
        changed = {node: self._content(node, choice) for node in self._nodes_that_lack(choice)}

        def content_of(node: int) -> Content:
            if (content := changed.get(node)) is not None:
                return content
            certain = self._disk.contents if node in self._data else self._contents
            return certain.get(node) or self._disk.empty

        items = items_of(self._disk, names, content_of, modes, keep=self._keeps)
        return Base(names, items, self._disk.nodes, self._tokens)

    def _keeps(self, path: str) -> bool:
        return not self._files.is_volatile(path)

    def _near(self, pending: Pending, choice: Choice) -> Built | None:
        """Build the state of a choice from the one that has all or none of the changes.

        Of metadata and of contents it has all or none, whichever is nearer. None if there are few
        changes, or the state has to be built as a whole.
        """
        everything, writes = pending.everything, self._uncertain.writes
        if pending.changes < _NEAR_MIN:
            return None
        has_most = choice.metadata.bit_count() * 2 > pending.changes
        missing = sum(map(operator.ne, choice.data, everything.data))
        data = everything.data if missing * 2 < len(writes) else (0,) * len(writes)
        nearest = Choice(everything.metadata if has_most else 0, data)
        if (base := self._bases.get(nearest)) is None:
            base = self._bases[nearest] = self._whole(nearest)
        if nearest == choice:
            return base.built
        touched = self._metadata.nodes_changed(nearest.metadata ^ choice.metadata)
        touched.update(
            write.node for write, mask, other in zip(writes, choice.data, data, strict=True) if mask != other
        )
        changed = self._metadata.names_changed(self._names, nearest.metadata, choice.metadata)
        if (paths := base.paths_of(changed)) is None:
            return None
        names = {path: node for path, node in paths.items() if self._keeps(path)}
        return base.with_changes(names, touched, lambda node: self._item(node, choice))

    def _item(self, number: int, choice: Choice) -> Item:
        """Return the item of a node after chosen changes."""
        node = self._disk.nodes[number]
        mode = self._metadata.mode_after(number, self._modes.get(number, 0), choice.metadata)
        content = None
        if node.kind == FILE:
            content = self._contents.get(number) or self._disk.empty
            if number in self._data:
                content = self._content(number, choice)
        return Item(node.kind, mode, number, content, node.target)

    def _nodes_that_lack(self, choice: Choice) -> set[int]:
        """Return the files of which a pending change is missing or torn."""
        now = self._uncertain
        full = now.pending.everything.data
        nodes = {now.writes[place].node for place, mask in enumerate(choice.data) if mask != full[place]}
        nodes.update(change.node for place, change in now.writings if not choice.metadata >> place & 1)
        return nodes & self._data.keys()

    def _content(self, node: int, choice: Choice) -> Content:
        units = self._data[node]
        if len(units) == 1:  # which is nearly always so if there are many files
            mask = self._mask(units[0], choice)
            if not mask:
                return self._contents.get(node) or self._disk.empty
            if mask == _full(units[0].change):
                return self._disk.contents[node]
        masks = tuple(self._mask(unit, choice) for unit in units)
        key = (node, masks)
        if key not in self._built:
            whole = all(mask == _full(unit.change) for unit, mask in zip(units, masks, strict=True))
            self._built[key] = self._disk.contents[node] if whole else self._partly(node, masks)
        return self._built[key]

    def _mask(self, unit: _Unit, choice: Choice) -> int:
        """Return the sectors of a change that are there."""
        if unit.is_certain:
            return _full(unit.change)
        now = self._uncertain
        if self._is_journalled(unit.change):
            return choice.metadata >> now.places[id(unit.change)] & 1
        return choice.data[now.places[id(unit.change)]]

    def _partly(self, node: int, masks: Sequence[int]) -> Content:
        """Return the content of a file after these parts of its writes."""
        units, before = self._data[node], self._contents.get(node) or self._disk.empty
        if not all(unit.change.is_write for unit in units):
            return self._one_by_one(node, masks)
        dirty: set[int] = set()
        for unit, mask in zip(units, masks, strict=True):
            if mask != _full(unit.change):
                dirty.update(_pages(unit.change))
        pieces: list[tuple[int, bytes]] = []
        size = before.size
        for unit, mask in zip(units, masks, strict=True):
            if mask:
                runs = list(_runs(mask, unit.change))
                size = max(size, runs[-1][1])
                if not dirty.isdisjoint(_pages(unit.change)):
                    data, offset = self._disk.data(unit.change), unit.change.offset
                    pieces += [(start, data[start - offset : end - offset]) for start, end in runs]
        return before.blended(self._disk.contents[node], dirty, pieces, size)

    def _one_by_one(self, node: int, masks: Sequence[int]) -> Content:
        content = self._contents.get(node) or self._disk.empty
        for unit, mask in zip(self._data[node], masks, strict=True):
            if mask == _full(unit.change):
                content = self._disk.written(content, unit.change)
            elif mask:
                data, offset = self._disk.data(unit.change), unit.change.offset
                for start, end in _runs(mask, unit.change):
                    content = content.write(start, data[start - offset : end - offset])
        return content


class _Uncertain(NamedTuple):
    """All that is pending at a moment, for its many states.

    ``changes`` are those of metadata, ``writes`` those of contents. ``kinds`` has the changes of
    metadata of each kind, ``data_kinds`` the kind of each change of contents. ``writings`` are the
    changes of metadata that are of a file's size, with their places; ``places`` has the place of
    each change of a file, by its identity.
    """

    pending: Pending
    changes: tuple[Metadata, ...]
    writes: tuple[Writing, ...]
    kinds: tuple[tuple[Kind, int], ...]
    data_kinds: tuple[Kind, ...]
    writings: tuple[tuple[int, Writing], ...]
    places: Mapping[int, int]


class _Loss(NamedTuple):
    """The text of a loss, made on demand: most states are never reported."""

    moment: Moment
    now: _Uncertain
    choice: Choice

    def updates(self) -> Iterator[tuple[str, str, str]]:
        """Yield each kind of change of which one is lost or torn."""
        everything, now = self.now.pending.everything, self.now
        missing = everything.metadata & ~self.choice.metadata
        data = zip(now.data_kinds, self.choice.data, everything.data, strict=True)
        how = {(kind, 0) for kind, changes in now.kinds if changes & missing}
        how.update((kind, min(mask, 1)) for kind, mask, full in data if mask != full)
        return ((*kind, "torn" if mask else "lost") for kind, mask in how)

    def words(self) -> str:
        """Return the lost changes in words."""
        at = f"before step {self.moment.step}" if self.moment.step is not None else f"after {self.moment.marks} marks"
        everything = self.now.pending.everything
        missing = [change for bit, change in enumerate(self.now.changes) if not self.choice.metadata >> bit & 1]
        parts = [f"{change.step} is lost" for change in missing]
        writes = zip(self.now.writes, self.choice.data, everything.data, strict=True)
        for change, mask, full in writes:
            if mask != full:
                torn = f"has {mask.bit_count()} of {full.bit_count()} sectors" if mask else "is lost"
                parts.append(f"{change.step} {torn}")
        more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"power lost {at}: " + ("; ".join(parts[:_SHOWN]) + more if parts else "nothing is lost")


def power_states(
    recording: Recording, store: PageStore, model: Model, *, seed: str, samples: int = SAMPLES, every: int = 1
) -> Iterator[tuple[State, bool]]:
    """Yield the states that a power loss may leave, moment by moment, as the seed decides.

    With each state comes whether all states of its moment are built. Equal states are repeated. Of
    a long run only one in ``every`` moments is used; the first is drawn.

    Where many changes are pending, the states of a moment are in the order of what they have, from
    the most to the least, and in the next moment the other way round: each is written into the
    folder of an earlier one, and has most of its files.
    """
    first = int(stream(seed, "power", str(model), "first").random() * every)
    is_upwards = False
    for place, (moment, loss) in enumerate(walk_moments(recording, store, model)):
        if (place - first) % every:
            continue
        pending = loss.pending
        purpose = ("power", str(model), moment.number, moment.marks)
        choices = pending.choices(lambda: stream(seed, *purpose), samples=samples)  # noqa: B023 - used at once
        if pending.changes >= MANY_FILES:
            choices, is_upwards = iter(sorted(choices, key=_amount, reverse=not is_upwards)), not is_upwards
        for choice in choices:
            yield loss.build(pending, choice, moment), pending.is_exhaustive


def _amount(choice: Choice) -> tuple[int, int]:
    """Return how many changes of names, and of contents, a choice has."""
    return choice.metadata.bit_count(), sum(map(bool, choice.data))


def walk_moments(recording: Recording, store: PageStore, model: Model) -> Iterator[tuple[Moment, PowerLoss]]:
    """Yield every moment of the run with its pending changes, valid until the next moment."""
    disk = Disk(recording, store)
    loss = PowerLoss(disk, model)
    followed: Effect | None = None
    for moment, effect in moments(recording, disk):
        loss.follow(followed)
        yield moment, loss
        followed = effect
    loss.follow(followed)


def _paths(step: Step | None) -> tuple[str, ...]:
    """Return the paths that a step gives, takes or exchanges."""
    if step is None:
        return ()
    paths = (step.path,) if step.action is Action.SYMLINK else (step.path, step.target)
    return tuple(filter(None, paths))


def _volatile_nodes(disk: Disk) -> frozenset[int]:
    """Return the files that have the name of a volatile file, and never another one."""
    names = [(path, entry.node) for entry in disk.before if (path := entry.path)]
    names += [(path, step.node) for step in disk.steps for path in _paths(step)]
    volatile = {node for path, node in names if disk.files.is_volatile(path)}
    return frozenset(volatile - {node for path, node in names if not disk.files.is_volatile(path)})


def _sectors(change: Writing) -> int:
    if not change.is_write or not change.length:
        return 1
    return (change.offset + change.length - 1) // SECTOR_BYTES - change.offset // SECTOR_BYTES + 1


def _pages(change: Writing) -> range:
    """Return the numbers of the pages that a write touches."""
    return range(change.offset // PAGE_BYTES, (change.offset + max(change.length, 1) - 1) // PAGE_BYTES + 1)


def _full(change: Writing) -> int:
    return (1 << _sectors(change)) - 1


def _runs(mask: int, change: Writing) -> Iterator[tuple[int, int]]:
    """Yield start and end, in the file, of each run of sectors that landed."""
    first, end = change.offset // SECTOR_BYTES, change.offset + change.length
    place = 0
    while mask >> place:
        rest = mask >> place
        place += (rest & -rest).bit_length() - 1
        rest = mask >> place
        count = (~rest & (rest + 1)).bit_length() - 1
        yield max(change.offset, (first + place) * SECTOR_BYTES), min(end, (first + place + count) * SECTOR_BYTES)
        place += count
