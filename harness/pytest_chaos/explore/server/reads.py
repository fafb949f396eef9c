"""What a start reads: one start on the state that the clean run left, one on a state within it.

Each is the restart and the check that every state gets, once more, with the calls trapped that
look. The end of a clean run is the first state that passes. A server that ended in order reads less
at its next start than one that was killed: so a state from the middle of the run is looked at, too.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.explore.simulate.state import live_items
from pytest_chaos.model.history import History
from pytest_chaos.trace.calls.reads import WatchedReads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.simulate.state import Item

_SHOWN: Final = 5


class LookedAt(NamedTuple):
    """A state on which a start is watched: its items, and the number of marks before it."""

    items: Mapping[str, Item]
    marks: int


def looked_at(recorded: Recorded) -> tuple[LookedAt, ...]:
    """Return the states on which a start is watched: the end of the clean run, and its middle."""
    disk = Disk(recorded.recording, recorded.store)
    for step in recorded.recording.steps:
        disk.apply(step)
    end = LookedAt(live_items(disk), len(recorded.marks))
    states = crash_states(recorded.recording, recorded.store, recorded.seed)
    middle = next((state for state in states if state.step * 2 > recorded.steps and state.stored is None), None)
    return (end,) if middle is None else (end, LookedAt(middle.items, middle.marks))


def reads_of(
    recorded: Recorded, states: tuple[LookedAt, ...], folder: Path, *, timeout_s: float
) -> WatchedReads | None:
    """Watch a start on each state; return what they read, None where that cannot be told."""
    try:
        seen = [_watched(recorded, state, folder / "reads", timeout_s) for state in states]
    except (ChaosError, OSError):  # the order of states is as without it
        return None
    finally:
        shutil.rmtree(folder / "reads", ignore_errors=True)
    known = [reads for reads in seen if reads is not None]
    return WatchedReads.of(known) if len(known) == len(states) else None


def _watched(recorded: Recorded, state: LookedAt, folder: Path, timeout_s: float) -> WatchedReads | None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    directory, marks_file, seen = folder / "state", folder / "marks", recorded.marks[: state.marks]
    StateFolder(directory).put(state.items)
    marks_file.write_bytes(History(seen).to_json_lines())
    program = recorded.subject.recovery(directory, marks_file, seen)
    return recorded.source.reads(program, directory, marks=marks_file, timeout_s=timeout_s)


def note_of(reads: WatchedReads | None) -> Iterator[str]:
    """Yield a note of the files that a start did not read, if there are any."""
    if reads is not None and (unread := reads.unread):
        shown = ", ".join(unread[:_SHOWN]) + (f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else "")
        yield (
            f"a start with its check, watched, read the contents of {len(reads.files) - len(unread)} of "
            f"{len(reads.files)} files, and not of {shown}: states that differ only in what was not read come last"
        )
