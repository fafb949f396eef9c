"""Puts a mutant into modules that were imported before: the code of functions, and constants.

A fork of a pytest that has collected its tests has the sound modules. A function gets the code that
the mutant has for it, so a module that has imported it before calls the mutant. A constant of a
module is set in it, and in the modules that have imported it by name. What cannot be done so is
told, and the mutant is run in a pytest of its own. Nothing of ours is imported here.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    Place: TypeAlias = tuple[str, str, int]

_ENDING = ".code"
_PLAIN = (str, bytes, int, float, bool, tuple, frozenset, dict, range, type(None))


def functions_of(package: str) -> dict[Place, list[types.FunctionType]]:
    """Return all functions of a package that exist now, by file, qualified name and line."""
    files = {
        getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name == package or name.startswith(f"{package}.")
    }
    found: dict[Place, list[types.FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is types.FunctionType and each.__code__.co_filename in files:
            found.setdefault(_place(each.__code__), []).append(each)
    return found


def apply(folder: str, known: dict[Place, list[types.FunctionType]], *, constants: bool) -> bool:
    """Put the modules of a folder in place of imported ones; return whether that could be done.

    Modules that are not imported yet are found by the import hook. ``constants``: the mutant is in
    a statement outside of functions.
    """
    for entry in os.listdir(folder):
        name = entry.removesuffix(_ENDING)
        module = sys.modules.get(name)
        if module is None or name == entry:
            continue
        with open(f"{folder}/{entry}", "rb") as file:
            code = marshal.loads(file.read())  # noqa: S302 - the campaign wrote it
        if not (_set_constants(module, code) if constants else _set_functions(code, known)):
            return False
    return True


def _place(code: types.CodeType) -> Place:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _set_functions(code: types.CodeType, known: dict[Place, list[types.FunctionType]]) -> bool:
    done = False
    for new in _codes_in(code):
        for function in known.get(_place(new), ()):
            if function.__code__ != new:
                try:
                    function.__code__ = new
                except ValueError:  # it has other variables of its surroundings
                    return False
                done = True
    return done


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from _codes_in(each)


def _set_constants(module: types.ModuleType, code: types.CodeType) -> bool:
    """Execute the mutant aside, and take over the plain values that differ."""
    aside = types.ModuleType(module.__name__)
    aside.__dict__.update({name: module.__dict__.get(name) for name in ("__file__", "__package__", "__spec__")})
    sys.modules[module.__name__] = aside  # dataclasses look for their module
    try:
        exec(code, aside.__dict__)  # noqa: S102 - as the import system would
    finally:
        sys.modules[module.__name__] = module
    done = False
    for name, old in list(module.__dict__.items()):
        new = aside.__dict__.get(name, old)
        if name.startswith("__") or not isinstance(old, _PLAIN) or not isinstance(new, _PLAIN) or _same(old, new):
            continue
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(name) is old:
                setattr(other, name, new)
        setattr(module, name, new)
        done = True
    return done


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and repr(old) == repr(new)
