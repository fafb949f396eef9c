"""What a check notices: the outcome of each damage, in words and for JSON. Pure."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.doubt.damages import DamageKind

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN_MAX: Final = 20


class DamageOutcome(enum.StrEnum):
    """What became of a damage. The last three are not counted."""

    NOTICED = "noticed"
    LET_PASS = "let pass"  # noqa: S105 - no password
    EQUIVALENT = "equivalent"
    """It changes no state that the program can leave, or only such as promise less."""
    TEMPORARY = "temporary"
    """It changes only files that the run itself removes, and the check found nothing."""
    UNDECIDED = "undecided"
    """The time was over, or the check broke."""


class DoubtedDamage(msgspec.Struct, frozen=True, kw_only=True):
    """A damage and its outcome.

    ``what`` the program would do, at which ``line`` of it and which step (``at``); ``states`` are
    those that only the damaged program leaves, of which ``judged`` were judged. ``said`` is what
    the check said; of a damage that passed, ``state`` is an example, ``differs`` says in what, and
    ``advice`` what to assert.
    """

    kind: str
    what: str
    line: str
    at: str
    outcome: str
    states: int = 0
    judged: int = 0
    said: str = ""
    state: str = ""
    differs: str = ""
    advice: str = ""


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """What a check notices: ``noticed`` of ``counted`` damages. It is no verdict of the program."""

    noticed: int
    counted: int
    equivalent: int
    temporary: int
    undecided: int
    damages: tuple[DoubtedDamage, ...]

    @property
    def share(self) -> float:
        """The share that is noticed; 1 if nothing is counted."""
        return self.noticed / self.counted if self.counted else 1.0

    @property
    def summary(self) -> str:
        """The result in one line."""
        rest = [
            f"{count:,} {word}"
            for count, word in (
                (self.equivalent, "equivalent"),
                (self.temporary, "only in temporary files"),
                (self.undecided, "undecided"),
            )
            if count
        ]
        more = f" (not counted: {', '.join(rest)})" if rest else ""
        if not self.counted:
            return f"there is no damage that your check could notice{more}"
        return f"your check notices {self.noticed:,} of {self.counted:,} damages{more}"

    def lines(self) -> Iterator[str]:
        """Yield the result for a terminal: what passed, by line of the program, and what to do."""
        yield f"doubt: {self.summary}"
        passed = [each for each in self.damages if each.outcome == DamageOutcome.LET_PASS]
        alike = Counter((each.line, each.kind) for each in passed if each.line)
        firsts = {(each.line or each.what, each.kind): each for each in reversed(passed)}
        shown = list(reversed(firsts.values()))
        for each in shown[:_SHOWN_MAX]:
            where = f"{each.line}: " if each.line else ""
            count = alike[(each.line, each.kind)]
            yield f"  let pass: {where}a program that {each.what}{f' (and {count - 1} more)' if count > 1 else ''}"
            yield f"    then {each.state}: {each.differs or 'the marks promise more'}"
            yield f"    assert {each.advice}"
        if len(shown) > _SHOWN_MAX:
            yield f"  and {len(shown) - _SHOWN_MAX:,} more, which the JSON has"
        for each in self.damages:
            if each.outcome == DamageOutcome.UNDECIDED and each.said:
                yield f"  undecided: a program that {each.what}: {each.said}"
                break


_ADVICE: Final = {
    DamageKind.NOTHING: "of each acknowledged operation that what it made is there",
    DamageKind.NO_SYNCS: "of each acknowledged operation that what it made is there, whole",
    DamageKind.NO_SYNC: "that what is acknowledged is there, whole: a loss of power must not take it",
    DamageKind.EARLY_ACK: "that what is acknowledged is there: here the mark comes before the change",
    DamageKind.EARLY_RENAME: "that {path}, if it is there, is whole",
    DamageKind.SWAPPED: "what must hold between the two changes, whichever is there first",
    DamageKind.NO_WRITE: "what {path} has in it, not only that it is there",
    DamageKind.HALF_WRITE: "that {path} is whole: compare what is in it, or its length",
    DamageKind.NO_NAME: "that {path} is there, or gone, as the marks say",
}
_NO_PROMISE: Final = "; no mark comes before it, so let the program acknowledge what must not be lost"


def advice(kind: DamageKind, path: str, marks: int) -> str:
    """Return what to assert so that a damage is noticed."""
    return _ADVICE[kind].format(path=path or "the file") + ("" if marks else _NO_PROMISE)
