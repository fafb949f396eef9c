"""``mutants.toml``: the mutants that change nothing that matters, each with a reason. Reviewed.

    [[equivalent]]
    id = "1f0a8bb2c3"
    operator = "drop-raise"
    function = "mypackage.store:Store.close"
    source = "raise ClosedError"
    reason = "closing twice is refused by sqlite3 itself, with the same error"

The id stands for operator, function and changed source; the three are there for the reader, and
checked, since a mistyped id would silently excuse nothing.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.mutate.mutants import Mutant

FILE_NAME: Final = "mutants.toml"


class Equivalent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mutant that cannot be noticed, and why."""

    id: str
    operator: str
    function: str
    source: str = ""
    reason: str


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    equivalent: list[Equivalent] = []


def read(path: Path) -> dict[str, Equivalent]:
    """Return the equivalent mutants by id. Raises UsageError with what is wrong in the file."""
    try:
        content: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        found = msgspec.convert(content, _File).equivalent
    except (OSError, ValueError, msgspec.ValidationError) as error:
        msg = f"{path} must be a TOML file with tables [[equivalent]]; got {error}. Mend it, or name another file"
        raise UsageError(msg) from error
    for each in found:
        if len(each.reason.split()) < _WORDS_MIN:
            msg = (
                f"the reason of {each.id} in {path} must be a sentence; got {each.reason!r}. Say why nobody can notice"
            )
            raise UsageError(msg)
    return {each.id: each for each in found}


_WORDS_MIN: Final = 3


def stale(known: Mapping[str, Equivalent], mutants: Mapping[str, Mutant]) -> list[str]:
    """Return a sentence for each entry that fits no mutant: the code has changed, or a mistake."""
    found = []
    for each in known.values():
        mutant = mutants.get(each.id)
        if mutant is None:
            found.append(f"{each.id} ({each.function}) is no mutant any more: review it, and remove it")
        elif (each.operator, each.function) != (mutant.operator, mutant.place):
            found.append(f"{each.id} is {mutant.operator} in {mutant.place}, not {each.operator} in {each.function}")
    return found
