"""Functions of test files as agents, however pytest imports the files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TEST = """
import pytest

def work(marks):
    marks.ack("worked", 1)

@pytest.mark.chaos(id="worked", title="It works")
def test_work(chaos):
    worker = chaos.spawn(work, name="worker")
    chaos.expect("it ends well", observed=worker.wait_exit(), holds=worker.wait_exit().code == 0)
"""


@pytest.mark.parametrize(
    ("mode", "folder", "package"),
    [("importlib", "", False), ("importlib", "tests", False), ("importlib", "tests/unit", True), ("append", "", False)],
)
def test_a_function_of_the_test_file_is_found(
    pytester: pytest.Pytester, mode: str, folder: str, *, package: bool
) -> None:
    """With --import-mode=importlib no import path leads to a test file:
    its functions are found by the file.
    """
    where: Path = pytester.path / folder
    where.mkdir(parents=True, exist_ok=True)
    for level in (where, *where.parents):
        if level == pytester.path or not package:
            break
        (level / "__init__.py").touch()
    (where / "test_work.py").write_text(TEST)
    pytester.makeini("[pytest]\n")
    result = pytester.runpytest_subprocess(
        f"--import-mode={mode}", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"
    )
    assert result.ret == 0, result.stdout.str()
