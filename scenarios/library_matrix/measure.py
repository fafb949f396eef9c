"""The measured cells of the library matrix: one ``chaos explore`` for each."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pytest_chaos.errors import UsageError
from pytest_chaos.explore.target import load_subject

from scenarios.library_matrix.rows import CELLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scenarios.library_matrix.rows import Row

MEASURED: Final = Path(__file__).parents[1] / "targets" / "measured.json"
ROOT: Final = Path(__file__).parents[2]
NOTHING: Final = "not explored"
"""The verdict of a cell in which there was nothing to explore; its coverage says why."""
_FINDINGS_MAX: Final = 4
_TEXT_MAX: Final = 240
_SCRATCH: Final = re.compile(r"/\S*?pytest-chaos-\S*?/(?:state-\d+|work|run-\d+)/")
"""The folder of a state, which has another name each time."""
BUDGET_S: Final = 120
"""The time of one cell, by default."""
_FAULTS: Final = {
    "crash": "--faults crash --schedules 1",
    "recovery": "--faults recovery --recoveries 6 --schedules 1",
    "ext4": "--faults power --model ext4 --samples {samples} --schedules 1",
    "strict": "--faults power --model strict --samples {samples} --schedules 1",
    "io": "--faults io --io-runs 60 --schedules 1",
    "schedules": "--faults crash --schedules 4",
}


class Found(msgspec.Struct, frozen=True):
    """A finding: ``label`` says whether it is confirmed or modelled, ``again`` shows it alone."""

    signature: str
    text: str
    label: str = ""
    states: int = 0
    state: str = ""
    at: str = ""
    again: str = ""


class Cell(msgspec.Struct, frozen=True):
    """What came out of an exploration. ``confirmed`` counts real kills or runs that agreed."""

    verdict: str
    coverage: str
    command: str
    confirmed: int = 0
    findings: tuple[Found, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def signatures(self) -> frozenset[str]:
        """Return the signatures of the findings."""
        return frozenset(found.signature for found in self.findings)


class Measured(msgspec.Struct, frozen=True):
    """A row as it was measured: versions, the day, and its cells."""

    versions: dict[str, str]
    day: str
    where: str
    cells: dict[str, Cell]


def read_measured(path: Path = MEASURED) -> dict[str, Measured]:
    """Return what was measured, by row. Raises UsageError for a damaged file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Measured]) if path.exists() else {}
    except msgspec.DecodeError as error:
        msg = f"{path.name} must be what the library matrix has measured; got: {error}. Measure again, or restore it"
        raise UsageError(msg) from error


def write_measured(measured: dict[str, Measured], path: Path = MEASURED) -> None:
    """Write what was measured, so that a change of a cell is a change of few lines."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")


def missing(row: Row) -> str:
    """Return what is not installed here, or nothing."""
    target: Any = load_subject(row.target)._target  # noqa: SLF001 - what an adapter says of itself
    return str(getattr(target, "missing", str)())


def versions(row: Row) -> dict[str, str]:
    """Return the versions of what is explored."""
    found = {name: importlib.metadata.version(name) for name in row.distributions}
    for command in row.programs:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        found[command[0].rpartition("/")[2]] = (said.stdout + said.stderr).strip().partition("\n")[0][:80]
    if row.sqlite:
        found["SQLite"] = sqlite3.sqlite_version
    return found or {"Python": platform.python_version()}


def command_of(row: Row, cell: str) -> str:
    """Return the command that explores a cell."""
    faults = _FAULTS[cell].format(samples=row.samples)
    return f"chaos explore {shlex.quote(row.target_of(cell))} --seed 1 {faults}"


def cells_of(row: Row) -> Iterator[str]:
    """Yield the cells that are explored."""
    return (cell for cell in CELLS if cell not in row.unexplored and row.target_of(cell))


def measure_cell(row: Row, cell: str, *, jobs: int = 2, budget_s: float = BUDGET_S) -> Cell:
    """Explore a cell for at most ``budget_s`` seconds.

    Raises UsageError if the exploration could not begin.
    """
    command = command_of(row, cell)
    with tempfile.TemporaryDirectory(prefix="library-matrix-") as folder:
        result = Path(folder, "result.json")
        words = [str(Path(sys.executable).with_name("chaos")), *shlex.split(command)[1:], "--jobs", str(jobs)]
        words += ["--check-timeout", "60s", "--budget", f"{budget_s:g}s", "--json", str(result), "--results", folder]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if not result.exists():
            msg = f"{command} must explore; got exit code {done.returncode}: {done.stderr.strip()[-300:]}. Run it alone"
            raise UsageError(msg)
        return _cell(msgspec.json.decode(result.read_bytes()), command)


def _cell(document: dict[str, Any], command: str) -> Cell:
    families = list(document["families"].values())
    found = [_of_state(each) for family in families for each in family["findings"]]
    found += [
        Found(each["signature"], _short(each["text"]), "confirmed by a real run", again=command)
        for each in document["findings"]
        if each["kind"] != "harness"
    ]
    harness = [*document["findings"], *(each for family in families for each in family["problems"])]
    problems = [_short(each["text"]) for each in harness if each["kind"] == "harness"]
    coverage = ", ".join(family["coverage"] for family in families) or "the run without a fault"
    if document["schedules"] > 1:
        coverage += f", in {document['schedules']} schedules"
    is_empty = bool(families) and all(family["verdict"] == NOTHING for family in families) and not found
    return Cell(
        verdict=NOTHING if is_empty else document["verdict"].upper(),
        coverage=coverage,
        command=command,
        confirmed=sum(family["confirmed"] for family in families),
        findings=tuple(_one_of_each(found)[:_FINDINGS_MAX]),
        problems=() if is_empty else tuple(dict.fromkeys(problems))[:_FINDINGS_MAX],
    )


def _of_state(each: dict[str, Any]) -> Found:
    again = each["reproduction"].rpartition("  again: ")[2].strip()
    again = again if again.startswith("chaos explore") else ""
    text, state = _short(each["text"]), _short(each["state"])
    return Found(each["signature"], text, each["label"], each["states"], state, _short(each["at"]), again)


def _one_of_each(found: list[Found]) -> list[Found]:
    """Return one finding a signature: a confirmed one, then the one with the smallest state."""
    best: dict[str, Found] = {}
    for each in sorted(found, key=lambda each: (each.label == "modelled", not each.again, len(each.again))):
        best.setdefault(each.signature, each)
    return list(best.values())


def _short(text: str) -> str:
    line = " ".join(_SCRATCH.sub("", text.replace(str(ROOT), ".")).split())
    return line if len(line) <= _TEXT_MAX else f"{line[:_TEXT_MAX]} ..."


def measure(row: Row, *, jobs: int = 2, budget_s: float = BUDGET_S) -> Measured:
    """Explore all cells of a row, each for at most ``budget_s`` seconds."""
    where = f"Python {platform.python_version()}, Linux {platform.release()}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    cells = {cell: measure_cell(row, cell, jobs=jobs, budget_s=budget_s) for cell in cells_of(row)}
    return Measured(versions(row), day, where, cells)


def differences(row: Row, before: Measured | None, now: Measured) -> Iterator[str]:
    """Yield what a measurement gives otherwise: versions, verdicts, and findings."""
    if before is None:
        yield f"{row.name} was not measured before"
        return
    if before.versions != now.versions:
        yield f"{row.name} was measured with {_listed(before.versions)}; it is {_listed(now.versions)} here"
    for cell in sorted(before.cells.keys() | now.cells.keys(), key=CELLS.index):
        was, is_now = before.cells.get(cell), now.cells.get(cell)
        if was is None or is_now is None:
            yield f"{row.name}, {cell} is measured {'no longer' if is_now is None else 'for the first time'}"
        elif (was.verdict, was.signatures) != (is_now.verdict, is_now.signatures):
            yield f"{row.name}, {cell} was {_said(was)}; it is {_said(is_now)}. Look: {is_now.command}"


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _said(cell: Cell) -> str:
    found = ", ".join(sorted(cell.signatures))
    return f"{cell.verdict} ({found})" if found else cell.verdict
