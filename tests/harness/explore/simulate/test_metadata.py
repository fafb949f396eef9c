"""Pending changes of metadata: the index gives what the changes give one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings, strategies as st
from pytest_chaos.explore.simulate.disk import Moding, Naming, renamed
from pytest_chaos.explore.simulate.metadata import PendingMetadata

if TYPE_CHECKING:
    from pytest_chaos.explore.simulate.disk import Names

NODES = st.integers(0, 3)
SETTINGS = st.lists(st.tuples(st.integers(1, 2), st.sampled_from("ab"), NODES), min_size=1, max_size=2)
CHANGES = st.lists(SETTINGS.map(lambda each: Naming(tuple(each))) | st.builds(Moding, NODES, st.integers(1, 7)))


@settings(max_examples=50, deadline=None)
@given(CHANGES, st.integers(0), st.integers(0))
def test_a_choice_leaves_what_its_changes_leave(changes: list[Naming | Moding], taken: int, chosen: int) -> None:
    """Names and permissions are those of the chosen changes in their order,
    also after some changes were taken away.
    """
    pending = PendingMetadata(names_files=True)
    for change in changes:
        pending.add(change)
    gone = pending.take(taken & pending.everything)
    left = [change for place, change in enumerate(changes) if not taken >> place & 1]
    landed = [change for place, change in enumerate(left) if chosen >> place & 1]

    assert [*map(id, gone)] == [id(change) for place, change in enumerate(changes) if taken >> place & 1]
    names: Names = {1: {"a": 9}, 2: {}}
    assert pending.names_after(names, chosen) == renamed(names, *(each for each in landed if isinstance(each, Naming)))
    modes = {each.node: each.mode for each in landed if isinstance(each, Moding)}
    assert pending.modes_after({1: 0}, chosen) == {1: 0, **modes}
