"""The examples of the recovery core: those of its README and those in docstrings
run as they stand.
"""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import durable_agents
import pytest

_README = Path(__file__).resolve().parents[2] / "recovery" / "README.md"
_EXAMPLES = re.findall(r"```python\n(.*?)```", _README.read_text(), flags=re.DOTALL)
_MODULES = [
    "commands",
    "service",
    "once.idempotency",
    "once.llm_cache",
    "once.requests",
    "once.tool_ledger",
    "work.checkpoints",
    "work.leases",
]


def test_the_examples_of_the_readme_run(tmp_path: Path) -> None:
    """Each in a process of its own, one after the other in one folder;
    they print what their comments say.
    """
    printed = []
    for example in _EXAMPLES:
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout.splitlines()
    assert printed == ["{'pages': 3}", "completed", "{'number': 7} False", "{'number': 7} True"]


@pytest.mark.parametrize("name", _MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path) -> None:
    """They may use the public names of the package, and ``tmp_path``, a new folder."""
    module = importlib.import_module(f"durable_agents.{name}")
    names = {each: getattr(durable_agents, each) for each in ("LeaseManager", "TaskManager")}
    results = doctest.testmod(module, extraglobs={**names, "tmp_path": tmp_path})
    assert results.attempted
    assert not results.failed
