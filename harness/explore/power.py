"""What a power failure may leave on the disk, under two named models.

What was synced is certain; of everything else each part may be there or not: a pending write whole, not at all, or torn
by sectors of 512 bytes, in any order with others (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
The models differ in names, permissions and sizes that are set:

``strict`` is what POSIX promises. A name is certain once the folder it is in was fsynced, and until then names come and
go independently of each other; an fsync of a file says nothing about its name. A rename happens whole or not at all.

``ext4`` keeps changes of metadata in the order in which they were made: a failure leaves a prefix of them. An fsync
commits the metadata of that file or folder, and so everything before it in the journal. It is weaker than ext4 as it is
mounted by default: that a file which replaces another by rename is written out first (``auto_da_alloc``) is a courtesy.

Of a program that never syncs the newest 512 changes are uncertain, and older ones are taken to be written: a kernel
writes back after some seconds by itself, and what it may do with them was tried while they were new.

SQLite's ``-shm`` files are memory that happens to have a name; no state here has one.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from harness.explore.content import PAGE_BYTES
from harness.explore.crashes import moments
from harness.explore.disk import Disk, Moding, Naming, Syncing, Writing, renamed
from harness.explore.losses import SAMPLES, Choice, Pending
from harness.explore.state import State, items_of
from harness.seed import stream
from harness.steps.step import NO_NODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.explore.content import Content, PageStore
    from harness.explore.crashes import Moment
    from harness.explore.disk import Effect, Names
    from harness.steps.recording import Recording

SECTOR_BYTES: Final = 512
PENDING_MAX: Final = 512
"""So many changes of contents, and of metadata, are uncertain at a time."""
_MEMORY_FILE: Final = "-shm"
_SHOWN: Final = 12


class Model(enum.StrEnum):
    """What the file system is taken to promise."""

    STRICT = "strict"
    EXT4 = "ext4"


_Metadata: TypeAlias = Naming | Moding | Writing


class _Unit(NamedTuple):
    """A pending change of a file's content. ``is_certain``: the journal has it already."""

    change: Writing
    is_certain: bool = False


class PowerLoss:
    """What is certain and what is pending while a recorded program runs, and what a failure may leave now."""

    def __init__(self, disk: Disk, model: Model) -> None:
        self._disk = disk
        self._model = model
        self._names: Names = disk.names
        self._modes = dict(disk.modes)
        self._contents: dict[int, Content] = dict(disk.contents)
        self._metadata: list[_Metadata] = []
        self._data: dict[int, list[_Unit]] = {}
        self._waiting: deque[Writing] = deque()
        self._in_memory: set[int] = set()
        self._built: dict[tuple[int, tuple[int, ...]], Content] = {}
        self._free_now: list[_Unit] | None = None

    # What the program does

    def follow(self, effect: Effect | None) -> None:
        """Take in what a step changed, once the disk has it."""
        self._built.clear()
        self._free_now = None
        if isinstance(effect, Syncing):
            self._sync(effect.node)
        elif isinstance(effect, Naming):
            self._name(effect)
        elif isinstance(effect, Moding):
            self._metadata.append(effect)
        elif isinstance(effect, Writing) and effect.node not in self._in_memory:
            self._data.setdefault(effect.node, []).append(_Unit(effect))
            self._waiting.append(effect)
            if self._is_journalled(effect):
                self._metadata.append(effect)
        self._write_back()

    def _write_back(self) -> None:
        """Take the oldest changes to be written where there are too many to choose from."""
        while len(self._waiting) > PENDING_MAX:
            change = self._waiting.popleft()
            units = self._data.get(change.node, [])
            if units and units[0].change is change:  # else it was synced meanwhile
                before = self._contents.get(change.node) or self._disk.empty
                self._contents[change.node] = self._disk.written(before, change, keep=self._disk.keep)
                del units[0]
                self._metadata = [each for each in self._metadata if each is not change]
        if len(self._metadata) > PENDING_MAX:
            self._commit([True, *[False] * (len(self._metadata) - 1)])

    def _is_journalled(self, change: Writing) -> bool:
        return not change.is_write and self._model is Model.EXT4

    def _name(self, effect: Naming) -> None:
        for _, name, node in effect.settings:
            if name.endswith(_MEMORY_FILE) and node != NO_NODE:
                self._in_memory.add(node)
            elif node != NO_NODE:
                self._modes.setdefault(node, self._disk.modes[node])
        if not all(name.endswith(_MEMORY_FILE) for _, name, _ in effect.settings):
            self._metadata.append(effect)

    def _sync(self, node: int) -> None:
        for pending in (node,) if node != NO_NODE else tuple(self._data):
            if pending in self._data:
                self._settle(pending)
        touched = [node == NO_NODE or self._touches(change, node) for change in self._metadata]
        if self._model is Model.EXT4:
            upto = max((place for place, hit in enumerate(touched) if hit), default=-1)
            touched = [place <= upto for place in range(len(touched))]
        else:
            touched = _with_what_they_need(self._metadata, touched)
        self._commit(touched)

    def _touches(self, change: _Metadata, node: int) -> bool:
        """Whether an fsync of this node is about the change."""
        if not isinstance(change, Naming):
            return change.node == node
        of_folder = any(folder == node for folder, _, _ in change.settings)
        return of_folder or (self._model is Model.EXT4 and any(named == node for _, _, named in change.settings))

    def _settle(self, node: int) -> None:
        """Make all that a file holds certain. What the journal has of it still stands there, for the order's sake."""
        self._contents[node] = self._disk.contents[node]
        del self._data[node]

    def _commit(self, chosen: Sequence[bool]) -> None:
        for change in itertools.compress(self._metadata, chosen):
            if isinstance(change, Naming):
                self._names = renamed(self._names, change)
            elif isinstance(change, Moding):
                self._modes[change.node] = change.mode
            elif change.node in self._data:
                units = self._data[change.node]
                self._data[change.node] = [
                    _Unit(unit.change, unit.is_certain or unit.change is change) for unit in units
                ]
        self._metadata = [change for change, is_gone in zip(self._metadata, chosen, strict=True) if not is_gone]

    # What may be there now

    @property
    def _free(self) -> list[_Unit]:
        """The changes of contents that have a choice of their own: neither certain nor part of the journal."""
        if self._free_now is None:
            units = (unit for units in self._data.values() for unit in units)
            self._free_now = [unit for unit in units if not unit.is_certain and not self._is_journalled(unit.change)]
        return self._free_now

    @property
    def pending(self) -> Pending:
        """What there is to choose from."""
        sectors = tuple(_sectors(unit.change) for unit in self._free)
        return Pending(len(self._metadata), self._model is Model.EXT4, sectors)

    def build(self, pending: Pending, choice: Choice, moment: Moment) -> State:
        """Return the state that is left when just this has reached the disk."""
        landed = {id(change): choice.metadata >> bit & 1 for bit, change in enumerate(self._metadata)}
        landed |= {id(unit.change): mask for unit, mask in zip(self._free, choice.data, strict=True)}
        names, modes = self._names, self._modes
        for change in self._metadata:
            if landed[id(change)] and isinstance(change, Naming):
                names = renamed(names, change)
            elif landed[id(change)] and isinstance(change, Moding):
                modes = {**modes, change.node: change.mode}
        contents = {node: self._content(node, landed) for node in self._data}

        def content_of(node: int) -> Content:
            return contents.get(node) or self._contents.get(node) or self._disk.empty

        items = items_of(self._disk, names, content_of, modes, keep=lambda path: not path.endswith(_MEMORY_FILE))
        prefix = f"power:{self._model}:{moment.number}m{moment.marks}:"
        lost = [*self._metadata, *(unit.change for unit in self._free)]
        text = _Loss(moment, tuple(lost), pending, choice).words
        return State(
            lambda: prefix + pending.encode(choice),
            moment.number,
            moment.marks,
            items,
            lost=pending.lost(choice),
            text=text,
        )

    def _content(self, node: int, landed: dict[int, int]) -> Content:
        units = self._data[node]
        masks = tuple(_full(unit.change) if unit.is_certain else landed[id(unit.change)] for unit in units)
        key = (node, masks)
        if key not in self._built:
            whole = all(mask == _full(unit.change) for unit, mask in zip(units, masks, strict=True))
            self._built[key] = self._disk.contents[node] if whole else self._partly(node, masks)
        return self._built[key]

    def _partly(self, node: int, masks: Sequence[int]) -> Content:
        """Return the content of which these parts have landed."""
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


class _Loss(NamedTuple):
    """The words for a loss, put together when they are wanted: most states are never spoken of."""

    moment: Moment
    changes: tuple[_Metadata, ...]
    pending: Pending
    choice: Choice

    def words(self) -> str:
        """Say what is lost."""
        at = f"before step {self.moment.step}" if self.moment.step is not None else f"after {self.moment.marks} marks"
        everything = self.pending.everything
        missing = [
            change
            for bit, change in enumerate(self.changes[: self.pending.changes])
            if not self.choice.metadata >> bit & 1
        ]
        parts = [f"{change.step} is lost" for change in missing]
        writes = zip(self.changes[self.pending.changes :], self.choice.data, everything.data, strict=True)
        for change, mask, full in writes:
            if mask != full:
                torn = f"has {mask.bit_count()} of {full.bit_count()} sectors" if mask else "is lost"
                parts.append(f"{change.step} {torn}")
        more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"power lost {at}: " + ("; ".join(parts[:_SHOWN]) + more if parts else "nothing is lost")


def power_states(
    recording: Recording, store: PageStore, model: Model, *, seed: str, samples: int = SAMPLES, every: int = 1
) -> Iterator[tuple[State, bool]]:
    """Return the states that a power failure may leave, moment by moment; the same seed gives the same states.

    With each comes whether its moment has all of its states built. Equal states come more than once. Of a long run only
    one in ``every`` moments is looked at, beginning with one that is drawn.
    """
    first = int(stream(seed, "power", str(model), "first").random() * every)
    for place, (moment, loss) in enumerate(walk_moments(recording, store, model)):
        if (place - first) % every:
            continue
        pending = loss.pending
        purpose = ("power", str(model), moment.number, moment.marks)
        for choice in pending.choices(lambda: stream(seed, *purpose), samples=samples):  # noqa: B023 - used at once
            yield loss.build(pending, choice, moment), pending.is_exhaustive


def walk_moments(recording: Recording, store: PageStore, model: Model) -> Iterator[tuple[Moment, PowerLoss]]:
    """Return every moment of the run with what is pending in it; the second is good until the next is asked for."""
    disk = Disk(recording, store)
    loss = PowerLoss(disk, model)
    followed: Effect | None = None
    for moment, effect in moments(recording, disk):
        loss.follow(followed)
        yield moment, loss
        followed = effect
    loss.follow(followed)


def _with_what_they_need(changes: Sequence[_Metadata], chosen: Sequence[bool]) -> list[bool]:
    """Return the choice with every earlier change of names in the same folders: they cannot be overtaken."""
    folders: set[int] = set()
    result = list(chosen)
    for place in reversed(range(len(changes))):
        change = changes[place]
        if isinstance(change, Naming):
            mine = {folder for folder, _, _ in change.settings}
            if result[place] or mine & folders:
                result[place] = True
                folders |= mine
    return result


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
    """Return start and end in the file of each run of sectors that landed, cut to what was written."""
    first, end = change.offset // SECTOR_BYTES, change.offset + change.length
    place = 0
    while mask >> place:
        rest = mask >> place
        place += (rest & -rest).bit_length() - 1
        rest = mask >> place
        count = (~rest & (rest + 1)).bit_length() - 1
        yield max(change.offset, (first + place) * SECTOR_BYTES), min(end, (first + place + count) * SECTOR_BYTES)
        place += count
