"""What the README says is true: its example is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
CHAOS = Path(sys.executable).with_name("chaos")
UNLINK = "    path.unlink(missing_ok=True)  # the old one is in the way\n"


@pytest.fixture
def example(pytester: pytest.Pytester) -> str:
    """Return the README's example, in an empty project."""
    pytester.makeini("[pytest]\n")
    return python_blocks()[0]


def python_blocks() -> list[str]:
    """Return the README's Python examples: a test, and a target that is explored."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_finds_the_failure_it_promises(pytester: pytest.Pytester, example: str) -> None:
    """The example is violated, deterministically, by the finding and with the receipt that the
    README shows.
    """
    pytester.makepyfile(test_orders=example)
    result = pytester.runpytest_subprocess("-m", "chaos", "test_orders.py", "-p", "no:randomly")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "VIOLATED: A killed worker loses no order",
            "  [[]expectation:acknowledged orders that are lost] acknowledged orders that are lost: [[]1, 2, 3, *",
            "  fault: kill worker at os.rename (500th time): process ended by signal 9",
        ]
    )


def test_the_example_holds_without_the_mistake(pytester: pytest.Pytester, example: str) -> None:
    """Without the unlink, as the README says, the scenario holds."""
    assert UNLINK in example
    pytester.makepyfile(test_orders=example.replace(UNLINK, ""))
    result = pytester.runpytest_subprocess("-m", "chaos", "test_orders.py", "-p", "no:randomly")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*HELD*orders*"])


FLUSHED = """            descriptor = os.open(new, os.O_RDWR)
            os.fsync(descriptor)
            os.close(descriptor)
            new.rename(path)
            folder = os.open(directory, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_target_loses_what_the_readme_says(pytester: pytest.Pytester) -> None:
    """Explored as it stands: held against kills, violated by a power loss,
    with the line that builds the state.
    """
    pytester.makepyfile(orders=python_blocks()[1])
    result = pytester.run(CHAOS, "explore", "orders.py:Target", "--seed", "1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*crash * HELD *15 of 15 crash points*",
            "*power * VIOLATED *126 power-loss states (sampled)*",
            "*order 1 is lost",
        ]
    )
    result.stdout.fnmatch_lines(["  again: chaos explore orders.py:Target --seed 1 --state 'power:ext4:4m2:1.w'"])


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_target_holds_when_it_flushes(pytester: pytest.Pytester) -> None:
    """With the file flushed before the rename and the folder after it, as the README says,
    all four families hold.
    """
    code = python_blocks()[1]
    assert "            new.rename(path)\n" in code
    pytester.makepyfile(orders="import os\n" + code.replace("            new.rename(path)\n", FLUSHED))
    result = pytester.run(CHAOS, "explore", "orders.py:Target", "--seed", "1")
    assert result.ret == 0, result.stdout.str()


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_server_does_not_come_up_as_the_readme_says(pytester: pytest.Pytester) -> None:
    """Explored as it stands: a kill leaves a file with which the server does not start again."""
    pytester.makepyfile(shop=python_blocks()[2])
    result = pytester.run(CHAOS, "explore", "shop.py:Target", "--seed", "1", "--jobs", "2", "--faults", "crash,power")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*crash * VIOLATED *2 of 8 crash states violated*",
            "*power * VIOLATED *8 of 15 power-loss states violated*",
            "Target: it does not start again: the server ended with exit code 1 before it was ready; *JSONDecodeError*",
            "  confirmed by a real kill: killed before step 2: write orders.json 6 bytes at 0",
        ]
    )
