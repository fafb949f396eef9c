"""The package to mutate: its files, without importing it, and the digest of its source."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
from pathlib import Path
from typing import Final, NamedTuple

from pytest_chaos.errors import UsageError

_NAME: Final = "give the name that is imported, such as mypackage or mypackage.store"


class SourceModule(NamedTuple):
    """One module, by its dotted name."""

    name: str
    path: Path
    source: str


def modules_of(package: str) -> list[SourceModule]:
    """Return the modules of a package, or of one module, in the order of their names.

    Raises UsageError for one that is not found, or has no source.
    """
    if not all(part.isidentifier() for part in package.split(".")):
        msg = f"the package must be a dotted name; got {package!r}. {_NAME.capitalize()}"
        raise UsageError(msg)
    origin, folders = located(package)
    paths = {package: origin} if origin is not None else {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if all(part.isidentifier() for part in parts):
                paths.setdefault(".".join([package, *parts]), path)
    found = [read_module(name, path) for name, path in sorted(paths.items())]
    if not found:
        msg = f"{package} must have Python source; got none. {_NAME.capitalize()}"
        raise UsageError(msg)
    return found


def located(package: str) -> tuple[Path | None, list[Path]]:
    """Return the file of a module and the folders of its package; nothing of it is executed."""
    path: list[str] = [str(Path.cwd()), *sys.path]
    spec = None
    parts = package.split(".")
    for number in range(len(parts)):
        spec = _spec(".".join(parts[: number + 1]), path if number == 0 else list(path))
        if spec is None:
            msg = f"the package must be one that can be imported here; got {package!r}, which is not found. "
            raise UsageError(msg + _NAME.capitalize() + ", and run chaos where the tests run")
        path = list(spec.submodule_search_locations or ())
    assert spec is not None  # noqa: S101 - a dotted name has a part
    origin = Path(spec.origin) if spec.has_location and spec.origin else None
    if origin is not None and origin.suffix != ".py":
        msg = f"the package must have Python source; got {origin}. {_NAME.capitalize()}"
        raise UsageError(msg)
    return origin, [Path(folder) for folder in path]


def _spec(name: str, path: list[str]) -> importlib.machinery.ModuleSpec | None:
    found = importlib.machinery.PathFinder.find_spec(name, path)
    if found is not None or "." in name:
        return found
    for finder in sys.meta_path:  # editable installs have a finder of their own
        find = getattr(finder, "find_spec", None)
        spec: importlib.machinery.ModuleSpec | None = find(name, None) if find is not None else None
        if spec is not None:
            return spec
    return None


def read_module(name: str, path: Path) -> SourceModule:
    """Return a module. Raises UsageError for a file that is none."""
    try:
        source = path.read_text(encoding="utf-8")
        compile(source, str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        msg = f"{name} must be a module that can be imported; got {type(error).__name__}: {error}. Mend {path}"
        raise UsageError(msg) from error
    return SourceModule(name, path, source)


def digest_of(modules: list[SourceModule]) -> str:
    """Return the digest of all names and sources."""
    content = hashlib.sha256()
    for module in modules:
        content.update(f"{module.name}\0{module.source}\0".encode())
    return content.hexdigest()[:16]
