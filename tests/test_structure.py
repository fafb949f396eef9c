"""The rules of design.md and style.md that no tool keeps for us:
who may import whom, public names, and small habits.

Each rule is a function from source text to problems, tried here on a bad snippet before it is let
loose on the repository: a lint that finds nothing because it looks at nothing would be worse than
none (TigerBeetle tests its tidy script so).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import rooms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]

SOURCE_ROOTS = ("harness", "reports", "recovery")
"""Folders whose content is imported by its own name: ``harness/pytest_chaos`` is ``pytest_chaos``.
"""
ROOMS = frozenset({"pytest_chaos", "chaos_reports", "durable_agents", "scenarios", "tests"})
PURE = frozenset({"model", "checkers", "errors"})
"""Rooms of pytest_chaos that only compute: no process, no clock, no file."""
FOR_REPORTS = frozenset({"model", "errors", "evidence"})
"""The rooms of pytest_chaos that the reports may use."""
EFFECTS = frozenset(
    {"asyncio", "ctypes", "fcntl", "multiprocessing", "os", "psutil", "select", "shutil", "signal", "socket", "sqlite3"}
    | {"subprocess", "tempfile", "threading", "time"}
)
RANDOMNESS = frozenset({"random", "numpy"})
PYTEST = frozenset({"pytest", "_pytest", "xdist", "pluggy"})

PUBLIC_NAMES_MAX = 33
MODULE_LINES_MAX = 800
FILES_MAX = 15
SHARED_CLASS_NAMES = {
    "Verdict": "of a run in pytest_chaos, of a checkpoint's evidence in durable_agents; both are public",
}
"""Class names that stand twice in the product, and why."""


class Import(NamedTuple):
    """One imported name, absolute and dotted, and the line it is on."""

    name: str
    line: int


def imports_of(source: str, module: str = "module", *, is_package: bool = False) -> list[Import]:
    """Return everything the source imports, relative and dynamic imports with literal names
    included.
    """
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=is_package)
            found += [Import(f"{base}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and (name := _dynamic(node)):
            found.append(Import(name, node.lineno))
    return found


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts[: len(parts) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def _dynamic(node: ast.Call) -> str | None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in {"import_module", "__import__", "find_spec"} or not node.args:
        return None
    first = node.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def import_problems(path: str, source: str) -> list[str]:
    """Return where the module at this path, relative to the root, breaks the import table."""
    parts = Path(path).with_suffix("").parts
    parts = parts[1:] if parts[0] in SOURCE_ROOTS else parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return [
        f"{path}:{line}: {module} imports {name}: {problem}"
        for name, line in imports_of(source, module, is_package=is_package)
        if (problem := _forbidden(module.split("."), name.split(".")))
    ]


def _forbidden(module: list[str], name: list[str]) -> str | None:
    package, room = module[0], module[1] if len(module) > 1 else ""
    if package == "pytest_chaos":
        return _forbidden_in_harness(module, name)
    if package == "durable_agents":
        if name[0] in (ROOMS | PYTEST) - {"durable_agents"}:
            return "the recovery core knows neither the harness nor pytest"
    elif package == "chaos_reports":
        if name[0] in ROOMS - {"chaos_reports", "pytest_chaos"}:
            return "reports know nothing but records and evidence"
        if name[0] == "pytest_chaos" and (len(name) < 2 or name[1] not in FOR_REPORTS):
            return f"of pytest_chaos, reports may use {', '.join(sorted(FOR_REPORTS))}"
        if name[0] in PYTEST and room != "plugin":
            return "only chaos_reports/plugin.py may know pytest"
    return None


def _forbidden_in_harness(module: list[str], name: list[str]) -> str | None:
    room = module[1] if len(module) > 1 else ""
    if name[0] in ROOMS - {"pytest_chaos"}:
        return "pytest_chaos knows no other package of ours"
    if name[0] in RANDOMNESS and module != ["pytest_chaos", "model", "seed"]:
        return "only pytest_chaos/model/seed.py draws random numbers"
    if name[0] in PYTEST and room != "plugin":
        return "only the room plugin may know pytest"
    if name[:2] == ["pytest_chaos", "plugin"] and room != "plugin":
        return "nothing depends on the plugin"
    if room in PURE and name[0] in EFFECTS:
        return "a pure module has no effects"
    if room in PURE and name[0] == "pytest_chaos" and (len(name) < 2 or name[1] not in PURE):
        return "a pure module uses pure modules only"
    return None


def folder_problems(paths: list[str]) -> list[str]:
    """Return the folders with more modules than a reader can keep in mind;
    ``__init__.py`` is not counted.
    """
    sizes = Counter(str(Path(path).parent) for path in paths if Path(path).name != "__init__.py")
    return [f"{folder}: {size} modules, at most {FILES_MAX}" for folder, size in sizes.items() if size > FILES_MAX]


def shadow_problems(path: str, source: str) -> list[str]:
    """Return a module of tests or scenarios that has the name of one of Python's own.

    Its folder comes to the front of the import path when it is explored by its file.
    """
    del source
    return [f"{path}: hides Python's own module"] if Path(path).stem in sys.stdlib_module_names else []


def sleep_problems(path: str, source: str) -> list[str]:
    """Return where a test sleeps. A line that says ``sleeps because`` is an exception that explains
    itself.
    """
    lines = source.splitlines()
    tree = ast.parse(source)
    names = {"time.sleep"} | {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
        if alias.name == "sleep"
    }
    return [
        f"{path}:{node.lineno}: a test never sleeps: wait for a condition with a bound, or move a clock"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
        if "sleeps because" not in lines[node.lineno - 1]
    ]


def length_problems(path: str, source: str) -> list[str]:
    """Return whether a module is long and does not say, with the words ``long because``,
    why it has to be.
    """
    lines = source.count("\n")
    if lines <= MODULE_LINES_MAX or "long because" in source:
        return []
    return [f"{path}: {lines} lines, at most {MODULE_LINES_MAX}: divide it, or say in it that it is long because ..."]


def class_problems(sources: Iterable[tuple[str, str]]) -> list[str]:
    """Return the class names that several modules use: one word has one meaning."""
    places: dict[str, list[str]] = {}
    for path, source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    return [
        f"class name {name} must stand once; got {', '.join(found)}. Rename the less public one"
        for name, found in sorted(places.items())
        if len(found) > 1 and name not in SHARED_CLASS_NAMES
    ]


def docstring_problems(path: str, source: str) -> list[str]:
    """Return the test functions without a docstring."""
    return [
        f"{path}:{node.lineno}: {node.name} has no docstring: say in one sentence what it proves"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]


def exception_problems(path: str, source: str) -> list[str]:
    """Return the lines that switch a lint off without a code and a reason:
    ``noqa``, a colon, codes, ``-``, reason.
    """
    return [
        f"{path}:{number}: give the code and a reason, as in '# noqa: S311 - repeatable on purpose'"
        for number, line in enumerate(source.splitlines(), start=1)
        if re.search(r"#\s*noqa\b", line)
        if not re.search(r"#\s*noqa: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S", line)
    ]


def index_problems(path: str, content: str) -> list[str]:
    """Return the lines that name a package index: what is committed installs from wherever its user
    installs from.
    """
    urls = (
        r"https?://" if Path(path).suffix == ".txt" else r"https?://\S*(pypi|simple|index|mirror|nexus|artifact|devpi)"
    )
    option = r"(index-url|find-links|trusted-host)"
    return [
        f"{path}:{number}: names a package index: leave the choice to whoever installs"
        for number, line in enumerate(content.splitlines(), start=1)
        if re.search(f"{urls}|{option}", line, re.IGNORECASE)
    ]


def _sources(*rooms: str) -> Iterator[tuple[str, str]]:
    for room in rooms or (*SOURCE_ROOTS, "scenarios", "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _problems(lint: Callable[[str, str], list[str]], *rooms: str) -> list[str]:
    return [problem for path, source in _sources(*rooms) for problem in lint(path, source)]


def test_every_room_has_sources() -> None:
    """The lints below look at something: a moved folder cannot make them pass."""
    seen = {tuple(path.split("/")[:2]) for path, _ in _sources()}
    assert {("harness", "pytest_chaos"), ("reports", "chaos_reports"), ("recovery", "durable_agents")} <= seen
    assert {room for room, _ in seen} == {*SOURCE_ROOTS, "scenarios", "tests"}


def test_imports_follow_the_table() -> None:
    """Nobody imports what design.md does not let them import."""
    assert _problems(import_problems) == []


def test_no_room_is_crowded() -> None:
    """A folder has at most fifteen modules."""
    assert folder_problems([path for path, _ in _sources()]) == []


def test_no_module_hides_one_of_pythons_own() -> None:
    """An agent imports what it means, whatever folder is on its path."""
    assert _problems(shadow_problems, "tests", "scenarios") == []
    assert shadow_problems("scenarios/targets/concurrent.py", "")


def test_a_crowded_room_is_found() -> None:
    """One module too many is found."""
    paths = [f"harness/pytest_chaos/x/m{number}.py" for number in range(FILES_MAX)]
    assert folder_problems([*paths, "harness/pytest_chaos/x/__init__.py"]) == []
    assert len(folder_problems([*paths, "harness/pytest_chaos/x/more.py"])) == 1


def test_a_class_name_stands_once() -> None:
    """Two classes of the product have one name only where a reason is given."""
    assert class_problems(_sources(*SOURCE_ROOTS)) == []


def test_a_class_name_that_stands_twice_is_found() -> None:
    """A second class of a name is found, also within a function; a shared name is left alone."""
    sources = [("a.py", "class A: ...\nclass Verdict: ..."), ("b.py", "def f():\n  class A: ...\nclass Verdict: ...")]
    assert class_problems(sources) == [
        "class name A must stand once; got a.py:1, b.py:2. Rename the less public one",
    ]


def test_tests_do_not_sleep() -> None:
    """Neither tests nor scenarios wait for time to pass."""
    assert _problems(sleep_problems, "tests", "scenarios") == []


def test_long_modules_explain_themselves() -> None:
    """A module is short, or says why it is not."""
    assert _problems(length_problems) == []


def test_every_test_says_what_it_proves() -> None:
    """Every test and every scenario has a docstring."""
    assert _problems(docstring_problems, "tests", "scenarios") == []


def test_every_exception_from_a_lint_has_a_reason() -> None:
    """Every noqa has a code and says why."""
    ours = str(Path(__file__).relative_to(ROOT))  # the snippets of bad source below are the point of this module
    assert [problem for problem in _problems(exception_problems) if not problem.startswith(ours)] == []


def test_no_package_index_is_committed() -> None:
    """A clone installs from the index its user has configured."""
    paths = [*ROOT.glob("constraints*.txt"), *ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml"]
    paths += [path for path in ROOT.glob(".ci/*") if path.is_file()]

    assert [problem for path in paths for problem in index_problems(path.name, path.read_text(encoding="utf-8"))] == []


def test_the_harness_has_few_public_names_and_all_are_documented() -> None:
    """What users import from ``pytest_chaos`` is listed, resolves, and says what it is for."""
    package = importlib.import_module("pytest_chaos")
    names = list(package.__all__)

    assert len(names) <= PUBLIC_NAMES_MAX
    assert names == sorted(set(names))
    undocumented = [name for name in names if not name.startswith("__") and not inspect.getdoc(getattr(package, name))]
    assert undocumented == []


def test_the_harness_has_no_other_public_names() -> None:
    """Nothing of our own can be had from ``pytest_chaos`` itself but the listed names."""
    package = importlib.import_module("pytest_chaos")
    ours = {
        name for name, value in vars(package).items() if getattr(value, "__module__", "").startswith("pytest_chaos")
    }

    assert {name for name in ours if not name.startswith("_")} <= set(package.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(package, "no_such_name")  # noqa: B009 - written out, mypy would refuse it


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("harness/pytest_chaos/model/values.py", "import os"),
        ("harness/pytest_chaos/model/plan.py", "def f():\n    import subprocess as s"),
        ("harness/pytest_chaos/checkers/durability.py", "from time import monotonic"),
        ("harness/pytest_chaos/model/history.py", "import socket.something"),
        ("harness/pytest_chaos/model/plan.py", "import random"),
        ("harness/pytest_chaos/runtime/agent.py", "from random import choice"),
        ("harness/pytest_chaos/model/history.py", "from pytest_chaos import evidence"),
        ("harness/pytest_chaos/model/history.py", "from pytest_chaos import Verdict"),
        ("harness/pytest_chaos/model/history.py", "import pytest_chaos"),
        ("harness/pytest_chaos/checkers/__init__.py", "from ..runtime import agent"),
        ("harness/pytest_chaos/model/values.py", "from ..evidence.records import read"),
        ("harness/pytest_chaos/model/history.py", "import importlib\nimportlib.import_module('pytest_chaos.evidence')"),
        ("harness/pytest_chaos/evidence/records.py", "import pytest"),
        ("harness/pytest_chaos/evidence/records.py", "from _pytest.config import Config"),
        ("harness/pytest_chaos/evidence/records.py", "from pytest_chaos.plugin import x"),
        ("harness/pytest_chaos/plugin/runs.py", "import durable_agents.store"),
        ("harness/pytest_chaos/__init__.py", "from scenarios import agents"),
        ("harness/pytest_chaos/cli/main.py", "from importlib import import_module\nimport_module('chaos_reports.cli')"),
        ("harness/pytest_chaos/cli/main.py", "__import__('chaos_reports')"),
        ("recovery/durable_agents/store/sqlite/store.py", "import pytest_chaos"),
        ("recovery/durable_agents/store/sqlite/store.py", "from chaos_reports import matrix"),
        ("recovery/durable_agents/store/rows.py", "if TYPE_CHECKING:\n    from pytest_chaos.model.values import Mark"),
        ("recovery/durable_agents/work/tasks.py", "import pytest"),
        ("reports/chaos_reports/matrix.py", "import pytest"),
        ("reports/chaos_reports/matrix.py", "from pytest_chaos.runtime import agent"),
        ("reports/chaos_reports/matrix.py", "from pytest_chaos import runtime"),
        ("reports/chaos_reports/matrix.py", "import pytest_chaos"),
        ("reports/chaos_reports/plugin.py", "from pytest_chaos.plugin import x"),
        ("reports/chaos_reports/plugin.py", "import durable_agents"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    """However it is written, an import against the table is found, once, in its line."""
    (problem,) = import_problems(path, source)

    assert problem.startswith(f"{path}:{source.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("harness/pytest_chaos/model/seed.py", "import random, secrets, hashlib"),
        ("harness/pytest_chaos/checkers/durability.py", "from pytest_chaos.model.values import Finding\nimport math"),
        ("harness/pytest_chaos/checkers/__init__.py", "from .durability import lost\nfrom ..model import values"),
        ("harness/pytest_chaos/evidence/records.py", "import os\nfrom pytest_chaos.runtime import journal"),
        ("harness/pytest_chaos/plugin/runs.py", "import pytest\nfrom pytest_chaos.plugin import hookspecs"),
        ("recovery/durable_agents/work/worker.py", "import os, sqlite3\nfrom ..clock import Clock"),
        ("reports/chaos_reports/matrix.py", "from pytest_chaos.model.values import Verdict\nimport jinja2"),
        ("reports/chaos_reports/plugin.py", "import pytest"),
        ("scenarios/work/test_01.py", "import pytest, pytest_chaos, durable_agents, chaos_reports"),
        ("tests/test_all.py", "import pytest, pytest_chaos.plugin, durable_agents, chaos_reports.plugin, scenarios"),
    ],
)
def test_an_allowed_import_is_left_alone(path: str, source: str) -> None:
    """What the table allows is no problem."""
    assert import_problems(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "from time import sleep\ndef f(): sleep(0.1)",
        "from time import sleep as wait\nasync def f(): wait(0)",
    ],
)
def test_a_sleep_is_found(source: str) -> None:
    """A sleep is found by whatever name it was imported; one that explains itself is left alone."""
    (problem,) = sleep_problems("tests/x.py", source)

    assert problem.startswith("tests/x.py:2: a test never sleeps")
    assert sleep_problems("tests/x.py", f"{source}  # sleeps because it plays a program that hangs") == []
    assert sleep_problems("tests/x.py", "text = 'time.sleep(1)'\nclock.sleep(1)\nsleep(1)") == []


def test_a_long_module_is_found() -> None:
    """One line too many is found, and an explanation excuses it."""
    source = "pass\n" * (MODULE_LINES_MAX + 1)

    assert len(length_problems("x.py", source)) == 1
    assert length_problems("x.py", source[len("pass\n") :]) == []
    assert length_problems("x.py", f"{source}# long because its tables are\n") == []


def test_a_test_without_a_docstring_is_found() -> None:
    """Functions, coroutines and methods are looked at; helpers are not."""
    source = "def test_a(): pass\nclass T:\n  async def test_b(self): pass\ndef helper(): pass\ndef test_c(): 'It is.'"

    assert [problem.split(": ")[0] for problem in docstring_problems("x.py", source)] == ["x.py:1", "x.py:3"]


@pytest.mark.parametrize("comment", ["# noqa", "#noqa: S101", "# noqa: S101", "# noqa: S101 -", "# noqa: S101, B009"])
def test_an_unexplained_exception_is_found(comment: str) -> None:
    """A lint that is switched off without a code or a reason is found."""
    assert len(exception_problems("x.py", f"x = 1  {comment}")) == 1
    assert exception_problems("x.py", "x = 1  # noqa: S101, B009 - because it is a test") == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("constraints.txt", "--index-url https://packages.example.org/simple"),
        ("constraints.txt", "pytest @ https://example.org/pytest.whl"),
        ("pyproject.toml", 'url = "https://mirror.example.org/packages"'),
        ("pyproject.toml", "extra-index-url = x"),
        ("run", "pip install --trusted-host example.org x"),
    ],
)
def test_a_package_index_is_found(path: str, line: str) -> None:
    """Options and addresses of an index are found; the address of a project is none."""
    assert len(index_problems(path, f"a\n{line}\n")) == 1
    assert index_problems("constraints.txt", "pytest==9.2.0\n") == []
    assert index_problems("pyproject.toml", 'Source = "https://github.com/someone/pytest-chaos"\n') == []


def run_by_path(path: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Execute the module level of a script as ``python path`` does, without its main part."""
    program = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='imported')"
    command = [sys.executable, "-I", "-c", program, str(path.parent), str(path)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/benchmarks/**/benchmark_*.py")), ids=lambda path: path.stem)
def test_a_benchmark_runs_by_its_path(path: Path, tmp_path: Path) -> None:
    """A benchmark imports what it needs when it is run by its path, in any directory."""
    run = run_by_path(path, tmp_path)
    assert run.returncode == 0, run.stderr


def test_an_import_that_needs_the_root_is_found(tmp_path: Path) -> None:
    """A script that imports ``tests`` without making it importable is found."""
    script = tmp_path / "benchmark_x.py"
    script.write_text("import tests.waiting\n", encoding="utf-8")

    assert "No module named 'tests'" in run_by_path(script, ROOT).stderr


def test_the_picture_of_the_rooms_is_up_to_date() -> None:
    """docs/architecture.md shows the imports as they are."""
    text = rooms.DOCUMENT.read_text(encoding="utf-8")
    assert text == rooms.with_picture(text), "run python -m tests.rooms"
