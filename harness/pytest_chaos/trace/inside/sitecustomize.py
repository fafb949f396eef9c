"""Note the lines of a Python program that was started by a command, for one watched run.

This folder is on the PYTHONPATH of that run alone, and ``CHAOS_LINES`` names the memory that the
observer shares (``trace/survey.py``). An interpreter that has no pytest_chaos, or another version,
runs as it would; its lines are not known then. The ``sitecustomize`` that this one hides is
executed after it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

_VARIABLE = "CHAOS_LINES"
_HERE = os.path.dirname(os.path.abspath(__file__))


def _note_lines(path: str) -> None:
    try:
        from pathlib import Path

        from pytest_chaos.trace.survey import SharedLines, trace_lines

        trace_lines(SharedLines(Path(path)).put)
    except Exception:  # noqa: BLE001, S110 - the program must run as it would without us
        pass


def _run_the_hidden_one() -> None:
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != _HERE]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if _VARIABLE in os.environ:
    _run_the_hidden_one()
    _note_lines(os.environ[_VARIABLE])
