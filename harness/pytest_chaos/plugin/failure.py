"""The text of a failure, without frames of our modules and without secrets.

All that pytest writes of a chaos test comes from its report (the terminal, JUnit XML, other
plugins), so both are done once, where the report is made.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import ChaosError
from pytest_chaos.evidence.redact import redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_chaos.evidence.redact import Redactor

_OURS: Final = "pytest_chaos"


def hide_own_frames(error: BaseException) -> None:
    """Have pytest leave out the frames of our modules, in this exception and in its causes.

    ``--full-trace`` shows them. What we have put into a sentence is left out with its cause.
    """
    for each in _chain(error):
        if isinstance(each, ChaosError) and each.__cause__ is not None:
            each.__cause__, each.__suppress_context__ = None, True
        trace = each.__traceback__
        while trace is not None:
            names = trace.tb_frame.f_globals
            if str(names.get("__name__", "")).partition(".")[0] == _OURS:
                names["__tracebackhide__"] = True
            trace = trace.tb_next


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def redact_report(report: pytest.TestReport) -> None:
    """Mask the secrets in the text of a failure, and in the captured output."""
    mask = redactor()
    report.longrepr = _masked(report.longrepr, mask, set())
    report.sections[:] = [(title, mask.text(content)) for title, content in report.sections]


def _masked(value: Any, mask: Redactor, seen: set[int]) -> Any:
    """Return a text with its secrets masked; an object of pytest's is changed in place."""
    match value:
        case str():
            return mask.text(value)
        case list() if all(isinstance(item, str) for item in value):
            return mask.lines(value)
        case list() | tuple():
            return type(value)(_masked(item, mask, seen) for item in value)
    if id(value) not in seen and type(value).__module__.startswith("_pytest."):
        seen.add(id(value))
        names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else vars(value)
        for name in [name for name in names if name not in _NO_WORDS]:
            setattr(value, name, _masked(getattr(value, name), mask, seen))
    return value


_NO_WORDS: Final = frozenset({"path", "lineno", "style"})
"""Fields of pytest's objects that are not masked: the place of a frame, and its style."""
