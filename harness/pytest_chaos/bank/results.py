"""What was seen of an entry, against what it expects; and the document ``bank.json``.

A new key may come within a format; none changes its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from pytest_chaos.bank.entries import NotReproduced
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.bank.entries import BankEntry

FORMAT: Final = 1
Outcome: TypeAlias = Literal["shown", "not shown", "not held", "undecided", "skipped"]
"""Shown: the bug was found by name, and the mended form held. All others are not green."""


class FormResult(msgspec.Struct, frozen=True, kw_only=True):
    """One form of an entry: its verdict, the signatures that it found, and the first one's text.

    ``problem`` says why it is INCONCLUSIVE. ``coverage`` is what was explored, or the receipts of
    the faults. ``plan`` are its faults as JSON, by which both forms are compared. ``folder`` has
    its results and evidence.
    """

    form: str
    verdict: Verdict
    found: tuple[str, ...] = ()
    text: str = ""
    problem: str = ""
    coverage: str = ""
    plan: str = ""
    duration_s: float = 0.0
    folder: str = ""


class EntryResult(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was run, or skipped: its outcome, and a sentence that says why it is that."""

    name: str
    title: str
    kind: str
    reports: tuple[str, ...]
    subject: str
    promise: str
    expects: tuple[str, ...]
    outcome: Outcome
    sentence: str
    reported: FormResult | None = None
    mended: FormResult | None = None
    duration_s: float = 0.0


class BankDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a run of the bank: ``bank.json``, and what ``chaos bank run --json`` prints.

    ``verdict`` is HELD if every entry was shown, VIOLATED if one was not shown or its mended form
    did not hold, else INCONCLUSIVE. ``versions`` are those of Python, the kernel and this package.
    """

    verdict: Verdict
    seed: str
    started: str
    duration_s: float
    versions: dict[str, str]
    counts: dict[str, int]
    entries: list[EntryResult]
    format: int = FORMAT


class ListedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the bank, as ``chaos bank list --json`` prints it."""

    name: str
    title: str
    kind: str
    reports: tuple[str, ...]
    subject: str
    promise: str
    engine: str
    expects: tuple[str, ...]
    requirements: tuple[str, ...]
    read: str
    reproduced: str
    left_out: str
    mended: str
    folder: str


class BankListDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of a bank, and the reports that were not reproduced."""

    entries: list[ListedEntry]
    not_reproduced: list[NotReproduced]


def judge(entry: BankEntry, reported: FormResult, mended: FormResult) -> tuple[Outcome, str]:
    """Return the outcome of an entry whose two forms were run, and the sentence for it."""
    if reported.verdict is Verdict.INCONCLUSIVE:
        return "undecided", f"the reported form could not be judged: {reported.problem}"
    seen = ", ".join(reported.found) or "nothing"
    if missing := [each for each in entry.expects if each not in reported.found]:
        return "not shown", f"the reported form must show {', '.join(missing)}; got {seen}"
    if others := [each for each in reported.found if each not in {*entry.expects, *entry.allows}]:
        return "not shown", f"the reported form shows {', '.join(others)}, too, which the entry does not expect"
    if mended.verdict is Verdict.INCONCLUSIVE:
        return "undecided", f"the mended form could not be judged: {mended.problem}"
    if mended.verdict is Verdict.VIOLATED:
        return "not held", f"the mended form must hold; got {', '.join(mended.found)}: {mended.text}"
    if reported.plan != mended.plan:
        return "undecided", "both forms must run under the same plan; they planned other faults"
    return "shown", f"{seen} was found, and the mended form held"


def result_of(entry: BankEntry, reported: FormResult, mended: FormResult) -> EntryResult:
    """Return the result of an entry whose two forms were run."""
    outcome, sentence = judge(entry, reported, mended)
    duration_s = round(reported.duration_s + mended.duration_s, 3)
    return _result(entry, outcome, sentence, reported=reported, mended=mended, duration_s=duration_s)


def not_run(entry: BankEntry, outcome: Outcome, sentence: str) -> EntryResult:
    """Return the result of an entry that was skipped, or could not be run."""
    return _result(entry, outcome, sentence)


def _result(
    entry: BankEntry, outcome: Outcome, sentence: str, *, reported: FormResult | None = None,
    mended: FormResult | None = None, duration_s: float = 0.0,
) -> EntryResult:  # fmt: skip
    return EntryResult(
        name=entry.name, title=entry.title, kind=entry.kind, reports=entry.reports, subject=entry.subject,
        promise=entry.promise, expects=entry.expects, outcome=outcome, sentence=sentence, reported=reported,
        mended=mended, duration_s=duration_s,
    )  # fmt: skip


def verdict_of(results: Iterable[EntryResult]) -> Verdict:
    """Return the verdict of a bank: the worst outcome. Nothing run is INCONCLUSIVE."""
    verdicts = {
        "shown": Verdict.HELD,
        "not shown": Verdict.VIOLATED,
        "not held": Verdict.VIOLATED,
        "undecided": Verdict.INCONCLUSIVE,
        "skipped": Verdict.INCONCLUSIVE,
    }
    return Verdict.worst(verdicts[each.outcome] for each in results)


def listed(entry: BankEntry) -> ListedEntry:
    """Return an entry as the list shows it."""
    names = [name for name in ListedEntry.__struct_fields__ if name != "folder"]
    return ListedEntry(folder=str(entry.folder), **{name: getattr(entry, name) for name in names})
