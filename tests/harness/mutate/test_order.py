"""The order in which tests are run against a mutant."""

from __future__ import annotations

from unittest import mock

import msgspec
import pytest
from pytest_chaos.mutate.campaign import Campaign
from pytest_chaos.mutate.clean import CleanRun, CleanTest
from pytest_chaos.mutate.mutants import mutants_of
from pytest_chaos.mutate.order import Kills, ordered, within
from pytest_chaos.mutate.results import MutantResult
from pytest_chaos.mutate.runner import PytestCommand

(MUTANT,) = mutants_of("shop", "def sell(stock):\n    return stock < 3\n")


def timed(name: str, duration_s: float) -> CleanTest:
    """Return a test."""
    return CleanTest(name=name, path="test_shop.py", is_scenario=True, duration_s=duration_s, reached=frozenset())


TESTS = [timed("quick[1]", 0.1), timed("quick[2]", 0.1), timed("middle", 0.3), timed("slow", 9.0)]


def names(kills: Kills) -> list[str]:
    """Return the names of the tests in their order."""
    return [each.name for each in ordered(MUTANT, TESTS, kills)]


def test_quick_tests_come_first_and_variants_behind_others() -> None:
    """Without results the quickest test is first; a variant of it is behind a quick other test."""
    assert names(Kills()) == ["quick[1]", "middle", "quick[2]", "slow"]


def test_what_has_noticed_a_mutant_of_the_same_function_comes_first() -> None:
    """A slow test that has noticed a mutant of this function goes before the quick ones."""
    kills = Kills()
    fields = {name: getattr(MUTANT, name) for name in ("id", "operator", "module", "function", "line", "diff")}
    result = MutantResult(**fields, outcome="caught", test="slow")

    for _ in range(3):
        kills.add(msgspec.structs.replace(result, function="another"))
    assert names(kills)[0] == "quick[1]"
    kills.add(result)
    assert names(kills)[0] == "slow"


def test_a_bound_of_time_leaves_out_what_does_not_fit() -> None:
    """Tests that do not fit are passed over; the first is always run."""
    assert [each.name for each in within(TESTS, 0.9)] == ["quick[1]", "quick[2]"]
    assert [each.name for each in within(TESTS[::-1], 0.1)] == ["slow"]
    assert within(TESTS, None) == TESTS


def test_what_reaches_much_of_the_module_comes_first() -> None:
    """A test that reaches all of the module goes before a quicker one that reaches little."""
    shares = {"quick[1]": 0.1, "quick[2]": 0.1, "middle": 1.0, "slow": 0.5}
    assert next(each.name for each in ordered(MUTANT, TESTS, Kills(), shares)) == "middle"


@pytest.mark.parametrize(("reaching", "looks"), [(2, 2), (1, 1)])
def test_a_survivor_of_a_part_of_its_tests_gets_a_second_look(reaching: int, looks: int) -> None:
    """What has survived one of two tests is run once more; what has survived all is not."""
    clean = CleanRun(tests=(), arguments=(), given=(), preload=(), sources=(), offsets={}, functions={})
    campaign = Campaign("shop", [], clean, PytestCommand(()), seed="one", equivalent={})
    fields = {name: getattr(MUTANT, name) for name in ("id", "operator", "module", "function", "line", "diff")}
    survived = MutantResult(**fields, outcome="survived", tests=1, reaching=reaching)
    seen: list[MutantResult] = []

    with mock.patch.object(campaign, "run_one", return_value=survived):
        assert campaign.run_all([MUTANT], seen.append)

    assert len(seen) == looks
