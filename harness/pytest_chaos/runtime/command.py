"""What an agent is: a function of the target by its name, or an argv."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.errors import UsageError
from pytest_chaos.runtime.agent import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec

    from pytest_chaos.model.values import Json


def command_of(
    target: str | Callable[..., object] | Sequence[str | os.PathLike[str]], kwargs: Mapping[str, Json], *, fresh: bool
) -> Command:
    """Return what ``chaos.spawn`` starts: a Python function by its name, or an argv.

    Raises UsageError for what cannot be started.
    """
    if isinstance(target, str):
        if not all(target.rpartition(":")):
            msg = f"a target must be 'module:function' or 'file.py:function'; got {target!r}. Give an argv as a list"
            raise UsageError(msg)
        return Command(target, None, dict(kwargs), fresh)
    if callable(target):
        return Command(_name_of(target), None, dict(kwargs), fresh)
    given: object = target
    if not isinstance(given, Iterable):
        msg = f"a target must be a function, its name or an argv; got {target!r}. Give the function, and do not call it"
        raise UsageError(msg)
    parts = list(given)
    if wrong := [part for part in parts if not isinstance(part, str | bytes | os.PathLike)]:
        msg = f"an argv must be made of texts and paths; got {wrong[0]!r} in {parts!r:.200}. Write str(...)"
        raise UsageError(msg)
    argv = tuple(os.fspath(part) for part in parts)
    if not argv or kwargs:
        got = f"{list(argv)} with kwargs {dict(kwargs)}"
        msg = f"an argv must name a program, and takes no kwargs; got {got}. Put the arguments into the list"
        raise UsageError(msg)
    return Command(None, argv, {}, fresh)


def _name_of(function: Callable[..., object]) -> str:
    """Return the target of a function: by module if it can be imported, else by file."""
    import inspect  # only for a function object

    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", "")
    if not name or "<" in name:
        msg = f"an agent's function must be at the top level of a module; got {function!r}, which no process can import"
        raise UsageError(msg)
    source = inspect.getsourcefile(function)
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = _spec_of(module)
        if spec is not None and spec.origin is not None and source is not None and Path(spec.origin) == Path(source):
            return f"{module}:{name}"
    return f"{source}:{name}"


def _spec_of(module: str) -> ModuleSpec | None:
    """Return how another process would find a module by its name, or None.

    ``importlib.util.find_spec`` looks into ``sys.modules`` first,
    where pytest puts test files that no import path leads to (``--import-mode=importlib``).
    """
    import sys  # only for a function object

    path: Sequence[str] | None = None
    found: ModuleSpec | None = None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for find in finders if (spec := find(name, path)) is not None), None)
        if found is None:
            return None
        path = found.submodule_search_locations
    return found
