"""Damages: what a program with one mistake would have done, made from a recording. Pure.

Each is a mistake that programs make: a sync that was forgotten, two writes in the wrong order, a
rename before the data, an acknowledgement that comes too early. The steps of the recording are left
out, moved or cut; nothing is run. A damage after which the steps do not fit together is none.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.model.history import MarkParser
from pytest_chaos.trace.step import NO_NODE, SYNCS, Action, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Entry, FileKinds, Step

_NAMES: Final = frozenset({Action.RENAME, Action.LINK, Action.UNLINK, Action.EXCHANGE})
_CONTENTS: Final = frozenset({Action.WRITE, Action.TRUNCATE, Action.ZERO})
_MOVABLE: Final = _NAMES | _CONTENTS


class DamageKind(enum.StrEnum):
    """The mistakes, from the plainest."""

    NOTHING = "nothing"
    """All marks are written, and nothing is done."""
    NO_SYNCS = "no-syncs"
    """Nothing is ever flushed."""
    NO_SYNC = "no-sync"
    """One flush is left out."""
    EARLY_ACK = "early-ack"
    """An operation is acknowledged before its last step."""
    EARLY_RENAME = "early-rename"
    """A file gets its name before its data."""
    SWAPPED = "swapped"
    """Two neighbouring changes come the other way round."""
    NO_WRITE = "no-write"
    """A change of a file is never made."""
    HALF_WRITE = "half-write"
    """The second half of a write is never made."""
    NO_NAME = "no-name"
    """A rename, a link or a removal is never made."""


class Damage(NamedTuple):
    """A damaged run. ``step`` is the durable step that it is about, or 0 for the whole run.

    ``place`` is the first of the items of the recording that is another one.
    """

    kind: DamageKind
    step: Step | None
    text: str
    place: int
    steps: Sequence[Step]


class DamagedRecording:
    """A recording with other steps; the bytes are those of the sound one."""

    def __init__(self, recording: Recording, steps: Sequence[Step]) -> None:
        self._recording = recording
        self.steps = steps
        self.before: Sequence[Entry] = recording.before
        self.files: FileKinds = recording.files

    def content(self, item: Step | Entry) -> bytes:
        """Return the bytes of a write, a mark or a file."""
        return self._recording.content(item)


def damages(recording: Recording) -> Iterator[Damage]:
    """Yield every damage of a recording: first those of the whole run, then step by step."""
    steps = recording.steps
    if any(not step.is_mark for step in steps):
        text = "does nothing but write its marks"
        yield Damage(DamageKind.NOTHING, None, text, 0, [step for step in steps if step.is_mark])
    syncs = [place for place, step in enumerate(steps) if step.action in SYNCS]
    if len(syncs) > 1:
        kept = [step for step in steps if step.action not in SYNCS]
        yield Damage(DamageKind.NO_SYNCS, None, "never flushes anything", syncs[0], kept)
    for place, step in enumerate(steps):
        if step.is_mark:
            yield from _early_ack(steps, place, recording.content)
        elif not step.look:
            yield from _of_step(steps, place, step)


def _of_step(steps: Sequence[Step], place: int, step: Step) -> Iterator[Damage]:
    path = readable(step.path) or "its folder"
    without = [*steps[:place], *steps[place + 1 :]]
    if step.action in SYNCS and step.action is not Action.SYNC_RANGE:
        what = "everything" if step.action is Action.SYNC_ALL else path
        yield Damage(DamageKind.NO_SYNC, step, f"does not flush {what}", place, without)
    elif step.action in _CONTENTS:
        how = f"{step.length:,} bytes to {path}" if step.action is Action.WRITE else f"{path}"
        verb = {Action.WRITE: "write", Action.TRUNCATE: "truncate", Action.ZERO: "empty"}[step.action]
        yield Damage(DamageKind.NO_WRITE, step, f"does not {verb} {how}", place, without)
        if step.action is Action.WRITE and step.length > 1:
            half = msgspec.structs.replace(step, length=step.length // 2)
            text = f"writes half of {step.length:,} bytes to {path}"
            yield Damage(DamageKind.HALF_WRITE, step, text, place, [*steps[:place], half, *steps[place + 1 :]])
    elif step.action in _NAMES:
        yield Damage(DamageKind.NO_NAME, step, f"does not {_named(step)}", place, without)
        if step.action is Action.RENAME:
            yield from _early_rename(steps, place, step)
    if step.action in _MOVABLE:
        yield from _swapped(steps, place, step)


def _named(step: Step) -> str:
    path, target = readable(step.path), readable(step.target)
    verb = {Action.UNLINK: "remove", Action.LINK: "link"}.get(step.action, "rename")
    return f"{verb} {path}{f' to {target}' if target else ''}"


def _early_rename(steps: Sequence[Step], place: int, step: Step) -> Iterator[Damage]:
    """Yield the damage that a file is renamed before its first write since it was made."""
    first = None
    for earlier in range(place - 1, -1, -1):
        other = steps[earlier]
        if other.node == step.node and step.node != NO_NODE and not other.is_mark:
            if other.action in _CONTENTS:
                first = earlier
            elif other.action not in SYNCS:
                break
    if first is not None:
        names = f"{readable(step.path)} to {readable(step.target)}"
        moved = [*steps[:first], step, *steps[first:place], *steps[place + 1 :]]
        yield Damage(DamageKind.EARLY_RENAME, step, f"renames {names} before it writes to it", first, moved)


def _swapped(steps: Sequence[Step], place: int, step: Step) -> Iterator[Damage]:
    """Yield the damage that a change and the next one come the other way round."""
    for later in range(place + 1, len(steps)):
        other = steps[later]
        if other.is_mark or other.look or (other.process, other.thread) != (step.process, step.thread):
            return
        if other.action in _MOVABLE:
            moved = [*steps[:place], other, *steps[place + 1 : later], step, *steps[later + 1 :]]
            text = f"does step {step} only after step {other}"
            yield Damage(DamageKind.SWAPPED, step, text, place, moved)
            return
        if other.action not in SYNCS:
            return


def _early_ack(steps: Sequence[Step], place: int, content: Callable[[Step], bytes]) -> Iterator[Damage]:
    """Yield the damage that an operation is acknowledged before the last change before it."""
    marks = MarkParser().feed(content(steps[place]))
    if len(marks) != 1 or marks[0].kind != "ack":
        return
    for earlier in range(place - 1, -1, -1):
        other = steps[earlier]
        if other.is_mark or other.look:
            return
        if other.action not in SYNCS:
            moved = [*steps[:earlier], steps[place], *steps[earlier:place], *steps[place + 1 :]]
            text = f"acknowledges {marks[0].operation} {marks[0].key} before {str(other).partition(': ')[2]}"
            yield Damage(DamageKind.EARLY_ACK, other, text, earlier, moved)
            return
