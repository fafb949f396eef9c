"""The defects that scenario 22 found in the harness's own files are found again when planted."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.evidence import manifest
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Receipt, Verdict
from pytest_chaos.runtime.journal import RECEIPTS, Journal

from scenarios.whole.harness_targets import TOLD, Evidence, Progress
from tests.planted.own_files import TornReceipts, write_unsynced

if TYPE_CHECKING:
    from pathlib import Path


def _found(target: object, family: Family) -> set[str]:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    explored = launch(subject_of(target), Options(seed="own", families=(family,), schedules=1, io_runs=80))
    assert explored.verdict in {Verdict.HELD, Verdict.VIOLATED}
    return {each.signature for each in explored.discoveries}


def test_a_baseline_in_a_folder_that_is_not_synced_is_found() -> None:
    """A loss of power takes it, and with the folder synced it does not."""
    assert _found(Progress(write_unsynced), Family.POWER) == {TOLD}
    assert _found(Progress(), Family.POWER) == set()


@pytest.mark.nightly
def test_a_receipt_that_a_short_write_tore_is_found() -> None:
    """An acknowledged receipt is torn, and with the rest written it is not."""
    assert TOLD in _found(Evidence(journal=TornReceipts), Family.IO)
    assert _found(Evidence(), Family.IO) == set()


@pytest.mark.nightly
def test_a_pack_whose_files_are_not_synced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power leaves a pack that its manifest does not fit."""
    assert _found(Evidence(is_power=True), Family.POWER) == set()
    monkeypatch.setattr(manifest, "_sync", lambda *_: None)
    assert _found(Evidence(is_power=True), Family.POWER)


@pytest.mark.parametrize("journal", [Journal, TornReceipts])
def test_a_receipt_that_does_not_fit_is_told(tmp_path: Path, journal: type[Journal]) -> None:
    """The kernel cuts a write at the largest size of a file: that is not all of it."""
    receipt = Receipt(kind="kill", agent="a", when="now", fired=True, evidence="signal 9")
    made = journal(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        made.add_receipt(receipt)
        is_told = False
    except OSError:
        is_told = True
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / RECEIPTS).stat().st_size == 50
    assert is_told == (journal is Journal)
