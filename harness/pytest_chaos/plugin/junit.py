"""The JUnit file of a session: properties of each run, and no failure for a tolerated one.

Pytest writes the file before the pass rates are known. So it is read again, and a tolerated run
becomes what pytest makes of an expected failure: ``<skipped type="pytest.xfail">``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from _pytest.junitxml import xml_key  # the path of the file, as pytest has made it out

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from xml.etree.ElementTree import Element

    import pytest

    from pytest_chaos.model.values import RunRecord

FINDINGS_MAX: Final = 10
"""Findings of a run that have a property."""
VERDICT: Final = "chaos_verdict"
"""The property of a test case with its verdict."""
SCENARIO: Final = "chaos_scenario"
"""The property of a test case with the id of its scenario."""


def properties(record: RunRecord) -> list[tuple[str, str]]:
    """Return the properties of a run's test case; a run that held has nothing to run again."""
    told = [(VERDICT, str(record.verdict)), (SCENARIO, record.scenario.id), ("chaos_seed", record.seed)]
    more = (("chaos_reproduce", record.reproduce), ("chaos_evidence", record.evidence))
    told += [(name, value) for name, value in more if value and record.evidence]
    return told + [("chaos_finding", each.signature) for each in record.findings[:FINDINGS_MAX]]


def tolerate(config: pytest.Config, scenarios: AbstractSet[str]) -> None:
    """Make expected failures of these scenarios' failures, if the session writes a JUnit file."""
    if (written := config.stash.get(xml_key, None)) is None:
        return
    from xml.etree import ElementTree as ET

    path = Path(written.logfile)
    with contextlib.suppress(OSError, ET.ParseError):  # pytest has said that it could not be written
        tree = ET.parse(path)  # noqa: S314 - see above
        for suite in tree.iter("testsuite"):
            tolerated = [each for case in suite.iter("testcase") for each in _failures(case, scenarios)]
            for each in tolerated:
                each.tag, each.attrib["type"] = "skipped", "pytest.xfail"
                each.attrib["message"] = f"TOLERATED: {each.attrib.get('message', '')}"
            for name, more in (("failures", -len(tolerated)), ("skipped", len(tolerated))):
                suite.attrib[name] = str(int(suite.attrib.get(name, 0)) + more)
        tree.write(path, encoding="utf-8", xml_declaration=True)


def _failures(case: Element, scenarios: AbstractSet[str]) -> list[Element]:
    said = {each.get("name"): each.get("value") for each in case.iter("property")}
    return case.findall("failure") if said.get(SCENARIO) in scenarios else []
