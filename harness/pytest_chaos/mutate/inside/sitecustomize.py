"""The import hook of ``chaos mutate``, executed at the start of every Python process of the tests.

This folder is on their PYTHONPATH, so guardians, zygotes, agents, and scripts started with plain
``python`` all have it. ``CHAOS_MUTATE`` names a folder with compiled modules (``NAME.code``), which
are executed in place of the files of these names; with ``reach.map`` in it, they store into that
file what is reached. Nothing of ours is imported here, since any program may be the next to run.
The ``sitecustomize`` that this one hides is executed after it.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

TYPE_CHECKING = False  # typing costs each process some milliseconds
if TYPE_CHECKING:
    from typing import Any

_VARIABLE = "CHAOS_MUTATE"
_ENDING = ".code"


class _CompiledLoader(SourceFileLoader):
    """A loader whose code is not compiled from the file, but read from another one."""

    def __init__(self, fullname: str, path: str, compiled: str) -> None:
        super().__init__(fullname, path)
        self._compiled = compiled

    def get_code(self, fullname: str) -> Any:
        del fullname
        import marshal

        with open(self._compiled, "rb") as file:
            return marshal.loads(file.read())  # noqa: S302 - the campaign that set the variable wrote it


class _Finder:
    """Finds the modules that are replaced, where the import system finds them, with our loader."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._names = {name[: -len(_ENDING)] for name in os.listdir(folder) if name.endswith(_ENDING)}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a replaced module, and None for any other."""
        if fullname not in self._names:
            return None
        spec = self._found_by_others(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
            return spec
        compiled = f"{self._folder}/{fullname}{_ENDING}"
        spec.loader = _CompiledLoader(fullname, spec.origin, compiled)
        return spec

    def _found_by_others(self, fullname: str, path: Any, target: Any) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (find := getattr(finder, "find_spec", None)) is not None:
                spec: ModuleSpec | None = find(fullname, path, target)
                if spec is not None and not isinstance(spec.loader, SourceFileLoader):
                    spec = PathFinder.find_spec(fullname, path)
                if spec is not None:
                    return spec
        return None


def install(folder: str) -> None:
    """Replace the modules of this folder from now on, in this process."""
    if os.path.exists(f"{folder}/reach.map"):
        import mmap

        with open(f"{folder}/reach.map", "r+b") as file:
            sys._chaos_reach = mmap.mmap(file.fileno(), 0)  # type: ignore[attr-defined]  # noqa: SLF001 - where code finds it
    sys.meta_path.insert(0, _Finder(folder))


def _go_on_with_the_hidden_one() -> None:
    """Execute the next ``sitecustomize`` on the path, as Python would have."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        import importlib.util

        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get(_VARIABLE):
    install(os.environ[_VARIABLE])
if __name__ == "sitecustomize":
    _go_on_with_the_hidden_one()
