"""Several entries of the bank, some at a time."""

from __future__ import annotations

import datetime
import platform
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from typing import TYPE_CHECKING

from pytest_chaos.bank.entries import FORMS
from pytest_chaos.bank.environments import NotInstalled
from pytest_chaos.bank.forms import Runner
from pytest_chaos.bank.results import BankDocument, EntryResult, not_run, result_of, verdict_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.bank.entries import BankEntry
    from pytest_chaos.bank.environments import Environments


def run_entries(
    entries: Sequence[BankEntry],
    environments: Environments,
    results: Path,
    *,
    seed: str,
    jobs: int = 1,
    tell: Callable[[EntryResult], None] = lambda _: None,
) -> BankDocument:
    """Run both forms of each entry, ``jobs`` entries at a time; return the document.

    Each form leaves its results in ``results/NAME/FORM``, which is emptied first. ``tell`` hears of
    each result as it comes.
    """
    started, begun_s = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.monotonic()
    runner = Runner(seed)
    is_over = threading.Event()

    def run(entry: BankEntry) -> EntryResult:
        return _run(entry, environments, runner, results / entry.name, is_over)

    found: dict[str, EntryResult] = {}
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(run, entry) for entry in entries]
        try:
            for each in as_completed(pending):
                found[each.result().name] = each.result()
                tell(each.result())
        except BaseException:
            is_over.set()
            runner.interrupt()
            raise
    ordered = [found[entry.name] for entry in entries]
    return BankDocument(
        verdict=verdict_of(ordered), seed=seed, started=started, duration_s=round(time.monotonic() - begun_s, 3),
        versions=_versions(), counts=dict(Counter(each.outcome for each in ordered)), entries=ordered,
    )  # fmt: skip


def _run(
    entry: BankEntry, environments: Environments, runner: Runner, folder: Path, is_over: threading.Event
) -> EntryResult:
    if missing := [each for each in entry.commands if shutil.which(each) is None]:
        return not_run(entry, "skipped", f"the program {missing[0]} must be installed; it is not here")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pythons = [environments.python_for(entry.requirements_of(form)) for form in FORMS]
    except NotInstalled as error:
        return not_run(entry, "skipped", str(error))
    forms = []
    for form, python in zip(FORMS, pythons, strict=True):
        if is_over.is_set():
            return not_run(entry, "undecided", "it was interrupted")
        forms.append(runner.run(entry, form, python, folder / form))
    return result_of(entry, *forms)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    return {**found, "pytest-chaos": version("pytest-chaos")}
