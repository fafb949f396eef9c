"""How a run that did not hold fails its test: by words of its own, and without a traceback of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _pytest.outcomes import Failed  # pytest.fail.Exception, by the name under which it can be a base class

if TYPE_CHECKING:
    from harness.model import RunRecord


class Violated(Failed):
    """A run was VIOLATED though the test's own code raised nothing."""


class Inconclusive(Failed):
    """A run came to no answer: a fault did not fire, nothing was asserted, or the harness itself failed."""


def raise_unless_held(record: RunRecord) -> None:
    """Raise Violated or Inconclusive, with the reason, for a run that is one."""
    from harness.model import Verdict
    from harness.run import reason

    if record.verdict is Verdict.VIOLATED:
        raise Violated(reason(record), pytrace=False)
    if record.verdict is Verdict.INCONCLUSIVE:
        raise Inconclusive(reason(record), pytrace=False)
