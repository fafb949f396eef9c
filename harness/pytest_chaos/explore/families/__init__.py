"""The four families of states, each a module with the interface ``FamilyModule``.

    crash     the process dies at each durable step
    recovery  the restart after a crash dies at each of its own steps
    power     the power fails at each moment
    io        each step fails with each error that it may meet

To add a family, write such a module, and name it in ``report.Family`` and in ``FAMILIES``. Options,
texts, results and evidence follow from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pytest_chaos.explore.families import crash, io, power, recovery
from pytest_chaos.explore.report import Family

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.report import FamilyResult
    from pytest_chaos.explore.session import Collector


class FamilyModule(Protocol):
    """The interface of a family: explore its states, build one again, describe the coverage."""

    @property
    def TITLE(self) -> str:  # noqa: N802 - a constant of the module
        """The key assertion of the report, about a target without a finding in this family."""

    def explore(self, recorded: Recorded, found: Collector) -> None:
        """Build states from the recording and have them judged until the time is over."""

    def rebuild(self, recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
        """Build the state of a code again; None if the recording has no such state.

        Raises ValueError or UsageError for a malformed code.
        """

    def coverage(self, result: FamilyResult) -> str:
        """Return the coverage in words: ``122 of 122 crash points``."""


FAMILIES: Final[Mapping[Family, FamilyModule]] = {
    Family.CRASH: crash,
    Family.RECOVERY: recovery,
    Family.POWER: power,
    Family.IO: io,
}
