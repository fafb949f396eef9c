"""The documents: every example runs as it is shown, and the site is built without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.examples import Command, Example, File, examples_of, matches, problems_of, script_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [example for page in PAGES for example in examples_of(str(page.relative_to(ROOT)), page.read_text())]


def run(example: Example, folder: Path) -> list[str]:
    """Run an example in a folder and return its problems."""
    unwanted = ("PYTEST_", "PYTHONPATH", "CHAOS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment |= {"PYTEST_ADDOPTS": "-p no:randomly -p no:cacheprovider", "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "-c", script_of(example, folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return problems_of(example, done.stdout)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, id=f"{each.page}:{each.name}", marks=pytest.mark.nightly if each.is_nightly else ())
        for each in EXAMPLES
    ],
)
def test_an_example_does_what_its_page_shows(example: Example, tmp_path: Path) -> None:
    """The commands of a page print what the page says they print."""
    missing = [program for program in example.needs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    problems = run(example, tmp_path)
    assert not problems, "\n\n".join(problems)


def test_there_are_examples() -> None:
    """The rule above looks at something."""
    assert len(EXAMPLES) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_is_shown_compiles(page: Path) -> None:
    """Every Python block compiles, also one that no session uses."""
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        compile(block, page.name, "exec")


PAGE = """
```python
# greet.py
print("hello")
```

```console
$ python greet.py
hello
$ python -c 'import time; print(f"took {0.5} s, at /a/b")'
took 1.2 s, at ...
$ python -c 'raise SystemExit(3)'
```

<!-- example: another; needs python3; nightly -->

```console
$ ls
```
"""


def test_a_page_that_lies_is_found(tmp_path: Path) -> None:
    """A wrong output and a failure that is not shown are problems; the rest of the page is none."""
    first, second = examples_of("page.md", PAGE)
    assert first.steps[0] == File("greet.py", '# greet.py\nprint("hello")\n')
    assert (second.name, second.needs, second.is_nightly) == ("another", ("python3",), True)
    assert [problem.splitlines()[1] for problem in run(first, tmp_path)] == [
        "must end with status 0, or show what it prints; got 3"
    ]
    liar = Example("page.md", "liar", steps=[first.steps[0], Command("python greet.py", "hello, world")])
    (problem,) = run(liar, tmp_path)
    assert problem.endswith("must print:\nhello, world\ngot:\nhello\n")


@pytest.mark.parametrize(
    ("expected", "output", "answer"),
    [
        ("a\n...\nd", "a\nb\nc\nd\n", True),
        ("a\n...\nd", "a\nd\n", True),
        ("a\n...\nd", "a\nb\n", False),
        ("x ... z", "x y z\n", True),
        ("", "\n", True),
        ("", "text\n", False),
        ("took 2 s", "took 3.25 s\n", True),
        ("took 2 s", "took long\n", False),
    ],
)
def test_output_is_compared(expected: str, output: str, *, answer: bool) -> None:
    """Dots stand for any text or any lines, and durations may differ; nothing else may."""
    assert matches(expected, output) is answer
