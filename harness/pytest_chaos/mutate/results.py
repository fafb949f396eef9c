"""The results of a campaign: one file that grows by a line a mutant, and its sums. A contract.

``mutation.jsonl`` begins with a :class:`CampaignHeader`; each further line is a
:class:`MutantResult`. The last line with an id counts. ``mutation.json`` is the whole in one
document, :class:`PowerDocument`. A new key comes within format 1; none changes its meaning.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from pytest_chaos.errors import ResultsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT: Final = 1

Outcome: TypeAlias = Literal[
    "caught", "caught by time", "caught by crash", "survived", "not reached", "equivalent", "inconclusive", "error"
]
NOTICED: Final = frozenset({"caught", "caught by time", "caught by crash"})


class CampaignHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What was mutated, and with which tests. ``digest`` is that of the package's source.

    ``selected`` are the ids of the mutants that the campaign is about: it may have results of more.
    """

    package: str
    arguments: tuple[str, ...]
    digest: str
    seed: str
    python: str
    started: str
    mutants: int
    shard: str = ""
    selected: tuple[str, ...] = ()
    format: int = FORMAT


class MutantResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one mutant.

    ``scenario`` and ``test`` noticed it, by the finding ``signature`` with ``text``. ``tests`` is
    how many tests were begun, of ``reaching`` that reach the statement. ``reason`` is why it is
    equivalent.
    """

    id: str
    operator: str
    module: str
    function: str
    line: int
    diff: str
    outcome: Outcome
    scenario: str = ""
    test: str = ""
    signature: str = ""
    text: str = ""
    tests: int = 0
    reaching: int = 0
    duration_s: float = 0.0
    reason: str = ""


class PowerDocument(msgspec.Struct, frozen=True, kw_only=True):
    """All results of a campaign. ``noticed`` of ``judged`` is the power of the suite.

    ``judged`` are all but the equivalent ones; ``noticed`` those caught, by a finding or by time.
    ``missing`` mutants have not been run yet.
    """

    header: CampaignHeader
    noticed: int
    judged: int
    missing: int
    counts: dict[str, int]
    results: list[MutantResult]
    format: int = FORMAT


def document(header: CampaignHeader, results: Iterable[MutantResult]) -> PowerDocument:
    """Return the document of the results that the campaign is about."""
    selected = set(header.selected)
    counted = [each for each in results if not selected or each.id in selected]
    found = sorted(counted, key=lambda each: (each.module, each.line, each.id))
    counts: dict[str, int] = {}
    for each in found:
        counts[each.outcome] = counts.get(each.outcome, 0) + 1
    return PowerDocument(
        header=header,
        noticed=sum(counts.get(outcome, 0) for outcome in NOTICED),
        judged=len(found) - counts.get("equivalent", 0),
        missing=max(0, header.mutants - len(found)),
        counts=counts,
        results=found,
    )


def power(noticed: int, judged: int) -> str:
    """Return the power as it is shown.

    >>> power(231, 240)
    '231 of 240'
    """
    return f"{noticed:,} of {judged:,}"


class ResultsFile:
    """The growing file. A line is whole or missing, whatever ends the campaign."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[CampaignHeader | None, dict[str, MutantResult]]:
        """Return the header and the results by id; None and nothing if there is no such file."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None, {}
        except OSError as error:
            msg = f"{self.path} must be a file that can be read; got {error}. Name another folder with --results"
            raise ResultsError(msg) from error
        whole = [line for line in lines[:-1] if line]  # the last one may have been cut
        try:
            header = msgspec.json.decode(whole[0], type=CampaignHeader) if whole else None
            results = [msgspec.json.decode(line, type=MutantResult) for line in whole[1:]]
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            msg = f"{self.path} must have the results of chaos mutate; got {error}. Remove it, or begin with --fresh"
            raise ResultsError(msg) from error
        return header, {each.id: each for each in results}

    def begin(self, header: CampaignHeader, results: Mapping[str, MutantResult]) -> None:
        """Write the file anew, with the results that still count."""
        lines = [msgspec.json.encode(each) for each in (header, *results.values())]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(".new")
            with new.open("wb") as file:
                file.write(b"\n".join(lines) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            msg = f"{self.path} must be a file that can be written; got {error}. Name another folder with --results"
            raise ResultsError(msg) from error

    def add(self, result: MutantResult) -> None:
        """Append one result, in one write."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")
            file.flush()
            os.fsync(file.fileno())
