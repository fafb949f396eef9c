"""The pytest plugin of ``chaos mutate``: tells the campaign what tests do, a line of JSON each.

``-p chaos_mutate_tests`` loads it. The lines go to the descriptor in ``CHAOS_MUTATE_TELL``. In the
clean run it also reads which statements the test has reached, and clears the map. A sweep of points
is one test that is executed several times: without its fault, and once for each place. The hooks
are found by their names, so nothing of pytest is needed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

_RECORD = "chaos_record"
_TEXT_CHARACTERS_MAX = 500

_started: dict[str, float] = {}
_places: dict[str, str] = {}


def _tell(**values: Any) -> None:
    os.write(int(os.environ["CHAOS_MUTATE_TELL"]), json.dumps(values).encode() + b"\n")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests of this mutant, in the order that the campaign has chosen."""
    chosen = os.environ.get("CHAOS_MUTATE_ONLY")
    if chosen is None:
        return
    config.hook.pytest_deselected(items=choose(config, items, chosen))


def choose(config: Any, items: list[Any], path: str) -> list[Any]:
    """Keep the tests that a file names, with these places of their sweeps; return the others."""
    with open(path, encoding="utf-8") as file:
        places = json.load(file)
    order = {name: number for number, name in enumerate(places)}
    others = [item for item in items if item.nodeid not in order]
    items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
    sweeps = config.pluginmanager.get_plugin("chaos-sweeps")
    if sweeps is not None:
        sweeps.wanted = {name: frozenset(kept) for name, kept in places.items() if kept is not None}
    return others


def pytest_collection_finish(session: Any) -> None:
    """Tell which tests there are, which of them are scenarios, and how they were found."""
    if "CHAOS_MUTATE_WAIT" in os.environ:
        return
    config = session.config
    tests = [[item.nodeid, item.get_closest_marker("chaos") is not None, str(item.path)] for item in session.items]
    _tell(
        event="collected",
        tests=tests,
        given=list(config.option.file_or_dir or ()),
        root=str(config.rootpath),
        configuration=str(config.inipath or ""),
    )
    _take_reached()


def pytest_runtestloop(session: Any) -> None:
    """Wait for mutants, where the tests would be run; each fork goes on and runs those of one."""
    if "CHAOS_MUTATE_WAIT" in os.environ:
        import chaos_mutate_server  # type: ignore[import-not-found]  # this folder is on the path here

        chaos_mutate_server.serve_collected(session)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell that a test begins: the campaign bounds its time."""
    _started[nodeid] = time.monotonic()
    _tell(event="started", test=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Tell how a part of a test went, with the findings of its run."""
    record = getattr(report, _RECORD, None)
    if report.outcome != "failed" and record is None:
        return
    value: dict[str, Any] = {"event": "report", "test": report.nodeid, "outcome": report.outcome, "when": report.when}
    if record is not None:
        run = json.loads(record)
        _places[report.nodeid] = (run.get("notes", {}).get("sweep") or {}).get("place", "")
        value["scenario"] = run["scenario"]["id"]
        value["verdict"] = run["verdict"]
        value["findings"] = [
            [finding["signature"], finding.get("kind", "safety"), finding["text"][:_TEXT_CHARACTERS_MAX]]
            for finding in run.get("findings", ())
        ]
    if report.outcome == "failed":
        value["text"] = _last_line(report.longreprtext)
    _tell(**value)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Tell how long a test took, in seconds, and what it reached."""
    took = time.monotonic() - _started.pop(nodeid, time.monotonic())
    place = _places.pop(nodeid, "")
    _tell(event="finished", test=nodeid, place=place, duration_s=took, reached=_take_reached())


def pytest_sessionfinish() -> None:
    """Tell which modules a preloaded process may have imported beforehand."""
    if os.environ.get("CHAOS_MUTATE_MODULES"):
        modules = [[name, getattr(module, "__file__", None)] for name, module in sorted(sys.modules.items())]
        _tell(event="modules", modules=modules)


def _last_line(text: str) -> str:
    lines = [line[2:] for line in text.splitlines() if line.startswith("E ")] or text.strip().splitlines()
    return lines[0].strip()[:_TEXT_CHARACTERS_MAX] if lines else ""


def _take_reached() -> list[int]:
    reach = getattr(sys, "_chaos_reach", None)
    if reach is None:
        return []
    content = reach[:]
    reach[:] = bytes(len(content))
    return [number for number, mark in enumerate(content) if mark]
