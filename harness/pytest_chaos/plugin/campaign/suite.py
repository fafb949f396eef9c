"""Digests of the collected tests and of the project's files, to compare two sessions by.

Runs of two programs are no sample of one. The files are those of the modules that pytest has loaded
from below the project's root folder. What a target reads besides is not known: a program that is
started by its path, data, other packages. The commit tells of those that git knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.plugin.selection import base_of, scenario_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

FILES_MAX: Final = 2_000
_DIGITS: Final = 12
_FOREIGN: Final = {"site-packages", "dist-packages"}
_REF_BYTES_MAX: Final = 1 << 20


class Suite(NamedTuple):
    """What was collected and loaded."""

    suite: str
    code: dict[str, str]
    commit: str


def suite_of(items: Iterable[pytest.Item], root: Path) -> Suite:
    """Return the digests of these tests, and of the files that were loaded for them."""
    lines = {f"{scenario_of(item)!r} {base_of(item)}" for item in items}
    digest = hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    return Suite(digest, _code(root), _commit(root))


def _code(root: Path) -> dict[str, str]:
    files = set()
    for module in tuple(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py"):
            path = Path(name)
            if path.is_relative_to(root) and not _FOREIGN & set(path.parts):
                files.add(path)
    found = {}
    for path in sorted(files)[:FILES_MAX]:
        with contextlib.suppress(OSError):
            found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
    return found


def _commit(root: Path) -> str:
    """Return the commit that is checked out, read without a process; empty without git."""
    for folder in (root, *root.parents):
        git = folder / ".git"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if git.is_file():  # a worktree
                git = Path(folder, git.read_text().removeprefix("gitdir:").strip())
            if not (git / "HEAD").is_file():
                continue
            head = (git / "HEAD").read_text().strip()
            if not head.startswith("ref: "):
                return head[:40]
            return _resolved(git, head.removeprefix("ref: "))
    return ""


def _resolved(git: Path, name: str) -> str:
    common = git
    with contextlib.suppress(OSError):
        common = Path(git, (git / "commondir").read_text().strip())
    for folder in (git, common):
        with contextlib.suppress(OSError):
            return (folder / name).read_text().strip()[:40]
    with contextlib.suppress(OSError), (common / "packed-refs").open() as file:
        for line in file.read(_REF_BYTES_MAX).splitlines():
            if line.endswith(f" {name}"):
                return line[:40]
    return ""


def difference(then: Suite, now: Suite) -> str:
    """Say in a sentence what has changed; nothing if nothing has.

    A file that is loaded now and was not then, or the other way round, changes nothing by itself.
    """
    changed = sorted(name for name, digest in then.code.items() if now.code.get(name, digest) != digest)
    if changed:
        more = f" and {len(changed) - 1} more files" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changed"
    if then.suite and then.suite != now.suite:
        return "other tests or scenarios were collected"
    if then.commit and now.commit and then.commit != now.commit:
        return f"the commit is {now.commit[:12]} and was {then.commit[:12]}"
    return ""
