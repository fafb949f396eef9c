"""The order of the tests of a mutant: first the likeliest to notice it, for its cost. Pure.

A test that has noticed a mutant of the same function, or of the same module, is likely to notice
another one, and so is one that reaches much of the module. Variants of one test see much the same,
so the first of each test comes before the second of any.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_chaos.mutate.clean import CleanTest
    from pytest_chaos.mutate.mutants import Mutant
    from pytest_chaos.mutate.results import MutantResult

_OVERHEAD_S: Final = 0.2
"""What a test costs beside its own time: its part of the start of agents' interpreters."""
_LEAST: Final = 0.05
"""What is to be hoped of any test that reaches the statement."""
_FUNCTION, _MODULE, _ANY = 30.0, 5.0, 0.5
"""What one mutant, noticed in the same function, the same module, or anywhere, is worth."""


class Kills:
    """Which tests have noticed mutants so far, and where these were.

    >>> Kills().of("tests/test_shop.py::test_sell[1]", "shop", "sell")
    0.0
    """

    def __init__(self) -> None:
        self._functions: Counter[tuple[str, str, str]] = Counter()
        self._modules: Counter[tuple[str, str]] = Counter()
        self._tests: Counter[str] = Counter()

    def add(self, result: MutantResult) -> None:
        """Count a mutant that was noticed."""
        if result.test:
            self._functions[result.test, result.module, result.function] += 1
            self._modules[result.test, result.module] += 1
            self._tests[result.test] += 1

    def of(self, test: str, module: str, function: str) -> float:
        """Return what is to be hoped of a test for a mutant of this function."""
        here = _FUNCTION * self._functions[test, module, function] + _MODULE * self._modules[test, module]
        return here + _ANY * self._tests[test]


def ordered(
    mutant: Mutant, tests: Iterable[CleanTest], kills: Kills, shares: Mapping[str, float] | None = None
) -> list[CleanTest]:
    """Return the tests in the order in which they are run against a mutant.

    ``shares`` has the share of the mutant's module that each test reaches.
    """

    def hope(test: CleanTest) -> float:
        known = kills.of(test.name, mutant.module, mutant.function)
        share = 1.0 if shares is None else shares.get(test.name, 0.0) ** 2
        return (_LEAST + share + known) / (test.whole_s + _OVERHEAD_S)

    best = sorted(tests, key=lambda test: (-hope(test), test.name))
    seen: Counter[str] = Counter()
    ranks = {}
    for test in best:
        name = test.name.partition("[")[0]
        ranks[test.name] = seen[name]
        seen[name] += 1
    return sorted(best, key=lambda test: -hope(test) / (1 + ranks[test.name]))


def within(tests: Sequence[CleanTest], time_s: float | None) -> list[CleanTest]:
    """Return the first tests, one at least, that take no longer than this without a mutant."""
    kept: list[CleanTest] = []
    left = time_s
    for test in tests:
        cost = test.whole_s + _OVERHEAD_S
        if left is not None and kept and cost > left:
            continue
        kept.append(test)
        left = left - cost if left is not None else None
    return kept
