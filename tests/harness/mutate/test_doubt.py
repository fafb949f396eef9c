"""``chaos doubt``: patches of a target, applied to modules in memory, and what the tests notice."""

from __future__ import annotations

import difflib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli import main
from pytest_chaos.errors import UsageError
from pytest_chaos.mutate.patches import patch_of

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """\
import os


class Shop:
    def save(self, path, value):
        with open(path, "w") as file:
            file.write(str(value))
            file.flush()

    @staticmethod
    def word():
        return "sold"

    def unused(self):
        return 1


LIMIT = 3


def sell(marks, path):
    Shop().save(path, LIMIT)
    marks.ack(Shop.word(), LIMIT)
"""
TWINS = """\
def save(self, path, value):
    with open(path, "w") as file:
        file.write(str(value + 1))


def word():
    return "gone"


def unused(self):
    return 2


async def later():
    return 3
"""
TEST = """\
import pytest

@pytest.mark.chaos(id="shop")
def test_shop(chaos, tmp_path):
    chaos.spawn("shop:sell", kwargs={"path": str(tmp_path / "left")}, name="seller").wait_exit(timeout_s=20)
    left = (tmp_path / "left").read_text()
    chaos.expect("left", observed=left, holds=left == "3")
    chaos.expect("sold", observed=len(chaos.history.acknowledged("sold")), holds=True)
"""


def diff_of(after: str) -> str:
    """Return the diff from the shop to another source, as git writes it."""
    lines = difflib.unified_diff(
        SHOP.splitlines(keepends=True), after.splitlines(keepends=True), "a/shop.py", "b/shop.py"
    )
    return "".join(lines)


NO_FLUSH = diff_of(SHOP.replace("            file.flush()\n", ""))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, its twins and a diff; it is the current one."""
    for name, content in (("shop.py", SHOP), ("twins.py", TWINS), ("no-flush.patch", NO_FLUSH)):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_patches_are_noticed_let_pass_or_not_reached(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Agents get the patches; no file is changed; what is noticed is kept, and decides."""
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (project / "test_shop.py").write_text(TEST)
    named = ["no-flush.patch", "shop:Shop.save=twins:save", "shop:Shop.unused=twins:unused"]
    options = ["--jobs", "2", "--seed", "one", "--json", "--at-least", "0.5"]

    assert main.run(["doubt", *named, *options, "--", "pytest", "-m", "chaos", "-q"]) == 1

    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [each["outcome"] for each in document["results"]] == ["let pass", "noticed", "not reached"]
    assert document["noticed"] == 1
    assert document["results"][1]["signature"] == "expectation:left"
    assert "-            file.flush()" in document["results"][0]["diff"]
    assert "less than 50% was noticed" in printed.err
    assert (project / "shop.py").read_text() == SHOP
    assert '"defect":"shop:Shop.save=twins:save"' in (project / "chaos-results/mutation/planted.jsonl").read_text()


def test_a_diff_is_applied_in_memory(project: Path) -> None:
    """Its functions are those with a changed line; with or without the folders that git writes."""
    patch = patch_of("no-flush.patch")
    (module,) = patch.modules
    assert (module.before.name, module.line, set(module.functions)) == ("shop", 8, {"Shop.save"})
    assert patch.is_counted
    (project / "plain.diff").write_text(NO_FLUSH.replace("a/shop", "shop").replace("b/shop", "shop"))
    assert patch_of("plain.diff").modules[0].source == module.source


def test_a_diff_of_the_repository_is_found_from_a_folder_in_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``git diff`` names files from the top folder on; a package is imported by its whole name."""
    package = project / "src" / "market"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "shop.py").write_text(SHOP)
    subprocess.run(["git", "init", "-q", "."], cwd=project, check=True)
    (package / "market.diff").write_text(NO_FLUSH.replace("/shop.py", "/src/market/shop.py"))
    monkeypatch.chdir(package)
    (module,) = patch_of("market.diff").modules
    assert (module.before.name, module.before.path) == ("market.shop", package / "shop.py")


def test_what_is_at_the_top_of_a_module_is_not_counted(project: Path) -> None:
    """It is executed at the import, of which nothing is seen."""
    (project / "limit.diff").write_text(diff_of(SHOP.replace("LIMIT = 3", "LIMIT = 4")))
    patch = patch_of("limit.diff")
    assert not patch.is_counted
    assert "LIMIT = 4" in patch.modules[0].source
    assert not patch_of("shop:Shop.unused=twins:later").is_counted


def test_a_static_method_stays_one(project: Path) -> None:
    """And a replacement is there before anybody imports the module's names."""
    code = patch_of("shop:Shop.word=twins:word").modules[0].source
    (project / "patched.py").write_text(code)
    inside = "from pytest_chaos.mutate.runner import INSIDE; import sys; sys.path.insert(0, str(INSIDE)); "
    said = "import patched; print(patched.Shop.word(), patched.Shop().word())"
    done = subprocess.run(["python", "-c", inside + said], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == "gone gone\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shop.py", "a patch must be a diff (no-sync.patch), or module:function=module:function; got 'shop.py'."),
        ("none.patch", "a patch must be a file that can be read; got none.patch (No such file or directory)."),
        ("shop:Shop.sell=twins:save", "the function that is replaced must be in "),
        ("shop:Shop.save=twins:sell", "the replacement must be in "),
        ("shop:Shop.save=no_such:sell", "the package must be one that can be imported here; got 'no_such'"),
        ("1:x=twins:save", "the function that is replaced must be module:name, such as shop.store:save; got '1:x'."),
        ("empty.diff", "empty.diff must be a diff; got '"),
        ("other.diff", "other.diff must change files that are there; got other.py."),
        ("old.diff", "old.diff must apply to what is in "),
        ("text.diff", "text.diff must change Python files of this project alone; got notes.txt."),
        ("broken.diff", "shop must be a module that can be imported; got SyntaxError"),
    ],
)
def test_a_patch_that_is_none_is_told_in_a_sentence(project: Path, text: str, message: str) -> None:
    """What it must be, what was given, and what to do."""
    (project / "notes.txt").write_text("a\n")
    (project / "empty.diff").touch()
    (project / "other.diff").write_text(NO_FLUSH.replace("shop", "other"))
    (project / "old.diff").write_text(NO_FLUSH.replace("str(value)", "repr(value)"))
    (project / "text.diff").write_text("--- a/notes.txt\n+++ b/notes.txt\n@@ -1 +1 @@\n-a\n+b\n")
    (project / "broken.diff").write_text(diff_of(SHOP.replace("LIMIT = 3", "LIMIT = (")))
    with pytest.raises(UsageError) as caught:
        patch_of(text)
    assert message in str(caught.value)


def test_a_call_without_patch_or_command_is_a_mistake(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are asked for in one sentence; so is a command that is not pytest."""
    assert project.is_dir()
    assert main.run(["doubt", "--", "pytest"]) == 3
    assert "doubt must get a patch; got none." in capsys.readouterr().err
    assert main.run(["doubt", "no-flush.patch"]) == 3
    assert "doubt must get the test command after --; got nothing." in capsys.readouterr().err


def test_tests_that_fail_by_themselves_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A patch cannot be blamed for them; and its name may begin as that of pytest does."""
    (project / "test_shop.py").write_text("import pytest\n\n@pytest.mark.chaos\ndef test_it():\n    assert False\n")
    (project / "pytest-patch.diff").write_text(NO_FLUSH)
    assert main.run(["doubt", "pytest-patch.diff", "--", "pytest", "-m", "chaos"]) == 3
    assert "the tests must pass without a patch; got 1 failed, first test_shop.py::test_it: " in capsys.readouterr().err
