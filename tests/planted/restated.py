"""A planted defect that is one statement of the store: the part that has it says it otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def restate(module: ModuleType, old: str, new: str, *names: str) -> None:
    """Write ``new`` for ``old`` in the statements of these names, in this process.

    Each must have it, and a table of statements in each of its entries. A statement that was
    restated stays so.
    """
    for name in names:
        statement = getattr(module, name)
        if isinstance(statement, dict):
            setattr(module, name, {key: _restated(text, old, new) for key, text in statement.items()})
        else:
            setattr(module, name, _restated(statement, old, new))


def _restated(statement: str, old: str, new: str) -> str:
    assert old in statement or new in statement, f"{old} is not in {statement}"
    return statement.replace(old, new)
