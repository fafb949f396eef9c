"""Patterns of paths in a plan: ``*.json`` is a file's name, ``state/*`` a path of the run.

Agents use this module, so it imports next to nothing.
"""

from __future__ import annotations

from fnmatch import fnmatchcase


def path_matches(pattern: str, path: str, directory: str) -> bool:
    """Whether a pattern matches an absolute path: its name, or, with a ``/``, all of it.

    All of it is relative to the run's directory, or absolute where the pattern is.

    >>> path_matches("*.json", "/run/state/a.json", "/run")
    True
    >>> path_matches("state/*", "/run/state/a", "/run")
    True
    >>> path_matches("state/*", "/run/other/a", "/run")
    False
    """
    if "/" not in pattern:
        return fnmatchcase(path.rpartition("/")[2], pattern)
    return fnmatchcase(path if pattern.startswith("/") else path.removeprefix(directory.rstrip("/") + "/"), pattern)
