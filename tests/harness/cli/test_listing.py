"""The lines of ``chaos list``."""

from __future__ import annotations

import pytest
from pytest_chaos.cli.listing import ListedScenario, lines, long_lines

MANY = tuple(
    ListedScenario(
        id=f"{number:02}-scenario" + "-of-more" * (number % 3),
        title="What is acknowledged stays acknowledged, whatever is killed " * (1 + number % 2),
        why="Nobody asks a process before it is killed.",
        steps=("It is killed.", "It goes on, from the newest checkpoint, to the very end of all that it had to do."),
        tests=tuple(f"test_{number}.py::test[{each}]" for each in range(number + 1)),
    )
    for number in range(20)
)


@pytest.mark.parametrize("width", [None, 80, 40])
def test_a_scenario_is_one_line(width: int | None) -> None:
    """Twenty scenarios are twenty lines and a sum: cut for a terminal, whole in a pipe."""
    *found, total = lines(MANY, width)
    assert (len(found), total) == (20, "20 scenarios, 210 tests")
    assert [line.split()[:2] for line in found] == [[each.id, str(len(each.tests))] for each in MANY]
    if width is None:
        assert all(line.endswith(each.title.strip()) for line, each in zip(found, MANY, strict=True))
    else:
        assert all(line.endswith("…") for line in found)
        assert max(map(len, found)) <= max(width, 50)


def test_the_long_form_has_everything_and_breaks_no_word() -> None:
    """Why, steps and tests are there; sentences are wrapped at spaces, ids of tests never."""
    found = list(long_lines(MANY, 60))
    words = {word for line in found for word in line.split()}
    assert {"checkpoint,", "1.", "2.", "test_19.py::test[19]"} <= words
    assert all(len(line) <= 60 for line in found if line.startswith("  "))


def test_no_scenario_is_said() -> None:
    """An empty project has a line, too."""
    assert list(lines(())) == ["0 scenarios, 0 tests"]
