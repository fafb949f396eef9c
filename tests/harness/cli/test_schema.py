"""What each command prints with ``--json`` is what ``chaos schema`` says, key by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from pytest_chaos.cli import main as cli, schema

from tests.harness.cli.test_main import PLUGIN, make_pack
from tests.reports.failure.packs import pack as violated_pack
from tests.reports.samples import campaign, write_session

TARGET = """\
import json

class Target:
    def run(self, directory, marks):
        path = directory / "orders.json"
        for count in range(1, 4):
            marks.intent("order", count)
            path.write_text(json.dumps(list(range(1, count + 1))))
            marks.ack("order", count)

    def check(self, directory, marks):
        try:
            kept = json.loads((directory / "orders.json").read_text())
        except (OSError, ValueError):
            kept = []
        return [f"order {mark.key} is lost" for mark in marks if mark.kind == "ack" and mark.key not in kept]

def work(marks):
    open("made", "w").close()
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a project with a target, and a plugin that lists one scenario."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.chaos\ndef test_kill(): pass\n")
    (tmp_path / "orders_target.py").write_text(TARGET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capfd: pytest.CaptureFixture[str], name: str, *words: object) -> Any:
    """Run a command; return its JSON, all of whose keys and values are in its type."""
    capfd.readouterr()
    code = cli.run([str(word) for word in words])
    out, err = capfd.readouterr()
    assert code in {0, 1, 2}, err
    kind = schema.type_of(name)
    document = msgspec.json.decode(out, type=kind, dec_hook=lambda wanted, value: wanted(value))
    found = json.loads(out)
    assert changed(found, json.loads(msgspec.json.encode(document, enc_hook=str))) == []
    return found


def changed(printed: Any, decoded: Any, place: str = "") -> list[str]:
    """Return the places of what was printed that its type does not have, or has otherwise."""
    if isinstance(printed, dict):
        return [
            text
            for key, value in printed.items()
            for text in (changed(value, decoded[key], f"{place}.{key}") if key in decoded else [f"{place}.{key}"])
        ]
    if isinstance(printed, list):
        assert len(printed) == len(decoded), place
        pairs = enumerate(zip(printed, decoded, strict=True))
        return [text for number, (one, other) in pairs for text in changed(one, other, f"{place}[{number}]")]
    return [] if printed == decoded else [place]


def test_explorations_and_their_states(capfd: pytest.CaptureFixture[str], project: Path) -> None:
    """An exploration prints nothing but its document; so do its states, held and built."""
    command = ("explore", "orders_target.py:Target", "--seed", "1", "--json", "-")
    found = printed(capfd, "explore", *command, "--faults", "crash")
    (cause,) = found["causes"]
    assert (found["verdict"], cause["text"]) == ("VIOLATED", "order 1 is lost")
    state = printed(capfd, "explore --state", *command, "--state", cause["code"])
    held = printed(capfd, "inspect", "inspect", "chaos-results/explore/state", "--json")
    assert held == state
    assert held["findings"] == ["[check:order # is lost] order 1 is lost"]
    built = printed(capfd, "inspect", "inspect", cause["code"], "--json")
    assert built["missing"][0]["mark"]["key"] == 1
    assert [each["key"] for each in built["acknowledged"]] == [1]
    assert [each["path"] for each in built["files"]] == ["orders.json"]
    assert Path(built["folder"], "directory", "orders.json").read_bytes() == b""
    for wrong in ("crash:99", "nonsense", ""):
        assert cli.run(["inspect", wrong]) == 3
    assert Path(built["folder"], "directory", "orders.json").exists()


def test_small_commands(capfd: pytest.CaptureFixture[str], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, checks, marks and places."""
    assert {each["name"] for each in printed(capfd, "doctor", "doctor", "--json")} >= {"kernel"}
    assert [each["id"] for each in printed(capfd, "list", "list", "--json")] == ["01-kill-9"]
    assert printed(capfd, "init", "init", "--no-run", "--json", "--", "true")["file"] == "chaos_target.py"
    assert printed(capfd, "mark", "mark", "ack", "order", "7", "--json")["written"] is False
    monkeypatch.setenv("CHAOS_MARKS", str(project / "marks.jsonl"))
    mark = printed(capfd, "mark", "mark", "ack", "order", "7", "--value", '{"a": 1}', "--json")
    assert (mark["written"], mark["key"], mark["value"]) == (True, 7, {"a": 1})
    (project / "h.edn").write_text(
        "{:process 0 :type :invoke :f :write :value 1}\n{:process 0 :type :ok :f :write :value 1}\n"
    )
    assert printed(capfd, "check", "check", "h.edn", "--model", "register", "--json")["operations"] == 1
    places = printed(capfd, "points", "points", "orders_target.py:work", "--json")["places"]
    assert {each["path"] for each in places} == {"made"}


def test_packs(capfd: pytest.CaptureFixture[str], project: Path) -> None:
    """A pack is shown, verified and run again."""
    pack = make_pack(project, "test_a.py::test_kill", str(project))
    assert printed(capfd, "evidence show", "evidence", "show", pack, "--json")["run_id"] == "run-1"
    assert printed(capfd, "evidence verify", "evidence", "verify", pack, "--json")["problems"] == []
    replayed = printed(capfd, "replay", "replay", pack, "--json")
    assert (replayed["verdict"], replayed["pytest_exit_code"]) == (None, 0)


def test_sessions(capfd: pytest.CaptureFixture[str], project: Path) -> None:
    """A report, a difference, a failure page, and the removal of old sessions."""
    session = write_session(project / "chaos-results", campaign())
    other = write_session(project / "other", campaign())
    assert printed(capfd, "report", "report", session, "--json")["format"] == 1
    assert printed(capfd, "report --diff", "report", "--diff", session, other, "--json")["direction"] == "undecided"
    assert printed(capfd, "report PACK", "report", violated_pack(project), "--json")["verdict"] == "VIOLATED"
    assert printed(capfd, "clean", "clean", "--json")["removed"] == []


def test_mutants(capfd: pytest.CaptureFixture[str], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of mutants; their results are compared where a campaign runs."""
    (project / "small_package").mkdir()
    (project / "small_package" / "__init__.py").write_text("def f(x):\n    if x < 0:\n        raise ValueError\n")
    monkeypatch.syspath_prepend(project)
    found = printed(capfd, "mutate --list", "mutate", "small_package", "--list", "--json")
    assert {each["module"] for each in found} == {"small_package"}


@pytest.mark.parametrize("name", sorted(schema.documents()))
def test_each_document_has_a_schema(capfd: pytest.CaptureFixture[str], name: str) -> None:
    """The schema is one of JSON Schema, with a description for each type."""
    assert cli.run(["schema", *name.split()]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["title"] == f"chaos {name} --json"
    assert all(each.get("description") or "enum" in each for each in made["$defs"].values())


def test_an_unknown_document_is_a_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    """The message names those there are, and so does the command without words."""
    assert cli.run(["schema", "nothing"]) == 3
    assert "There are: bank list, bank run, bisect, check, clean" in capfd.readouterr().err
    assert cli.run(["schema"]) == 0
    assert "chaos report --diff\n" in capfd.readouterr().out


def commands() -> dict[str, click.Command]:
    """Return all commands by their words; a group stands for its own."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli.chaos)
    for name in cli.chaos.list_commands(context):
        command = cli.chaos.get_command(context, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {each}": inner[each] for each in inner} or {name: command}
    return found


def test_every_command_has_json_and_says_its_exit_codes() -> None:
    """Each help has the codes; each command but schema has --json, and a document."""
    for name, command in commands().items():
        assert "Exits " in (command.help or ""), name
        assert name == "schema" or any("--json" in option.opts for option in command.params), name
        assert name == "schema" or name in schema.documents(), name
