"""The ``chaos`` command: what it prints, and the five exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest
from pytest_chaos.cli import main as cli
from pytest_chaos.cli.main import Exit
from pytest_chaos.evidence import write
from pytest_chaos.evidence.records import SessionFolder
from pytest_chaos.model.values import Plan, RunRecord, Scenario, SessionHeader, Verdict
from pytest_chaos.runtime.journal import Journal, RunHeader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[3]
SCENARIO = Scenario(id="01-kill-9", title="A kill loses nothing")

PLUGIN = """
import json
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--chaos-list-json")
    parser.addoption("--chaos-replay")
    parser.addoption("--chaos-results")

def pytest_collection_finish(session):
    if (target := session.config.getoption("--chaos-list-json")) is not None:
        tests = [item.nodeid for item in session.items]
        scenario = {"id": "01-kill-9", "title": "A kill loses nothing", "why": "", "steps": [], "tests": tests}
        Path(target).write_text(json.dumps([scenario] if tests else []))

def pytest_configure(config):
    config.addinivalue_line("markers", "chaos: a scenario")
"""
"""A plugin that keeps to the options which the command relies on;
the real one is tried in the acceptance tests.
"""


class Ran(NamedTuple):
    """What one call of the command did."""

    code: int
    out: str
    err: str


def chaos(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Call the command in this process."""
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Ran(code, out, err)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a plugin that understands the options, and no others."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "conftest.py").write_text(PLUGIN)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_a.py").write_text(
        "import pytest\n@pytest.mark.chaos\ndef test_kill(): pass\ndef test_other(): pass\n"
    )
    monkeypatch.chdir(folder)
    return folder


def make_pack(folder: Path, node_id: str, root: str = "", *, attached: Mapping[str, str] | None = None) -> Path:
    """Make a pack of a run of this test, with these files attached."""
    journal = Journal(folder / "journal")
    journal.create(
        RunHeader(
            run_id="run-1", node_id=node_id, scenario=SCENARIO, seed="0x5eed", session_folder=str(folder), root=root,
            plan=Plan(seed="0x5eed", scenario="01-kill-9"), reproduce=f"pytest {node_id}",
        )
    )  # fmt: skip
    for name, text in (attached or {}).items():
        (journal.folder / "attachments").mkdir(exist_ok=True)
        (journal.folder / "attachments" / name).write_text(text)
    journal.write_failure("boom \x1b]0;steer the terminal\x07")
    return write(journal.folder, folder / "pack")


def test_help_says_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists the commands and the codes."""
    ran = chaos(capsys, "--help")
    assert ran.code == Exit.HELD
    assert all(word in ran.out for word in ("doctor", "list", "evidence", "replay", "3 for a mistake"))


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["doctor", "--wrong"], ["evidence", "verify"], ["evidence", "wrong"], ["replay"], ["--wrong"]],
)
def test_a_mistake_in_the_call_is_three(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    """Click's own code for a wrong call is 2, which here means inconclusive: it is mapped.
    Its own three lines are one.
    """
    ran = chaos(capsys, *arguments)
    assert ran.code == Exit.MISTAKE
    assert ran.err.startswith("chaos")
    assert ran.err.endswith(" --help says what there is\n")
    assert ran.err.count("\n") == 1


def test_doctor_shows_the_checks_and_is_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people and a list for programs, of the same checks."""
    table = chaos(capsys, "doctor")
    checks = json.loads(chaos(capsys, "doctor", "--json").out)
    assert table.code == Exit.HELD
    assert {"Python", "SQLite", "pytest"} <= {check["name"] for check in checks}
    assert all(check["name"].split()[0] in table.out for check in checks)


def test_verify_is_zero_one_or_three(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As written, not as written, no pack at all: three answers, three codes."""
    pack = make_pack(tmp_path, "test_a.py::test_kill")
    whole = chaos(capsys, "evidence", "verify", pack)
    assert (whole.code, "as written" in whole.out) == (Exit.HELD, True)
    (pack / "failure.txt").write_text("nothing happened")
    changed = chaos(capsys, "evidence", "verify", pack, "--json")
    assert changed.code == Exit.VIOLATED
    assert len(json.loads(changed.out)["problems"]) == 1
    none = chaos(capsys, "evidence", "verify", tmp_path / "none")
    assert none.code == Exit.MISTAKE
    assert none.err.startswith("chaos: ")
    assert none.err.count("\n") == 1


def test_show_prints_the_run_and_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Scenario, seed and failure are there; escape sequences of an agent are shown, not obeyed."""
    pack = make_pack(tmp_path, "test_a.py::test_kill[bold]")
    ran = chaos(capsys, "evidence", "show", pack)
    assert ran.code == Exit.HELD
    assert all(text in ran.out for text in ("01-kill-9", "0x5eed", "INCONCLUSIVE", "test_kill[bold]", "boom"))
    assert "\x1b]" not in ran.out
    shown = json.loads(chaos(capsys, "evidence", "show", pack, "--json").out)
    assert (shown["seed"], shown["plan"]["scenario"], shown["verdict"]) == ("0x5eed", "01-kill-9", "INCONCLUSIVE")


@pytest.mark.parametrize("how", ["link", "pipe", "device", "folder", "plain"])
def test_show_reads_no_file_that_is_not_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path, how: str) -> None:
    """A file that was added, whatever it is, is neither read nor waited for."""
    pack = make_pack(tmp_path, "test_a.py::test_kill", attached={"a.txt": "what was attached"})
    (tmp_path / "secret.txt").write_text("a secret of this machine")
    added = pack / "attachments" / "b.txt"
    if how == "link":
        added.symlink_to(tmp_path / "secret.txt")
    elif how == "pipe":
        os.mkfifo(added)
    elif how == "device":
        added.symlink_to("/dev/zero")
    elif how == "folder":
        (pack / "attachments" / "c").symlink_to(tmp_path)
    else:
        added.write_text("a secret of this machine")
    ran = chaos(capsys, "evidence", "show", pack)
    assert (ran.code, "what was attached" in ran.out) == (Exit.HELD, True)
    assert "a secret" not in ran.out
    verified = chaos(capsys, "evidence", "verify", pack)
    assert verified.code == Exit.VIOLATED


@pytest.mark.parametrize("how", ["link", "linked-folder", "pipe", "device", "grown"])
def test_show_reads_no_listed_file_that_became_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, how: str
) -> None:
    """A listed name that leads out of the pack, blocks, never ends or has grown is said,
    and not read.
    """
    text = "a secret of this machine"
    pack = make_pack(tmp_path, "test_a.py::test_kill", attached={"a.txt": text.replace("secret", "letter")})
    attached = pack / "attachments" / "a.txt"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text(text)
    attached.unlink()
    if how == "link":
        attached.symlink_to(tmp_path / "elsewhere" / "a.txt")
    elif how == "linked-folder":
        attached.parent.rmdir()
        attached.parent.symlink_to(tmp_path / "elsewhere")
    elif how == "pipe":
        os.mkfifo(attached)
    elif how == "device":
        attached.symlink_to("/dev/zero")
    else:
        attached.write_text(text + " and more")
    ran = chaos(capsys, "evidence", "show", pack)
    assert (ran.code, "attachments/a.txt is not shown" in ran.out) == (Exit.HELD, True)
    assert "a secret" not in ran.out
    assert chaos(capsys, "evidence", "verify", pack).code == Exit.VIOLATED


@pytest.mark.parametrize("name", ["manifest.json", "evidence.sqlite"])
@pytest.mark.parametrize("how", ["link", "pipe"])
def test_no_file_of_a_pack_is_opened_through_a_link(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, how: str
) -> None:
    """Manifest and index are regular files of the pack, or the pack is refused in one sentence."""
    pack = make_pack(tmp_path, "test_a.py::test_kill")
    (pack / name).rename(tmp_path / name)
    if how == "link":
        (pack / name).symlink_to(tmp_path / name)
    else:
        os.mkfifo(pack / name)
    for command in (["evidence", "show"], ["evidence", "verify"], ["replay"]):
        ran = chaos(capsys, *command, pack)
        assert ran.code in {Exit.MISTAKE, Exit.VIOLATED}, ran
        assert "Traceback" not in ran.err
        assert name in ran.out + ran.err


def test_show_refuses_a_changed_index(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An index that is not what was written is a sentence and code 3."""
    pack = make_pack(tmp_path, "test_a.py::test_kill")
    (pack / "evidence.sqlite").write_bytes(b"x")
    ran = chaos(capsys, "evidence", "show", pack)
    assert (ran.code, "cannot be trusted" in ran.err, ran.out) == (Exit.MISTAKE, True, "")


def test_list_shows_what_pytest_collects(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    """Only tests with the marker, from the given paths: a line each, all of it, or as JSON."""
    listed = chaos(capsys, "list")
    assert (listed.code, listed.out.splitlines()[1:]) == (Exit.HELD, ["1 scenario, 1 test"])
    assert listed.out.splitlines()[0].split()[:2] == ["01-kill-9", "1"]
    assert "test_a.py::test_kill" in chaos(capsys, "list", "--long").out
    (scenario,) = json.loads(chaos(capsys, "list", "--json", "test_a.py").out)
    assert scenario["tests"] == ["test_a.py::test_kill"]
    (project / "test_a.py").write_text("def test_other(): pass\n")
    assert json.loads(chaos(capsys, "list", "--json").out) == []


def test_list_tells_what_pytest_could_not_collect(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    """A test file that does not import is the user's mistake, with what pytest said of it."""
    (project / "test_a.py").write_text("import nothing_of_that_name\n")
    ran = chaos(capsys, "list")
    assert ran.code == Exit.MISTAKE
    assert "nothing_of_that_name" in ran.err


def test_list_without_the_plugin_says_so(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    """Where the plugin is switched off, pytest does not know the option, and that is shown."""
    (project / "conftest.py").unlink()
    ran = chaos(capsys, "list")
    assert (ran.code, "--chaos-list-json" in ran.err) == (Exit.MISTAKE, True)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_replay_exits_with_the_verdict_that_was_recorded(
    capfd: pytest.CaptureFixture[str], project: Path, tmp_path: Path, verdict: Verdict
) -> None:
    """Pytest knows passed and failed; the verdict comes from the records of the replay."""
    pack = make_pack(tmp_path, "test_a.py::test_kill", str(project))
    record = RunRecord(scenario=SCENARIO, node_id="n", run_id="r", seed="0x5eed", verdict=verdict)
    (project / "test_a.py").write_text(
        "import sys, pathlib, msgspec\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pytest_chaos.model.values import RunRecord, SessionHeader\n"
        "from pytest_chaos.evidence.records import SessionFolder\n"
        "def test_kill(pytestconfig):\n"
        "    folder = SessionFolder(pathlib.Path(pytestconfig.getoption('--chaos-results')), 'again')\n"
        "    folder.create(SessionHeader(session='again', seed='1', started='now'))\n"
        f"    folder.append(msgspec.json.decode({json.dumps(record_text(record))}, type=RunRecord))\n"
        f"    assert pytestconfig.getoption('--chaos-replay') == {str(pack)!r}\n"
        f"    assert {verdict.value!r} == 'HELD'\n"
    )
    old = SessionFolder(tmp_path / "results", "old")
    old.create(SessionHeader(session="old", seed="1", started="before"))
    assert cli.run(["replay", str(pack), "--results", str(tmp_path / "results")]) == Exit[verdict.name]
    assert "test_a.py" in capfd.readouterr().out


def record_text(record: RunRecord) -> str:
    """The record as a JSON string."""
    import msgspec

    return msgspec.json.encode(record).decode()


def test_replay_without_a_verdict_goes_by_pytest(
    capfd: pytest.CaptureFixture[str], project: Path, tmp_path: Path
) -> None:
    """A test that is gone is the user's mistake; a pass that recorded nothing proves nothing."""
    pack = make_pack(tmp_path, "test_a.py::test_kill", str(project))
    assert cli.run(["replay", str(pack), "--", "-p", "no:terminal"]) == Exit.INCONCLUSIVE
    (project / "test_a.py").write_text("")
    assert cli.run(["replay", str(pack)]) == Exit.MISTAKE
    assert "no match" in capfd.readouterr().err


def test_replay_finds_the_project_from_a_folder_within(
    capfd: pytest.CaptureFixture[str], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called below the project's root, it runs in the root."""
    pack = make_pack(tmp_path, "test_a.py::test_kill", str(project))
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "deep").mkdir()
    monkeypatch.chdir(project / "deep")
    cli.run(["replay", str(pack)])
    assert "1 passed" in capfd.readouterr().out


ELSEWHERE = "import pathlib\ndef test_kill():\n    pathlib.Path(__file__).with_name('has-run').touch()\n"


@pytest.mark.parametrize("how", ["absolute", "root", "above", "linked", "within", "another"])
def test_replay_runs_no_code_that_a_foreign_pack_brings(
    capfd: pytest.CaptureFixture[str], project: Path, tmp_path: Path, how: str
) -> None:
    """A pack may name any file as its test: only one of the current project is run,
    unless it is trusted.
    """
    if how == "within":
        folder = project / "pack" / "attachments"  # a pack that was unpacked within the project
    elif how == "another":
        folder = project / "elsewhere"
    else:
        folder = tmp_path / "elsewhere"
    node = {
        "absolute": f"{folder}/test_x.py", "root": "test_x.py", "above": f"../{folder.name}/test_x.py",
        "linked": "linked/test_x.py", "within": "pack/attachments/test_x.py", "another": "elsewhere/test_x.py",
    }[how]  # fmt: skip
    own_options = {} if how in {"linked", "within", "another"} else {"conftest.py": PLUGIN}
    files = {"test_x.py": ELSEWHERE, **own_options}
    attached = files if how == "within" else {}
    pack = make_pack(project if how == "within" else tmp_path, f"{node}::test_kill", str(folder), attached=attached)
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    if how == "linked":
        (project / "linked").symlink_to(folder)
    if how == "another":
        (folder / "evidence.sqlite").touch()  # a second pack, beside the one that is replayed
    arguments = ["replay", str(pack), "--results", str(tmp_path / "results")]
    assert cli.run(arguments) == Exit.MISTAKE
    said = capfd.readouterr()
    assert f"got {(folder / 'test_x.py').resolve()}" in said.err
    assert "--trust" in said.err
    assert not (folder / "has-run").exists()
    cli.run([*arguments, "--trust"])
    assert (folder / "has-run").exists(), capfd.readouterr()


@pytest.mark.parametrize("node_id", ["-x", "@args", "--rootdir=/", " ", "no_such.py::test"])
def test_replay_runs_nothing_that_is_no_test(capsys: pytest.CaptureFixture[str], tmp_path: Path, node_id: str) -> None:
    """A node id that pytest would read as an option, or that is nowhere,
    is refused before pytest starts.
    """
    ran = chaos(capsys, "replay", make_pack(tmp_path, node_id, str(tmp_path)))
    assert ran.code == Exit.MISTAKE
    assert ran.out == ""
    assert "chaos: " in ran.err


def test_replay_refuses_a_pack_that_was_changed(
    capsys: pytest.CaptureFixture[str], project: Path, tmp_path: Path
) -> None:
    """Any file that is not as written is reason enough not to run it."""
    pack = make_pack(tmp_path, "test_a.py::test_kill", str(project))
    (pack / "extra").touch()
    ran = chaos(capsys, "replay", pack)
    assert (ran.code, "not as it was written" in ran.err) == (Exit.MISTAKE, True)


@pytest.mark.parametrize(
    ("pytest_code", "verdict", "code"),
    [
        (0, None, Exit.INCONCLUSIVE),
        (1, None, Exit.VIOLATED),
        (2, Verdict.HELD, Exit.INCONCLUSIVE),
        (3, None, Exit.OUR_ERROR),
        (4, None, Exit.MISTAKE),
        (5, None, Exit.MISTAKE),
        (-9, None, Exit.INCONCLUSIVE),
        (1, Verdict.INCONCLUSIVE, Exit.INCONCLUSIVE),
    ],
)
def test_each_end_of_pytest_has_a_code(pytest_code: int, verdict: Verdict | None, code: Exit) -> None:
    """What pytest's exit means for a replay, with and without a verdict;
    a signal decides nothing.
    """
    assert cli._exit_of(pytest_code, verdict) is code


@click.command()
def extra() -> None:
    """Say something."""
    click.echo("something extra")


def fail() -> None:
    """Fail as a command of ours might."""
    msg = "the sky fell"
    raise RuntimeError(msg)


failing = click.Command("failing", callback=fail)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of other distributions: a good one, one that fails, one that is not there,
    one that is no command.
    """
    monkeypatch.setitem(sys.modules, "chaos_test_commands", sys.modules[__name__])
    found = {
        "extra": "chaos_test_commands:extra",
        "failing": "chaos_test_commands:failing",
        "gone": "chaos_module_that_is_gone:command",
        "odd": "chaos_test_commands:ROOT",
    }
    entries = {name: EntryPoint(name, value, "chaos.commands") for name, value in found.items()}
    monkeypatch.setattr(cli, "_foreign", lambda: entries)


@pytest.mark.usefixtures("foreign")
def test_commands_of_others_are_part_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """An entry point of the group is listed with its help and runs."""
    assert "Say something" in chaos(capsys, "--help").out
    assert chaos(capsys, "extra") == (Exit.HELD, "something extra\n", "")


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", ["gone", "odd"])
def test_a_command_that_cannot_be_loaded_is_named_and_takes_no_other_along(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It is in the help with its name, fails with code 4 when called, and the others work."""
    assert f"the command {name}" in " ".join(chaos(capsys, "--help").out.split())
    ran = chaos(capsys, name)
    assert (ran.code, f"the command {name} of" in ran.err) == (Exit.OUR_ERROR, True)
    assert chaos(capsys, "doctor").code == Exit.HELD


@pytest.mark.usefixtures("foreign")
def test_an_error_of_ours_is_one_sentence_and_the_traceback_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable no traceback, with it all of it; the code is 4 both times."""
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    quiet = chaos(capsys, "failing")
    assert (quiet.code, quiet.err.count("\n")) == (Exit.OUR_ERROR, 1)
    assert "the sky fell" in quiet.err
    assert cli.TRACEBACK in quiet.err
    monkeypatch.setenv(cli.TRACEBACK, "1")
    loud = chaos(capsys, "failing")
    assert (loud.code, "Traceback" in loud.err) == (Exit.OUR_ERROR, True)


def test_the_process_ends_with_the_code(tmp_path: Path) -> None:
    """As a real process: a mistake exits 3 and prints one line;
    for a reader that went away nothing is printed, and nothing held.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = "from pytest_chaos.cli.main import main; main()"
    command = [sys.executable, "-c", script, "evidence", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    read, write_end = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", script, "doctor", "--json"]
    with os.fdopen(write_end, "wb") as closed_pipe:
        gone = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, env=environment, check=False)
    assert (gone.returncode, gone.stderr) == (2, b"")
