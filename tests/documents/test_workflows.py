"""The workflows that the documents show: they parse, and their commands are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from pytest_chaos.cli.main import chaos

from tests.documents.examples import examples_of

yaml: Any = pytest.importorskip("yaml")  # it comes with the documents
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "ci.md"
WORKFLOWS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
SHOWN = {
    command.line for example in examples_of("ci.md", PAGE.read_text()) for command in example.commands
}  # what the example of the page runs
NAMES = [text.splitlines()[0].removeprefix("# ") for text in WORKFLOWS]


def problems_of_workflow(text: str, config: pytest.Config) -> list[str]:
    """Return what is wrong with a workflow: its shape, an unknown command, an unknown option."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"it is no YAML: {error}"]
    problems = [f"it has no {key}" for key in ("name", True, "jobs") if key not in found]  # YAML reads `on` as true
    for name, job in found.get("jobs", {}).items():
        problems += [f"the job {name} has no {key}" for key in ("runs-on", "steps") if key not in job]
        for step in job.get("steps", []):
            if ("uses" in step) == ("run" in step):
                problems.append(f"a step must either use or run; got {step}")
            problems += [f"{step['run']}: {why}" for why in _wrong(step["run"], config)] if "run" in step else []
    return problems


def _wrong(line: str, config: pytest.Config) -> list[str]:
    program, *words = shlex.split(line)
    if program == "pip":
        return [] if words[0] == "install" else ["pip only installs here"]
    if program == "chaos":
        command = chaos.get_command(click.Context(chaos), words[0])
        if command is None:
            return [f"there is no chaos {words[0]}"]
        try:
            command.make_context(words[0], words[1:])
        except click.ClickException as error:
            return [error.format_message()]
        return [] if words[0] == "doctor" or line in SHOWN else ["the page does not run it"]
    if program != "pytest":
        return [f"{program} is not known"]
    unknown = []
    for word in words:
        if word.startswith("--"):
            try:
                config.getoption(word.partition("=")[0])
            except ValueError:
                unknown.append(f"pytest has no {word}")
    return unknown


@pytest.mark.parametrize("text", WORKFLOWS, ids=NAMES)
def test_a_workflow_is_one(text: str, pytestconfig: pytest.Config) -> None:
    """It parses, and nothing in it is misspelt that can be known here."""
    assert problems_of_workflow(text, pytestconfig) == []


def test_both_forges_have_both_jobs() -> None:
    """A run of the scenarios and an exploration with a baseline, for GitHub and for Gitea."""
    assert sorted(NAMES) == [
        f".{forge}/workflows/{job}.yml" for forge in ("gitea", "github") for job in ("chaos", "explore")
    ]


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("jobs:", "jobs", "it is no YAML"),
        ("--baseline", "--base-line", "No such option"),
        ("chaos explore", "chaos explode", "there is no chaos explode"),
        ("--budget 10m", "--budget soon", "a time must read"),
        ("--seed 1", "--seed 2", "the page does not run it"),
        ("runs-on", "run-on", "has no runs-on"),
    ],
)
def test_the_rule_sees_a_slip(was: str, becomes: str, said: str, pytestconfig: pytest.Config) -> None:
    """Each misspelling is told."""
    (text,) = (each for name, each in zip(NAMES, WORKFLOWS, strict=True) if name == ".github/workflows/explore.yml")
    assert said in "\n".join(problems_of_workflow(text.replace(was, becomes), pytestconfig))
