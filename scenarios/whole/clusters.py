"""Explorations on a cluster against explorations by our own pool, and a target that can be held.

What must be the same for one seed: the states that were judged in each family, those in which
something was found, and the findings with their codes. What was not judged must never be green.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import msgspec
from pytest_chaos.explore.cluster import seam
from pytest_chaos.explore.cluster.engine import close_clusters
from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Finding, Verdict
from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos import Mark, Marks
    from pytest_chaos.explore.report import Exploration

TWICE: Final = "cluster:counted-twice"
NOT_JUDGED: Final = "cluster:not-judged"
OTHERS: Final = "cluster:other-findings"
GREEN: Final = "cluster:green-without-judging"
SEAM: Final = "pytest_chaos.explore.cluster.seam:BatchPool"
NUMBERS: Final = 3
HOLD_S: Final = 60.0
TOLD: Final = "told"
BENCH: Final = b"pytest_chaos.explore.cluster.bench"


class FamilyTold(msgspec.Struct, frozen=True):
    """What is told of a family."""

    family: str
    verdict: str
    states: int
    violated: int
    points: int
    confirmed: int
    is_complete: bool


class Told(msgspec.Struct, frozen=True):
    """What two explorations with one seed have in common, however they judge."""

    verdict: str
    families: tuple[FamilyTold, ...]
    found: tuple[tuple[str, str, int, str], ...]
    """Signature, code, number of states and label of each discovery."""
    signatures: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether everything was judged, as it says."""
        return bool(self.families) and all(each.is_complete for each in self.families)


def told(explored: Exploration) -> Told:
    """Return what is compared of an exploration."""
    families = tuple(
        FamilyTold(
            str(each.family), str(each.verdict), each.states, each.violated, each.points, each.confirmed,
            each.is_complete,
        )
        for each in explored.families
    )  # fmt: skip
    found = sorted((each.signature, each.code, each.states, each.label) for each in explored.discoveries)
    signatures = sorted({each.signature for each in explored.all_findings})
    return Told(str(explored.verdict), families, tuple(found), tuple(signatures))


def differences(ours: Told, theirs: Told) -> Iterator[Finding]:
    """Yield what a cluster has judged or found otherwise than our pool."""
    for own, other in zip(ours.families, theirs.families, strict=False):
        if other.states > own.states:
            text = f"{own.family}: {other.states} states were counted, and there are {own.states}"
            yield Finding(signature=TWICE, text=text)
        if other.states < own.states and other.is_complete:
            text = f"{own.family}: {own.states - other.states} of {own.states} states were not judged, nor told"
            yield Finding(signature=NOT_JUDGED, text=text)
    if ours != theirs and (theirs.is_complete or not theirs.families):
        yield Finding(signature=OTHERS, text=f"our pool: {ours}; the cluster: {theirs}")


def green(theirs: Told) -> Iterator[Finding]:
    """Yield that an exploration holds, or says that it is complete, whose cluster was lost."""
    if theirs.verdict == Verdict.HELD or theirs.is_complete:
        yield Finding(signature=GREEN, text=f"the cluster was lost, and it is {theirs.verdict}: {theirs.families}")


class Held:
    """Keeps a number in a file, and syncs nothing. Once armed, its first check is held.

    In ``folder``, ``armed`` arms it; only benches hold. The check that is held writes its process
    and its state to ``held``, and goes on when ``go`` is there. Another check of the same state
    makes ``again``.
    """

    name = "held"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, directory: Path, marks: Marks) -> None:
        """Replace the file, some times."""
        for number in range(1, NUMBERS + 1):
            (directory / "fresh").write_text(str(number) * 600)
            (directory / "fresh").rename(directory / "state")
            marks.ack("save", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find a number that was acknowledged and is not there."""
        saved = [int(mark.key or 0) for mark in marks if mark.kind == "ack"]
        files = {path.name: path.read_text() for path in sorted(directory.iterdir())}
        self._stay(f"{saved} {files}")
        found = files.get("state", "")[:1]
        if saved and (not found.isdecimal() or int(found) < saved[-1]):
            yield f"lost {saved[-1]}"

    def _stay(self, state: str) -> None:
        if not (self.folder / "armed").exists() or not _is_below(os.getpid()):
            return
        held = self.folder / "held"
        try:
            claim = (self.folder / "claim").open("x")
        except FileExistsError:
            if held.exists() and held.read_text().partition("\n")[2] == state:
                (self.folder / "again").touch()
            return
        with claim:
            claim.write("first")
        fresh = self.folder / "fresh"
        fresh.write_text(f"{os.getpid()}\n{state}")
        fresh.rename(held)
        deadline_s = time.monotonic() + HOLD_S
        while not (self.folder / "go").exists() and time.monotonic() < deadline_s:
            time.sleep(0.005)  # sleeps because this is the pause of a bounded wait


def explore_held(folder: str, address: str = "", pool: str = SEAM, hedge_s: float = seam.HEDGE_S) -> None:
    """Explore a held target, and write what is told of it to ``told``; an agent."""
    with mock.patch.object(seam, "BatchPool", class_named(pool)), mock.patch.object(seam, "HEDGE_S", hedge_s):
        options = Options(
            seed="held",
            families=(Family.CRASH, Family.POWER),
            jobs=2,
            check_timeout_s=2 * HOLD_S,
            cluster=address,
        )
        found = told(launch(subject_of(Held(Path(folder))), options))
        close_clusters()
    fresh = Path(folder) / "told.new"
    fresh.write_bytes(msgspec.json.encode(found))
    fresh.rename(Path(folder) / TOLD)


def read_told(folder: Path) -> Told:
    """Return what ``explore_held`` has written."""
    return msgspec.json.decode((folder / TOLD).read_bytes(), type=Told)


def class_named(name: str) -> type:
    """Return the class ``module:Class``."""
    module, _, attribute = name.partition(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def dask_worker_of(check: int) -> processes.Process:
    """Return the worker of Dask above the process of a check: the first that is no bench."""
    process = processes.read(check)
    while process is not None and _is_below(process.pid):
        process = processes.read(process.parent_pid)
    if process is None:
        msg = f"process {check} has no worker of Dask above it"
        raise LookupError(msg)
    return process


def _is_below(pid: int) -> bool:
    return BENCH in Path(f"/proc/{pid}/cmdline").read_bytes()


def marked(variable: str, value: str) -> list[int]:
    """Return the processes that were started with this in their environment, and live."""
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                process = processes.read(int(entry.name))
                if process is not None and process.alive and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(process.pid)
    return found
