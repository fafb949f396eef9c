"""The states that a recording leaves, sound or damaged, and in what two states differ. Pure.

Of power losses a state is built for each single loss: one pending change that is missing, all of
them, those of names alone, those of contents alone. The same losses are built of the sound
recording, so that a state is new if the sound program cannot leave it by such a loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.content import PAGE_BYTES
from pytest_chaos.explore.simulate.crash import moments
from pytest_chaos.explore.simulate.disk import FILE, Disk
from pytest_chaos.explore.simulate.live import LiveItems
from pytest_chaos.explore.simulate.power import Choice, Model, PowerLoss
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pytest_chaos.explore.doubt.damages import DamagedRecording
    from pytest_chaos.explore.simulate.content import Content, PageStore
    from pytest_chaos.explore.simulate.crash import Moment
    from pytest_chaos.explore.simulate.disk import Effect
    from pytest_chaos.explore.simulate.power import Pending
    from pytest_chaos.explore.simulate.state import Item
    from pytest_chaos.trace.recording import Recording

NEAR: Final = 12
"""The moments after a damage of which power losses are built; then those after each mark."""
PENDING_MAX: Final = 32
"""Of more pending changes only the newest are missing one by one."""
_SHOWN: Final = 3


class Left(NamedTuple):
    """A state that a kill or a loss of power leaves: its items, and the marks before it."""

    items: Mapping[str, Item]
    marks: int
    text: str
    identity: int
    family: Family
    is_end: bool = False


def left_by(
    recording: Recording | DamagedRecording,
    store: PageStore,
    families: Collection[Family],
    models: Collection[Model],
    *,
    since: int | None = None,
) -> Iterator[Left]:
    """Yield the states that a run of these steps may leave, by kills and then by power losses.

    ``since`` is the place of a damage: only moments from there on are of interest. Raises
    RecordingError if the steps do not fit together.
    """
    steps = cast("Recording", recording)
    disk = Disk(steps, store)
    live, performed = LiveItems(disk), None
    for place, (moment, effect) in enumerate(moments(steps, disk)):
        live.follow(performed)
        performed = effect
        if since is None or place >= since:
            is_end = moment.step is None and not moment.precedes_mark
            text = "it ended" if is_end else f"it was killed {_when(moment)}"
            yield Left(live.items(), moment.marks, text, live.identity, Family.CRASH, is_end)
    for model in models if Family.POWER in families else ():
        yield from _losses(steps, store, model, since)


def _when(moment: Moment) -> str:
    return f"before step {moment.step}" if moment.step is not None else f"after {moment.marks} marks"


def _losses(recording: Recording, store: PageStore, model: Model, since: int | None) -> Iterator[Left]:
    disk = Disk(recording, store)
    loss = PowerLoss(disk, model)
    followed: Effect | None = None
    marks = -1
    last = len(recording.steps)
    for place, (moment, effect) in enumerate(moments(recording, disk)):
        loss.follow(followed)
        followed = effect
        is_promise, marks = moment.marks != marks, moment.marks
        if since is None or since <= place <= since + NEAR or (place >= since and (is_promise or place == last)):
            pending = loss.pending
            for choice in _choices(pending):
                state = loss.build(pending, choice, moment)
                assert state.identity is not None  # noqa: S101 - power losses have it
                yield Left(state.items, moment.marks, str(state), state.identity, Family.POWER)


def _choices(pending: Pending) -> Iterator[Choice]:
    """Yield nothing lost, each change lost alone, and all of a kind lost."""
    everything = pending.everything
    yield everything
    nothing = (0,) * len(everything.data)
    for place in range(max(0, len(everything.data) - PENDING_MAX), len(everything.data)):
        yield everything._replace(data=(*everything.data[:place], 0, *everything.data[place + 1 :]))
    for bit in range(max(0, pending.changes - PENDING_MAX), pending.changes):
        lost = (1 << bit) - 1 if pending.in_order else everything.metadata & ~(1 << bit)
        yield everything._replace(metadata=lost)
    if pending.changes:
        yield everything._replace(metadata=0)
        yield Choice(0, nothing)
    if nothing:
        yield everything._replace(data=nothing)


def without(items: Mapping[str, Item], paths: Collection[str]) -> tuple[object, ...]:
    """Return what tells items apart, but for some paths."""
    return tuple(
        (path, item.kind, item.mode, item.target, item.content.digest if item.content is not None else None)
        for path, item in sorted(items.items())
        if path not in paths
    )


def differing(items: Mapping[str, Item], sound: Mapping[str, Item]) -> str:
    """Return in words in what items differ from sound ones; empty if in nothing."""
    told = [f"{readable(path)} is missing" for path in sorted(sound.keys() - items.keys())]
    told += [f"{readable(path)} is there" for path in sorted(items.keys() - sound.keys())]
    for path in sorted(sound.keys() & items.keys()):
        ours, theirs = items[path], sound[path]
        if ours.kind != theirs.kind or ours.target != theirs.target:
            told.append(f"{readable(path)} is of another kind")
        elif ours.kind == FILE and ours.content is not None and theirs.content is not None:
            told += [f"{readable(path)} {text}" for text in _contents(ours.content, theirs.content)]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return "; ".join(told[:_SHOWN]) + more


def _contents(ours: Content, theirs: Content) -> list[str]:
    if ours.digest == theirs.digest:
        return []
    if ours.size != theirs.size:
        return [f"has {ours.size:,} bytes, not {theirs.size:,}"]
    for number in range(-(-ours.size // PAGE_BYTES)):
        page, other = ours.page(number), theirs.page(number)
        if page != other:
            at = next(place for place in range(PAGE_BYTES) if page[place] != other[place])
            return [f"differs from byte {number * PAGE_BYTES + at:,} on"]
    return []
