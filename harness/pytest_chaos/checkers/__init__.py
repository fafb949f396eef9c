"""Checkers: pure functions from the history of a run to findings.

A checker gets a :class:`~pytest_chaos.model.history.History` and, as plain values, observations
made afterwards: keys in a database, numbers of checkpoints, effects counted at a receiver. It does
no I/O, so an evidence pack can be judged again years later. It returns findings; none means that
the invariant held *as far as the history shows*. Keys are plain (``str | int``).

    durability     nothing acknowledged is lost, nothing is invented, nothing is half there
    exactly_once   an effect happens once, however often its agent dies
    ownership      one holder at a time; fencing tokens rise; a stale token writes nothing
    liveness       after the faults are healed, progress resumes within a bound
    coverage       crash points that no run reached, claims that held in no run
    linearizability  an order of all operations that a model allows, or the proof that there is none
    isolation      transactions in no order, by anomaly: lost update, write skew, stale read
    logs           a line that must never be in a log
    snapshots     reads of several objects: a bank's total, long forks, comments, sequences
    elements       what became of each value of a set, a queue, a counter, of each id

The three-valued truth is Jepsen's and porcupine's: an operation without an ack is unknown and may
be found done or not done, and a checker that raises has decided nothing (:func:`run_checkers`).
Findings with one ``signature`` have one cause, ``durability:acknowledged-lost``. Their particulars
are in ``text``, where a list shows its first ten entries: one bug may touch every key of a run.

``model`` is all that this room imports; ``runtime`` and tests import it.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from pytest_chaos.model.values import Finding, FindingKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pytest_chaos.model.history import History

LISTED_MAX: Final = 10

TIME_IS_UP: Final[ContextVar[Callable[[], bool]]] = ContextVar("TIME_IS_UP", default=lambda: False)
"""What a search asks from time to time. The caller sets it: a checker has no clock of its own."""

Name = TypeVar("Name")

_CHARACTERS_MAX: Final = 80


def listed(values: Collection[object]) -> str:
    """Return ``1, 'two', 3``; after ten values ``..., 10 and 32 more``; long ones are cut."""
    shown = [_short(value) for value in itertools.islice(values, LISTED_MAX)]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def counts(times: Mapping[Name, int]) -> list[object]:
    """Return entries of a list that read ``7: 2``: keys and how often each was seen."""
    return [Bare(f"{key!r}: {count}") for key, count in times.items()]


def findings_of(
    signature: str, text: str, items: Collection[object], *, kind: FindingKind = "safety", orders: Iterable[int] = ()
) -> tuple[Finding, ...]:
    """Return a finding that lists the items after its text, or nothing where there are none."""
    if not items:
        return ()
    return (Finding(signature=signature, text=f"{text}: {listed(items)}", kind=kind, orders=tuple(orders)),)


def undecided_if_torn(history: History, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings about a missing intent; undecided with torn lines, which may have been it."""
    if not history.torn:
        return tuple(findings)
    torn = f"but {len(history.torn)} lines of the mark file cannot be read and may have said so"
    return tuple(
        Finding(signature=f"{finding.signature}-or-torn", text=f"{finding.text}; {torn}", kind="harness")
        for finding in findings
    )


class Bare(str):
    """Text that a list shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _CHARACTERS_MAX else f"{text[: _CHARACTERS_MAX - 3]}..."


class Checker(Protocol):
    """A callable from a history to findings: a function, a partial, or a user's object."""

    def __call__(self, history: History, /) -> Iterable[Finding]:
        """Judge the history. Raising means that nothing could be decided."""


def run_checkers(
    checkers: Iterable[Checker], history: History, *, is_over: Callable[[], bool] = lambda: False
) -> tuple[Finding, ...]:
    """Run every checker and return all findings, each with the name of its checker.

    A checker that raises, or returns something else than findings, becomes a finding of kind
    ``harness``: the run is INCONCLUSIVE, and the other checkers run all the same. Checkers that
    search ask ``is_over`` from time to time, and are undecided when it says so.
    """
    before = TIME_IS_UP.set(is_over)
    try:
        return tuple(finding for checker in checkers for finding in _run(checker, history))
    finally:
        TIME_IS_UP.reset(before)


def checker_name(checker: Callable[..., object]) -> str:
    """Return the name that findings give their checker: ``durability.acknowledged_present``."""
    inner: object = checker
    while isinstance(inner, partial):
        inner = inner.func
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    module = getattr(inner, "__module__", "").rpartition(".")[2]
    return f"{module}.{name}" if module else name


def _run(checker: Checker, history: History) -> list[Finding]:
    name = checker_name(checker)
    try:
        found = list(checker(history))
        return [_named(finding, name) for finding in found]
    except Exception as error:  # noqa: BLE001 - a checker is the user's code; whatever it raises decides nothing
        text = f"the checker {name} raised {type(error).__name__}: {error}; correct it, then judge the run again"
        return [Finding(signature="harness:checker-raised", text=text, kind="harness", checker=name)]


def _named(finding: object, name: str) -> Finding:
    if not isinstance(finding, Finding):
        msg = f"expected findings, got {type(finding).__name__} ({finding!r})"
        raise TypeError(msg)
    return finding if finding.checker else msgspec.structs.replace(finding, checker=name)
