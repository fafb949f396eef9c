"""What all parts of the model share: moments, refusals, outcomes, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome: TypeAlias = dict[str, Any]
Tables: TypeAlias = dict[str, dict[Any, dict[str, Any]]]

SECOND: Final = 1_000_000


class Moment(NamedTuple):
    """A moment, by the wall clock that rows keep and by the monotonic clock that owners trust."""

    now: int
    monotonic: int


class Refused(Exception):  # noqa: N818 - the core's word
    """The operation changes nothing; its text is the name of the core's error."""

    def __init__(self, error: str) -> None:
        """Keep the name."""
        super().__init__(error)


class Holding(str):
    """What a text must hold: equal to any text with all of these parts."""

    __slots__ = ("parts",)
    parts: tuple[str, ...]

    def __new__(cls, *parts: object) -> Self:
        """Keep the parts; the text shows them."""
        texts = tuple(str(part) for part in parts)
        found = super().__new__(cls, " ... ".join(texts))
        found.parts = texts
        return found

    def __eq__(self, other: object) -> bool:
        """Tell whether the other text has all parts."""
        return isinstance(other, str) and all(part in other for part in self.parts)

    def __ne__(self, other: object) -> bool:
        """Tell whether a part is missing."""
        return not self == other

    __hash__ = str.__hash__


class Model:
    """A state, and the operations that change it."""

    def do(self, operation: str, moment: Moment, arguments: Mapping[str, Any]) -> Outcome:
        """Do one operation; return its outcome."""
        try:
            outcome: Outcome | None = getattr(self, operation)(moment, **arguments)
        except Refused as refusal:
            return {"refused": str(refusal)}
        return outcome or {}

    def parts(self, operation: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return what an operation may have done whose agent was killed: all, or a part of it."""
        assert operation
        return [arguments]

    def bad(self, _: Moment, call: str, error: str, **arguments: Any) -> Outcome:
        """Refuse what no core may accept: each error changes nothing."""
        assert call
        assert arguments
        raise Refused(error)

    def tables(self) -> Tables:
        """Return the rows that the tables must have, by table and key."""
        raise NotImplementedError


def us(duration_s: float) -> int:
    """Return a duration in microseconds."""
    return round(duration_s * SECOND)


FOLLOWS: Final[Mapping[str, frozenset[str]]] = {
    "created": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelled"}),
}
"""The statuses that may follow a task's; the others are terminal."""
