"""Logs: the line that must not be there is found, and a check that looks at nothing is refused."""

from __future__ import annotations

import pytest
from pytest_chaos import History, Mark
from pytest_chaos.checkers.liveness import eventually
from pytest_chaos.checkers.logs import log_pattern
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import MarkKind


def test_a_line_of_any_log_is_found() -> None:
    """The finding names log, line and text; other lines are left alone."""
    (finding,) = log_pattern("panic", {"a": "fine\n", "b": "fine\na panic here\n"})
    assert (finding.signature, finding.text) == ("logs:pattern", "1 lines match 'panic': b:2: a panic here")
    assert log_pattern("panic", {"a": "fine\n"}) == ()


@pytest.mark.parametrize(
    ("pattern", "logs", "text"), [("(", {"a": ""}, "regular expression"), ("a", {}, "at least one")]
)
def test_a_check_that_looks_at_nothing_is_refused(pattern: str, logs: dict[str, str], text: str) -> None:
    """A malformed pattern, and no log at all, are mistakes."""
    with pytest.raises(UsageError, match=text):
        log_pattern(pattern, logs)


def test_what_must_become_so_has_to_after_the_heal() -> None:
    """Values before the heal do not count, later ones do."""
    marks = tuple(
        Mark(kind=MarkKind.ACK, operation="leader", value=value, order=nth) for nth, value in enumerate("a.b")
    )
    assert eventually(History(marks), "leader", lambda value: value == "b", healed=1) == ()
    (finding,) = eventually(History(marks), "leader", lambda value: value == "a", healed=1)
    assert finding.text.endswith("(mark 1): the last of 2 was 'b'")
    (finding,) = eventually(History(marks), "leader", bool, healed=3)
    assert (finding.signature, finding.kind) == ("liveness:never", "liveness")
