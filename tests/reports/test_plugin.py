"""The pytest plugin of the reports, as a session of another project uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pytest_chaos.evidence.records import Records

from tests.reports.samples import HEADER, campaign

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

ALONE = ("-p", "no:cacheprovider", "-p", "chaos_reports.plugin")

CONFTEST = """
    import pytest
    from pathlib import Path
    from pytest_chaos.evidence.records import Records, read

    class Hooks:
        @pytest.hookspec
        def pytest_chaos_session_finished(self, session_folder, records, formats, config): ...

    def pytest_addhooks(pluginmanager):
        pluginmanager.add_hookspecs(Hooks)

    def pytest_sessionfinish(session):
        folder = Path("session").resolve()
        session.config.hook.pytest_chaos_session_finished(
            session_folder=folder, records=read(folder), formats=FORMATS, config=session.config
        )
"""


def arrange(pytester: pytest.Pytester, records: Records, formats: str = "('md', 'html', 'json')") -> Path:
    """Make a project whose session ends with these records; return the session's folder."""
    pytester.makeconftest(CONFTEST.replace("FORMATS", formats))
    pytester.makepyfile("def test_something(): pass")
    folder = pytester.mkdir("session")
    values: tuple[msgspec.Struct, ...] = (records.header, *records.runs)
    (folder / "records.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in values))
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the harness's plugin out of the inner sessions:
    the hook alone must do, whoever calls it.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_a_session_ends_with_the_matrix_and_its_path(pytester: pytest.Pytester) -> None:
    """Three files in the session's folder; the table, the findings and the path in the terminal."""
    folder = arrange(pytester, campaign())
    result = pytester.runpytest_subprocess(*ALONE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*= chaos matrix =*",
            "4 scenarios, 200 runs: 1 held, 1 held with tolerated failures, 1 violated, 1 inconclusive.",
            "*VIOLATED*04-sweep*",
            "04-sweep: durability.acknowledged-lost (safety, 6 runs): *",
            "    reproduce: chaos replay *",
            f"chaos matrix: {folder}/matrix.html",
        ]
    )
    assert json.loads((folder / "matrix.json").read_text())["format"] == 1
    assert (folder / "matrix.md").read_text().startswith("# ✗ Chaos matrix: VIOLATED")


def test_quiet_leaves_one_line_per_scenario(pytester: pytest.Pytester) -> None:
    """With -q there is no section and no table."""
    arrange(pytester, campaign())
    result = pytester.runpytest_subprocess(*ALONE, "-q")
    result.stdout.fnmatch_lines(["? INCONCLUSIVE 05-llm-cache: 50 runs, pass rate 100 %"])
    result.stdout.no_fnmatch_line("*chaos matrix*")


def test_a_session_without_chaos_runs_hears_nothing(pytester: pytest.Pytester) -> None:
    """No line, no file: the plugin is inert until a scenario ran."""
    folder = arrange(pytester, Records(HEADER, ()))
    result = pytester.runpytest_subprocess(*ALONE)
    result.stdout.no_fnmatch_line("*chaos matrix*")
    assert [path.name for path in folder.iterdir()] == ["records.jsonl"]


def test_a_report_that_cannot_be_written_is_said_and_changes_nothing(pytester: pytest.Pytester) -> None:
    """The table is still shown, the sentence stands below it,
    and the exit code is that of the tests.
    """
    arrange(pytester, campaign(), formats="('pdf',)")
    result = pytester.runpytest_subprocess(*ALONE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "4 scenarios, 200 runs*",
            "a report format must be one of md, html, json, ctrf; got 'pdf'. Give for instance md,html",
        ]
    )


def test_the_plugin_survives_that_the_harness_is_off(pytester: pytest.Pytester) -> None:
    """Nobody specifies or calls the hook: the plugin is a guest and does not mind."""
    pytester.makepyfile("def test_something(): pass")
    result = pytester.runpytest_subprocess(*ALONE, "--strict-markers")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*chaos matrix*")


def test_loading_the_plugin_imports_nothing_that_renders() -> None:
    """A suite without chaos tests pays for neither Jinja2 nor Rich nor Click."""
    code = (
        "import sys, pytest; before = set(sys.modules); import chaos_reports.plugin; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == {"chaos_reports"}


@pytest.mark.parametrize("name", ["mutation/mutation.json", "bank/bank.json"])
def test_damaged_results_of_another_command_cost_no_matrix(pytester: pytest.Pytester, name: str) -> None:
    """The page is written without them, and one sentence names the file."""
    folder = arrange(pytester, campaign())
    damaged = folder / name
    damaged.parent.mkdir()
    damaged.write_text("{")
    result = pytester.runpytest_subprocess(*ALONE)
    page = (folder / "matrix.html").read_text()
    assert "Chaos matrix" in page
    assert damaged.name in page + result.stdout.str()
    assert "Traceback" not in result.stdout.str()
