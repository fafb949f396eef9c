"""Shards of a campaign: disjoint, whole, and the same on every machine."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model.deciding import shards
from pytest_chaos.model.deciding.shards import Shard


@given(st.integers(1, 12), st.text(max_size=20), st.text(max_size=20), st.integers(0, 10_000), st.text(max_size=9))
def test_each_run_is_of_exactly_one_shard(of: int, scenario: str, test: str, iteration: int, seed: str) -> None:
    """Whatever its names are."""
    mine = [number for number in range(1, of + 1) if Shard(number, of).has(scenario, test, iteration, seed)]
    assert len(mine) == 1


def test_shards_are_of_about_one_size_and_the_same_everywhere() -> None:
    """A hash that no process and no version of Python changes: these numbers are pinned."""
    sizes = [sum(Shard(number, 5).has("a", "t.py::t", each, "s") for each in range(1_000)) for number in range(1, 6)]
    assert sum(sizes) == 1_000
    assert min(sizes) > 150
    assert [each for each in range(40) if Shard(2, 5).has("a", "t.py::t", each, "s")] == PINNED


PINNED = [0, 9, 12, 14, 17, 21, 24, 27, 35]


@pytest.mark.parametrize("text", ["0/5", "6/5", "2", "2/", "/5", "a/b", "2/5/6", "-1/5", "1/0", "1/100000", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    """With the rule and an example."""
    with pytest.raises(UsageError, match=r"must be I/N with 1 <= I <= N <= 10,000, such as 2/5; got"):
        shards.parse(text)


def test_missing_shards_are_known() -> None:
    """Of each number of parts that is there."""
    assert shards.missing([]) == []
    assert shards.missing([Shard(1, 2), Shard(2, 2)]) == []
    assert shards.missing([Shard(2, 3), Shard(1, 2)]) == [Shard(2, 2), Shard(1, 3), Shard(3, 3)]
    assert str(Shard(2, 5)) == "2/5"
