"""The Python modules of a target, shipped by name, so that a worker can import them.

Only what a user wrote is shipped: no module of Python, of an installed package, or of ours. A
worker that has the same file in the same place uses that one; another one gets the shipped file.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

SOURCES_BYTES_MAX: Final = 64 << 20
"""Upper bound on the sources of one parcel."""
_OURS: Final = Path(__file__).resolve().parents[2]
_INSTALLED: Final = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class ModuleSource(msgspec.Struct, frozen=True, array_like=True):
    """A module's file: ``is_package`` if it is the ``__init__.py`` of a folder."""

    module: str
    path: str
    content: bytes
    is_package: bool = False


def sources_of(modules: Iterable[ModuleType]) -> tuple[ModuleSource, ...]:
    """Return the files of the modules that a user wrote. Raises UsageError if they are too many."""
    found: list[ModuleSource] = []
    size = 0
    for module in tuple(modules):
        name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or name == "__main__" or not _is_of_user(Path(file)):
            continue
        try:
            content = Path(file).read_bytes()
        except OSError:  # it is not there any more, so nobody can ask for it
            continue
        size += len(content)
        found.append(ModuleSource(name, file, content, Path(file).name == "__init__.py"))
    if size > SOURCES_BYTES_MAX:
        msg = (
            f"the sources of the target must have {SOURCES_BYTES_MAX >> 20} MiB at most, to be sent to a cluster; got "
            f"{size >> 20} MiB. Install them on the workers as a package"
        )
        raise UsageError(msg)
    return tuple(sorted(found, key=lambda source: source.module))


def _is_of_user(path: Path) -> bool:
    resolved = path.resolve()
    return not any(resolved.is_relative_to(folder) for folder in (_OURS, *_INSTALLED))


class ShippedModules:
    """A finder of the modules that were shipped, for ``sys.meta_path``.

    ``folder`` gets the files that are not in their place here.
    """

    def __init__(self, sources: Sequence[ModuleSource], folder: Path) -> None:
        self._sources = {source.module: source for source in sources}
        self._folder = folder
        self._parents = {
            ".".join(parts[:count])
            for parts in (source.module.split(".") for source in sources)
            for count in range(1, len(parts))
        } - self._sources.keys()

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return how to load a module, None for one that was not shipped."""
        del path, target
        if (source := self._sources.get(name)) is not None:
            file = self._file_of(source)
            within = [str(file.parent)] if source.is_package else None
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=within)
        if name in self._parents:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = self._folders_of(name)
            return spec
        return None

    def _folders_of(self, package: str) -> list[str]:
        """Return the folders of a package that has no file of its own."""
        count = package.count(".") + 1
        folders = {
            str(self._file_of(source).parents[source.module.count(".") - count + source.is_package])
            for name, source in self._sources.items()
            if name.startswith(f"{package}.")
        }
        return sorted(folders)

    def _file_of(self, source: ModuleSource) -> Path:
        """Return the file in its place if it is the same here, else the shipped one."""
        own = Path(source.path)
        try:
            if own.read_bytes() == source.content:
                return own
        except OSError:
            pass
        place = self._folder / blake2b(source.path.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        file = place.joinpath(*source.module.split(".")) if "." in source.module else place / own.stem
        file = file / "__init__.py" if source.is_package else file.with_suffix(".py")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.content)
        return file


def import_from(sources: Sequence[ModuleSource], folder: Path) -> None:
    """Have this process import what was shipped, also where a module of that name is installed."""
    sys.meta_path.insert(0, ShippedModules(sources, folder))
