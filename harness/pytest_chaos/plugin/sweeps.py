"""Sweeps: a test whose plan has ``at_every_point`` is executed again, once for each place.

The first execution is the survey. If it held, the whole protocol of the test is repeated, with
fixtures of its own, so each place has a run, a report, a record and, if it did not hold, an
evidence pack with a plan that replays it alone. In a campaign each iteration takes one place, drawn
from the seed, and so does a quick form (``--chaos-quick-forms``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from pytest_chaos.plugin.runs import REPORTED, RUN

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from pytest_chaos.faults.every_point import SweepPlace
    from pytest_chaos.plugin.session import ChaosSession
    from pytest_chaos.runtime.run import Run

PLACE: Final = pytest.StashKey["SweepPlace"]()
"""The place of a sweep at which a test is executed now, in its stash."""


class Sweeps:
    """The hook that repeats a test for each place of its sweep."""

    def __init__(self, session: ChaosSession) -> None:
        """Repeat the tests of this session."""
        self._session = session
        self.wanted: Mapping[str, frozenset[str]] = {}
        """By test, the places at which alone it is repeated; ``chaos mutate`` chooses them."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Execute the test once more for each place that its survey has found."""
        result = yield
        run = item.stash.get(RUN, None)
        if run is None or PLACE in item.stash or self._session.replayed is not None:
            return result
        try:
            for place in self._places(run, self.wanted.get(item.nodeid)):
                if item.session.shouldfail or item.session.shouldstop or self._session.interrupts.came:
                    break
                item.stash[PLACE] = place
                del item.stash[RUN]
                item.stash[REPORTED] = False
                item.user_properties.clear()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        finally:
            if PLACE in item.stash:
                del item.stash[PLACE]
        return result

    def _places(self, run: Run, wanted: frozenset[str] | None) -> Sequence[SweepPlace]:
        from pytest_chaos.model.values import Verdict

        if run.conclude().verdict is not Verdict.HELD:  # it fails without a fault, and that is to be mended first
            return ()
        if self._session.config.getoption("chaos_all_points"):
            return run.sweep.places
        takes_one = self._session.settings.iterations > 1 or self._session.config.getoption("chaos_quick_forms")
        found = run.sweep.drawn if takes_one else run.sweep.sampled
        return found if wanted is None else [place for place in found if place.note()["place"] in wanted]
