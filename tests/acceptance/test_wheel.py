"""The built wheel, in an empty environment: a project that is not ours, and one whose packages have our names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.once import made_once

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("harness", "recovery", "reports", "_pytest_chaos.py", "pyproject.toml", "README.md", "LICENSE")


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
    """Return the interpreter of a new environment that holds the wheel and what it depends on, and nothing else."""
    return made_once(tmp_path_factory, "wheel", install) / "venv" / "bin" / "python"


def install(folder: Path) -> None:
    """Build the wheel from a copy, since building must not write into the tree that is tested, and install it."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    built = execute(sys.executable, "-m", "build", "--wheel", "--outdir", folder, source, folder=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    made = execute(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    assert made.returncode == 0, made.stderr
    interpreter = folder / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    installed = execute(interpreter, "-m", "pip", "install", "-q", "-c", constraints, wheel, folder=folder)
    assert installed.returncode == 0, installed.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project that is not ours, with the README's example in it."""
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_orders.py").write_text(code)
    return tmp_path


def test_the_wheel_works_in_a_project_that_is_not_ours(python: Path, project: Path) -> None:
    """The README's example finds its failure, replays it, and leaves a matrix and a pack."""
    done = execute(python, "-m", "pytest", "-m", "chaos", folder=project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reproduced: 2/2" in done.stdout
    assert (project / "chaos-results/latest/matrix.html").exists()
    assert len(list(project.glob("chaos-results/latest/evidence/*/manifest.json"))) == 1
    listed = execute(python.parent / "chaos", "list", folder=project)
    assert listed.returncode == 0
    assert "orders" in listed.stdout


def test_an_agent_may_be_named_by_a_module_of_the_project(python: Path, project: Path) -> None:
    """A function of the project's own package is started by its name; its reports say where it ran."""
    (project / "shop").mkdir()
    (project / "shop" / "__init__.py").write_text("")
    (project / "shop" / "worker.py").write_text(WORKER)
    (project / "test_orders.py").write_text(USES_WORKER)
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    done = execute(python.parent / "pytest", "-p", "no:cacheprovider", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HELD" in done.stdout


def test_the_wheel_is_typed(python: Path, project: Path) -> None:
    """Each package of the wheel says that it has types."""
    code = "import harness, recovery, reports; print([p.__path__[0] for p in (harness, recovery, reports)])"
    done = execute(python, "-c", code, folder=project)
    for place in re.findall(r"'([^']+)'", done.stdout):
        assert Path(place, "py.typed").exists()


@pytest.mark.parametrize("name", ["harness", "reports"])
@pytest.mark.parametrize("start", [("-m", "pytest"), ("-c", "import pytest, sys; sys.exit(pytest.main())")])
def test_a_package_of_our_name_is_told_in_one_sentence(
    python: Path, project: Path, name: str, start: tuple[str, ...]
) -> None:
    """Both packages and the remedy are named, whether or not the project's own is found first; no traceback."""
    (project / name).mkdir()
    (project / name / "__init__.py").write_text("")
    done = execute(python, *start, folder=project)
    assert done.returncode == 4
    assert str(project / name) in done.stderr
    assert str(Path("site-packages") / name) in done.stderr
    assert "-p no:harness.plugin -p no:reports.plugin" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_the_remedy_works(python: Path, project: Path) -> None:
    """With both plugins off, a project with packages of our names runs, and has its own packages."""
    (project / "test_orders.py").unlink()
    for name in ("harness", "reports"):
        (project / name).mkdir()
        (project / name / "__init__.py").write_text("OURS = True\n")
    (project / "test_own.py").write_text(
        "import harness, reports\n\ndef test_own():\n    assert harness.OURS and reports.OURS\n"
    )
    done = execute(python, "-m", "pytest", "-p", "no:harness.plugin", "-p", "no:reports.plugin", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_without_modules_does_not_collide(python: Path, project: Path) -> None:
    """A folder called reports that holds only reports is nobody's package."""
    (project / "test_orders.py").write_text("def test_plain():\n    pass\n")
    (project / "reports").mkdir()
    (project / "reports" / "june.html").write_text("<p>fine</p>")
    assert execute(python, "-m", "pytest", folder=project).returncode == 0
