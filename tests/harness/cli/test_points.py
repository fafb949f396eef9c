"""``chaos points``: what there is to stop at, in any program, with the code that does."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.cli import main

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """\
import json, os, pathlib, sys, threading

def save(name):
    with open("new.tmp", "w") as file:
        json.dump({"name": name}, file)
    pathlib.Path("new.tmp").replace(name)

def work(marks):
    for _ in range(3):
        save("state.json")
        sys.audit("shop.saved", 1)
    beside = threading.Thread(target=save, args=("beside.json",))
    beside.start()
    beside.join()
    marks.ack("done")

def fails():
    save("state.json")
    raise ValueError("no stock")

class Shop:
    def setup(self, directory):
        (directory / "before.json").touch()
    def run(self, directory, marks):
        save("run.json")
    def check(self, directory, marks):
        return []
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the program into an empty folder, and go there."""
    (tmp_path / "shop_program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "shop_program.py"


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return what the command prints as JSON."""
    main.run(["points", "--json", *words])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_function_shows_its_points_and_steps(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with count, path, the program's own line and the code, also in another thread."""
    places = listed(capsys, f"{shop}:work")["places"]
    found = {(each["code"], each["times"], each["line"]) for each in places}
    replaced = "shop_program.py:6 in save (pathlib.Path.replace)"
    assert {
        ('at_point("shop.saved")', 3, "shop_program.py:11 in work"),
        ('at_point("os.rename", path="state.json")', 3, replaced),
        ('at_step("rename", path="state.json")', 3, replaced),
        ('at_step("rename", path="beside.json")', 1, replaced),
        ('at_step("create", path="new.tmp")', 4, "shop_program.py:4 in save"),
    } <= found
    assert all(each["line"].startswith("shop_program.py:") for each in places)


def test_the_code_stops_the_program_there(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is to be pasted is Python, and a time that a plan takes."""
    import pytest_chaos

    for place in listed(capsys, f"{shop}:work")["places"]:
        when = eval(place["code"], {"at_point": pytest_chaos.at_point, "at_step": pytest_chaos.at_step})  # noqa: S307 - it is our own text
        assert place["name"] in {getattr(when, "point", ""), getattr(when, "step", "")}


def test_a_target_and_a_command(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A target of an exploration without what its setup did; a command without lines."""
    paths = {each["path"] for each in listed(capsys, f"{shop}:Shop")["places"]}
    assert paths == {"new.tmp", "run.json"}
    places = listed(capsys, "--", "sh", "-c", "touch a; mv a b")["places"]
    assert [each["code"] for each in places] == ['at_step("create", path="a")', 'at_step("rename", path="b")']
    programs = {each["line"].rpartition(" in ")[2] for each in places}  # a stripped one has an offset alone
    assert programs <= {"touch", "mv", "coreutils", ""}


def test_exit_codes_and_the_table(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """0 with something found, 2 for a program that failed, does not end or does nothing."""
    assert main.run(["points", f"{shop}:work"]) == 0
    assert 'at_point("shop.saved")' in capsys.readouterr().out
    assert main.run(["points", f"{shop}:fails"]) == 2
    out = capsys.readouterr().out
    assert "it ended with exit code 1; it printed last: ValueError: no stock" in out
    assert main.run(["points", "true"]) == 2
    assert "it passed no named point, and made no durable step" in capsys.readouterr().out
    assert main.run(["points", "--timeout", "0.2", "sleep", "60"]) == 2
    assert "it did not end within 0.2 s, and was ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "points must get a target, module:function, or a command after --; got nothing"),
        (["shop_program.py:nothing"], "must be defined in shop_program.py; got nothing. It defines: "),
        (["no_such_module_at_all:work"], "got ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        (["--timeout", "0", "shop_program.py:work"], "timeout_s must be a positive, finite number"),
        (["--", "no-such-program-at-all", "x"], "could not be started: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(shop: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """And exit code 3."""
    assert main.run(["points", *words]) == 3
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")
def test_a_compiled_program_shows_the_function_that_makes_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no line that could be noted, but a symbol, also as the child of a shell."""
    (tmp_path / "worker.c").write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        '__attribute__((noinline)) int keep(int file) { int n = write(file, "hi", 2); return n + fsync(file); }\n'
        'int main(void) { return keep(open("kept", O_CREAT | O_WRONLY, 0600)) != 2; }\n'
    )
    worker = tmp_path / "worker"
    built = subprocess.run(["cc", "-O0", "-o", worker, f"{worker}.c"], capture_output=True, check=False)
    if built.returncode:
        pytest.skip("cc cannot link")
    for words in ([str(worker)], ["sh", "-c", f"{worker}; exit 0"]):
        lines = {place["code"]: place["line"] for place in listed(capsys, "--", *words)["places"]}
        assert lines['at_step("write", path="kept")'].startswith("keep+0x"), lines
        assert lines['at_step("sync", path="kept")'].endswith(" in worker"), lines
        assert lines['at_step("create", path="kept")'].startswith("main+0x"), lines
