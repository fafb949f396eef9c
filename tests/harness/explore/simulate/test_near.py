"""States that are built from a near one: the same as those that are built as a whole."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.explore.simulate import power
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.power import Model, power_states, walk_moments
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.step import Action

from tests.harness.trace.recordings import Script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.explore.simulate.near import Base, Built
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.trace.recording import Recording

FILES = ("a", "b", "c", "x-shm", "d/a", "d/b", "e/a")
ROUNDS = 40
_WAYS = ("make", "write", "cut", "mode", "move", "link", "drop", "flush", "make folder", "move folder")


class _Random:
    """A recording that grows by what is possible of random changes, each with two numbers."""

    def __init__(self, folder: Path) -> None:
        self.script = Script(folder).before("a", b"before").folder("d")
        self._names = {"a"}
        self._folders = {"", "d"}

    def add(self, way: str, one: int, other: int) -> None:
        """Add a change, if there is a file that it could be of."""
        there = sorted(path for path in self._names if path.rpartition("/")[0] in self._folders)
        free = [path for path in FILES if path not in self._names and path.rpartition("/")[0] in self._folders]
        old, new = there[one % len(there)] if there else "", free[other % len(free)] if free else ""
        script, is_empty = self.script, not any("d/" in path for path in self._names)
        if way in {"move", "link"} and old and new:
            self._names.add(new)
            (script.rename if way == "move" else script.link)(*((old, new) if way == "move" else (new, old)))
            self._names -= {old} if way == "move" else set()
        elif way == "make" and new:
            self._names.add(new)
            script.create(new)
        elif way == "drop" and old:
            self._names.remove(old)
            script.unlink(old)
        elif way in {"make folder", "move folder"} and "e" not in self._folders and (way[1] == "a" or is_empty):
            self._folders ^= {"e"} if way == "make folder" else {"d", "e"}
            _ = script.folder("e") if way == "make folder" else script.rename("d", "e")
        elif old:
            self._change(way, old, one, other)

    def _change(self, way: str, path: str, one: int, other: int) -> None:
        if way == "write":
            self.script.write(path, b"%d" % one * (1 + other * 300), offset=other)
        elif way == "cut":
            self.script.truncate(path, other)
        elif way == "mode":
            self.script.step(Action.CHANGE_MODE, path, mode=0o600 + other % 8)
        elif way == "flush":
            self.script.sync(path if other % 2 else "")


def _states(recording: Recording, model: Model) -> Iterator[tuple[int, State, Built]]:
    """Yield the states of a moment as they are built, and each as it is built as a whole."""
    for moment, loss in walk_moments(recording, PageStore(), model):
        pending = loss.pending
        for choice in list(pending.choices(lambda: stream("s"), samples=24)):
            yield moment.number, loss.build(pending, choice, moment), _as_a_whole(loss, choice)


def _as_a_whole(loss: power.PowerLoss, choice: power.Choice) -> Built:
    return loss._whole(choice).built


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(_WAYS), st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_a_state_from_a_near_one_is_the_one_that_is_built_as_a_whole(ways: list[tuple[str, int, int]]) -> None:
    """Whatever was made, moved, linked, cut and flushed: the items and their identity are equal."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "_NEAR_MIN", 0)
        random = _Random(Path(folder))
        for way in ways:
            random.add(*way)
        recording = random.script.done()
        for model in Model:
            for number, state, whole in _states(recording, model):
                assert (state.items, state.identity) == whole, (model, number, state.code)


def _many(folder: Path, files: int) -> Recording:
    script = Script(folder)
    for number in range(files):
        script.create(f"f{number}").write(f"f{number}", b"%d" % number)
    return script.done()


@pytest.mark.parametrize("model", list(Model))
def test_nearly_all_states_of_many_files_are_built_from_a_near_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    """A moment has at most four that are built as a whole, however many changes are pending."""
    sizes: list[int] = []
    whole = power.PowerLoss._whole

    def counted(loss: power.PowerLoss, choice: power.Choice) -> Base:
        sizes.append(len(choice.data))
        return whole(loss, choice)

    monkeypatch.setattr(power.PowerLoss, "_whole", counted)
    recording = _many(tmp_path, ROUNDS)
    states = sum(1 for state, _ in power_states(recording, PageStore(), model, seed="s") if state.step > ROUNDS)

    assert states > 20 * ROUNDS
    assert len([size for size in sizes if size > ROUNDS // 2]) <= 4 * (ROUNDS + 1)
