"""The runs in the Common Test Report Format: the required fields, and no wrong green."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from chaos_reports.ci.ctrf import CtrfDocument, to_ctrf
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Account, Verdict

from tests.reports.samples import HEADER, KILL, campaign, run


def results(records: Records) -> dict[str, Any]:
    """Return the results, after every key was found in the documented types."""
    text = to_ctrf(summarise(records))
    document = msgspec.json.decode(text, type=CtrfDocument)
    assert msgspec.to_builtins(document) == json.loads(text)
    assert (document.report_format, document.spec_version) == ("CTRF", "0.1.0")
    found: dict[str, Any] = json.loads(text)["results"]
    return found


def test_only_a_run_that_held_is_passed() -> None:
    """Violated and undecided runs are failures; what the pass rate tolerates is neither."""
    found = results(campaign())
    raw = {(each["status"], each["rawStatus"]) for each in found["tests"]}
    assert raw == {("passed", "HELD"), ("failed", "VIOLATED"), ("failed", "INCONCLUSIVE"), ("other", "TOLERATED")}
    counts = {name: found["summary"][name] for name in ("tests", "passed", "failed", "other", "skipped", "pending")}
    assert counts == {"tests": 200, "passed": 173, "failed": 26, "other": 1, "skipped": 0, "pending": 0}


def test_runs_that_were_not_made_are_a_failure() -> None:
    """A session that was interrupted has a failed test for what it owes."""
    account = Account(scenario=KILL, planned=5, made=2)
    found = results(Records(HEADER, (run(), run(iteration=1)), (account,)))
    assert [each["status"] for each in found["tests"]] == ["passed", "passed", "failed"]
    assert found["tests"][-1]["message"] == "3 of 5 planned runs of it were not made"


def test_a_failure_says_how_to_run_it_again() -> None:
    """Seed, evidence, findings and the line to paste are there; times are whole milliseconds."""
    violated = msgspec.structs.replace(run(verdict=Verdict.VIOLATED), started="2026-11-21T04:00:01.5+00:00")
    (test,) = results(Records(HEADER, (violated,)))["tests"]
    assert test["extra"]["reproduce"].startswith("chaos replay ")
    assert (test["start"], test["duration"], test["stop"]) == (1795233601500, 310, 1795233601810)
    assert test["trace"] == "AssertionError: it did not hold"


def test_times_that_are_none_are_left_out() -> None:
    """A moment that cannot be read, and a duration below zero, give a valid document."""
    odd = msgspec.structs.replace(run(), started="yesterday", duration_s=-3.0, node_id="")
    (test,) = results(Records(msgspec.structs.replace(HEADER, started="never"), (odd,)))["tests"]
    assert "start" not in test
    assert (test["duration"], test["name"]) == (0, "unnamed")
