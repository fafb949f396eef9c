"""The power of the suite: how many mutants it noticed, from the files of ``chaos mutate``."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.errors import ResultsError

from chaos_reports.beside import with_beside
from chaos_reports.figures import clip, number, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.model.campaign import MatrixSummary

FOLDER: Final = "mutation"
"""The folder of these files, beside ``sessions`` in the results folder."""
_NOTICED: Final = frozenset({"caught", "caught by time", "caught by crash"})


class _Tested(msgspec.Struct, frozen=True):
    package: str
    digest: str
    started: str


class _Mutant(msgspec.Struct, frozen=True):
    id: str
    outcome: str
    scenario: str = ""
    operator: str = ""
    module: str = ""
    function: str = ""
    line: int = 0
    signature: str = ""


class _Campaign(msgspec.Struct, frozen=True):
    header: _Tested
    missing: int
    results: list[_Mutant]


def with_power(matrix: MatrixSummary, session_folder: Path) -> MatrixSummary:
    """Return the summary with the power of the suite, and what else lies beside its sessions.

    Raises ResultsError for a file that is not of ``chaos mutate``.
    """
    results = session_folder.parent.parent if session_folder.parent.name == "sessions" else session_folder
    campaigns = _campaigns(results / FOLDER)
    found = msgspec.structs.replace(matrix, power=_sentences(campaigns), noticed=_noticed(campaigns))
    return with_beside(found, results)


def _campaigns(folder: Path) -> dict[str, list[_Campaign]]:
    """Return the parts (shards) of the newest campaign of each package."""
    found = sorted((_read(path) for path in folder.glob("mutation*.json")), key=lambda each: each.header.started)
    newest = {each.header.package: each.header.digest for each in found}
    return {
        package: [each for each in found if (each.header.package, each.header.digest) == (package, digest)]
        for package, digest in sorted(newest.items())
    }


def _noticed(campaigns: Mapping[str, Sequence[_Campaign]]) -> dict[str, tuple[str, ...]]:
    """Return, by scenario, the mutants that it noticed, each in a line."""
    mutants = {mutant.id: mutant for parts in campaigns.values() for part in parts for mutant in part.results}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in mutants.values():
        if each.scenario and each.outcome in _NOTICED:
            by = f": {clip(each.signature, 80)}" if each.signature else ""
            where = f"{each.module}:{each.function}, line {each.line}"
            found[each.scenario].append(f"{each.operator} in {clip(where, 120)}{by}")
    return {name: tuple(sorted(texts)) for name, texts in found.items()}


def _sentences(campaigns: Mapping[str, Sequence[_Campaign]]) -> tuple[str, ...]:
    """Return a sentence for each package."""
    found = []
    for package, parts in campaigns.items():
        outcomes = {mutant.id: mutant.outcome for part in parts for mutant in part.results}
        judged = [outcome for outcome in outcomes.values() if outcome != "equivalent"]
        noticed = sum(outcome in _NOTICED for outcome in judged)
        missing = sum(part.missing for part in parts)
        not_run = f", {plural(missing, 'mutant')} not run" if missing else ""
        found.append(f"power: {number(noticed)} of {number(len(judged))} ({clip(package, 60)}{not_run})")
    return tuple(found)


def _read(path: Path) -> _Campaign:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Campaign)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{path} must be a file of chaos mutate; got {error}. Remove it, or run chaos mutate again"
        raise ResultsError(msg) from error
