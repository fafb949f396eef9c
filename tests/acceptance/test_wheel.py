"""Both built wheels in an empty environment: what they install,
and projects of other people that use them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.once import made_once

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("harness", "recovery", "reports", "scenarios", "pyproject.toml", "README.md", "LICENSE")
OUR_NAMES = {"pytest_chaos", "chaos_reports", "durable_agents"}


WORKER = """
def work(marks, count):
    for number in range(count):
        marks.ack("order", number)
"""
USES_WORKER = """
import pytest

@pytest.mark.chaos(id="shop")
def test_shop(chaos):
    chaos.spawn("shop.worker:work", kwargs={"count": 3}, name="worker").wait_exit()
    acknowledged = [mark.key for mark in chaos.history.acknowledged("order")]
    chaos.expect("acknowledged", observed=acknowledged, holds=acknowledged == [0, 1, 2])
"""


def execute(*command: str | Path, folder: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without anything of this session in its environment."""
    unwanted = ("PYTEST_", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment that holds the wheel and what it depends on,
    and nothing else.
    """
    return made_once(tmp_path_factory, "wheel", install) / "venv" / "bin" / "python"


def install(folder: Path) -> None:
    """Build the wheel from a copy, since building must not write into the tree that is tested,
    and install it.
    """
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    wheels = [build(source, folder / "harness-wheel"), build(source / "recovery", folder / "recovery-wheel")]
    shutil.rmtree(source)
    made = execute(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    assert made.returncode == 0, made.stderr
    interpreter = folder / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    installed = execute(interpreter, "-m", "pip", "install", "-q", "-c", constraints, *wheels, folder=folder)
    assert installed.returncode == 0, installed.stderr


def build(source: Path, output: Path) -> Path:
    """Build the wheel of the distribution in ``source`` and return it."""
    output.mkdir()
    built = execute(sys.executable, "-m", "build", "--wheel", "--outdir", output, source, folder=output)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = output.glob("*.whl")
    return wheel


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project that is not ours, with the worker tutorial's test in it."""
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorials" / "worker.md").read_text(), re.DOTALL)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_orders.py").write_text(code)
    return tmp_path


def test_the_wheel_works_in_a_project_that_is_not_ours(python: Path, project: Path) -> None:
    """The worker tutorial's test finds its failure, replays it, and leaves a matrix and a pack."""
    done = execute(python, "-m", "pytest", "-m", "chaos", folder=project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reproduced: 2/2" in done.stdout
    assert (project / "chaos-results/latest/matrix.html").exists()
    assert len(list(project.glob("chaos-results/latest/evidence/*/manifest.json"))) == 1
    listed = execute(python.parent / "chaos", "list", folder=project)
    assert listed.returncode == 0
    assert "orders" in listed.stdout


def test_an_agent_may_be_named_by_a_module_of_the_project(python: Path, project: Path) -> None:
    """A function of the project's own package is started by its name;
    its reports say where it ran.
    """
    (project / "shop").mkdir()
    (project / "shop" / "__init__.py").write_text("")
    (project / "shop" / "worker.py").write_text(WORKER)
    (project / "test_orders.py").write_text(USES_WORKER)
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    done = execute(python.parent / "pytest", "-p", "no:cacheprovider", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HELD" in done.stdout


def test_the_wheel_has_the_bug_bank(python: Path, tmp_path: Path) -> None:
    """The entries of the checkout are in the wheel, and one is shown with what it installs."""
    listed = execute(python.parent / "chaos", "bank", "list", "--json", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    names = {entry["name"] for entry in json.loads(listed.stdout)["entries"]}
    assert names == {file.parent.name for file in (ROOT / "scenarios" / "bank").glob("*/entry.toml")}
    done = execute(python.parent / "chaos", "bank", "run", "lightning_in_place", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("distribution", "names"),
    [("pytest_chaos", {"pytest_chaos", "chaos_reports"}), ("durable_agents", {"durable_agents"})],
)
def test_a_wheel_installs_no_name_but_ours(python: Path, distribution: str, names: set[str]) -> None:
    """The top-level names of each wheel are the import names of ours, and its own metadata."""
    code = (
        "import importlib.metadata as m\n"
        f"print(*sorted({{file.parts[0] for file in m.files({distribution!r}) if file.parts[0] != '..'}}))"
    )
    done = execute(python, "-c", code, folder=python.parent)
    found = {name for name in done.stdout.split() if not name.endswith(".dist-info")}
    assert found == names


def test_the_core_installs_no_test_plugin(python: Path) -> None:
    """The recovery core is a distribution of its own that needs neither pytest nor the harness."""
    code = "import importlib.metadata as m; print(*m.requires('durable_agents'), sep='\\n')"
    required = execute(python, "-c", code, folder=python.parent).stdout
    assert "msgspec" in required
    assert "pytest" not in required


def test_every_package_is_typed(python: Path, project: Path) -> None:
    """Each package says that it has types."""
    code = (
        "import pytest_chaos as a, chaos_reports as b, durable_agents as c; print(*[p.__path__[0] for p in (a, b, c)])"
    )
    done = execute(python, "-c", code, folder=project)
    places = done.stdout.split()
    assert len(places) == len(OUR_NAMES)
    assert all(Path(place, "py.typed").exists() for place in places)


@pytest.mark.parametrize("source_layout", [False, True], ids=["flat", "src"])
def test_a_project_keeps_its_own_package_names(python: Path, project: Path, *, source_layout: bool) -> None:
    """Packages called harness, reports, recovery and tests.harness are the project's,
    and its chaos tests run.
    """
    root = project / "src" if source_layout else project
    for package in ("harness", "reports", "recovery", "tests/harness"):
        folder = root / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("OURS = True\n")
    (root / "tests" / "__init__.py").write_text("")
    (project / "pytest.ini").write_text(f"[pytest]\npythonpath = {root.relative_to(project)}\n")
    (root / "harness" / "worker.py").write_text(WORKER)
    (project / "test_orders.py").write_text(USES_WORKER.replace("shop.worker", "harness.worker"))
    (project / "test_own.py").write_text(
        "import harness, recovery, reports\nimport tests.harness\n\n"
        "def test_own():\n    assert harness.OURS and reports.OURS and recovery.OURS and tests.harness.OURS\n"
    )
    for command in ((python.parent / "pytest",), (python, "-m", "pytest")):
        done = execute(*command, "-p", "no:cacheprovider", folder=project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout
        assert "HELD" in done.stdout


def test_the_plugins_can_be_left_out(python: Path, project: Path) -> None:
    """``-p no:chaos`` switches the plugin off, and nothing of it is left."""
    (project / "test_orders.py").write_text(
        "def test_plain(request):\n    assert 'chaos' not in request.fixturenames\n"
    )
    done = execute(python, "-m", "pytest", "-p", "no:chaos", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chaos" not in execute(python, "-m", "pytest", "-p", "no:chaos", "--help", folder=project).stdout
