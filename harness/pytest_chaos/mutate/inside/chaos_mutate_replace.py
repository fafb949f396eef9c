"""Puts a function of another module in place of one, at the end of its module's own execution.

``chaos doubt module:name=other:name`` appends a call of :func:`replace` to the module. Nothing of
ours is imported here, since any program may be the next to run.
"""

from __future__ import annotations

import functools
import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def replace(module: dict[str, Any], qualname: str, other: str, *, is_counted: bool) -> None:
    """Set a name of a module, or of a class in it, to what ``other`` (``module:name``) is.

    A static or class method stays one. ``is_counted``: each call is marked as reached.
    """
    holder: Any = sys.modules[module["__name__"]]
    *outer, name = qualname.split(".")
    for part in outer:
        holder = getattr(holder, part)
    place, _, names = other.partition(":")
    new: Any = importlib.import_module(place)
    for part in names.split("."):
        new = getattr(new, part)
    if is_counted:
        new = _counted(new)
    old = vars(holder).get(name)
    if isinstance(old, staticmethod | classmethod):
        new = type(old)(new)
    setattr(holder, name, new)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*arguments: Any, **named: Any) -> Any:
        reach = getattr(sys, "_chaos_reach", None)
        if reach is not None:
            reach[0] = 1
        return function(*arguments, **named)

    return counted
