"""What the README says is true: its example is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
UNLINK = "    path.unlink(missing_ok=True)  # the old one is in the way\n"


@pytest.fixture
def example(pytester: pytest.Pytester) -> str:
    """Return the README's example, in an empty project."""
    pytester.makeini("[pytest]\n")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return str(code)


def test_the_example_finds_the_failure_it_promises(pytester: pytest.Pytester, example: str) -> None:
    """The example is violated, deterministically, by the finding and with the receipt that the README shows."""
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
