"""The libraries of an entry: installed on demand, in an environment of its own, and kept.

An environment is a virtual environment with the pinned requirements, beside which the packages of
this interpreter are found, pytest-chaos among them. It is kept below the user's cache folder, under
a digest of the requirements and of this interpreter, so that the next run installs nothing.

``uv`` installs if it is here. ``pip`` does if it is not, or if it fails: it may know of an index
that ``uv`` does not. What cannot be installed is a :class:`NotInstalled` with the reason: the entry
is skipped, and is not green.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INSTALL_TIMEOUT_S: Final = 300.0
_COMPLETE: Final = "complete"
"""A file that is written last: an environment without it was cut short, and is made anew."""
_LINK: Final = "chaos_bank.pth"
_REASON_CHARACTERS_MAX: Final = 300
_NO_NETWORK: Final = re.compile(
    r"(Connection refused|Network is unreachable|Name or service not known|Temporary failure in name resolution"
    r"|No route to host|Connection timed out|Read timed out|Connection reset by peer)"
)
"""What an installer prints without a network. Its last line says that there is no such version."""


class NotInstalled(Exception):  # noqa: N818 - a limit of this machine, and no mistake of the user
    """The libraries of an entry cannot be had here. Its text is the reason, for the results."""


class Environments:
    """The environments of entries, in ``folder``, by default in the user's cache folder."""

    def __init__(self, folder: Path | None = None, *, may_install: bool = True) -> None:
        self.folder = folder or cache_folder()
        self._may_install = may_install

    def python_for(self, requirements: Sequence[str]) -> Path:
        """Return an interpreter that has these requirements, in just these versions.

        Raises NotInstalled.
        """
        if not requirements:
            return Path(sys.executable)
        place = self.folder / _digest(requirements)
        python = place / "bin" / "python"
        with self._locked(place):
            if not _is_complete(place):
                if not self._may_install:
                    msg = f"with --no-install, {', '.join(requirements)} must be installed already; got nothing"
                    raise NotInstalled(msg)
                self._make(place, requirements)
            if wrong := list(_other_versions(place, requirements)):
                msg = f"{wrong[0]}. Remove {place}, so that it is made anew"
                raise NotInstalled(msg)
        return python

    @contextlib.contextmanager
    def _locked(self, place: Path) -> Iterator[None]:
        """Let one process at a time make this environment; the kernel frees the lock."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if _is_complete(place):  # nothing is to be made: a cache may be filled first, and then be protected
                yield
                return
            msg = f"the cache folder {self.folder} must be writable; got: {error.strerror}"
            raise NotInstalled(msg) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make(self, place: Path, requirements: Sequence[str]) -> None:
        shutil.rmtree(place, ignore_errors=True)
        try:
            _call([sys.executable, "-m", "venv", "--without-pip", str(place)], "make an environment")
            _install(place, requirements)
            (_packages(place) / _LINK).write_text(
                "".join(f"import site; site.addsitedir({each!r})\n" for each in _ours())
            )
            (place / _COMPLETE).write_text("\n".join(requirements) + "\n")
        except (NotInstalled, OSError) as error:
            shutil.rmtree(place, ignore_errors=True)
            raise NotInstalled(str(error)) from error


def _is_complete(place: Path) -> bool:
    """Whether an environment was made to its end, and its Python is there still."""
    return (place / _COMPLETE).exists() and (place / "bin" / "python").exists()


def cache_folder() -> Path:
    """Return the folder for environments: ``XDG_CACHE_HOME``, or ``~/.cache``, and our name."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pytest-chaos" / "bank"


def _digest(requirements: Sequence[str]) -> str:
    """Return the name of an environment: another Python, or another of ours, has another one."""
    text = "\n".join([*requirements, sys.version, sys.executable, *_ours()])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _ours() -> list[str]:
    """Return the folders in which this interpreter finds packages."""
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return list(dict.fromkeys(each for each in [*own, *users] if Path(each).is_dir()))


def _packages(place: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))


def _install(place: Path, requirements: Sequence[str]) -> None:
    """Install with the first installer that can. Raises NotInstalled with the last one's reason."""
    python = str(place / "bin" / "python")
    uv, pip = shutil.which("uv"), importlib.util.find_spec("pip")
    commands = [[uv, "pip", "install", "--quiet", "--python", python]] if uv else []
    if pip is not None:
        plain = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
        commands.append([sys.executable, "-m", "pip", "--python", python, "install", *plain])
    reason = NotInstalled("neither uv nor pip is here to install it")
    for command in commands:
        try:
            _call([*command, *requirements], f"install {', '.join(requirements)}")
        except NotInstalled as error:
            reason = error
        else:
            return
    raise reason


def _call(command: Sequence[str], what: str) -> None:
    """Run a command. Raises NotInstalled with the last thing that it said."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PIP_TARGET"}}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=INSTALL_TIMEOUT_S,
            stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        msg = f"could not {what} in {INSTALL_TIMEOUT_S:g} s"
        raise NotInstalled(msg) from error
    except OSError as error:
        msg = f"could not {what}: {error.strerror}"
        raise NotInstalled(msg) from error
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said or ["it said nothing"]
        unreachable = next((found[1] for line in said if (found := _NO_NETWORK.search(line))), "")
        why = f"no index could be reached: {unreachable}" if unreachable else errors[-1][:_REASON_CHARACTERS_MAX]
        msg = f"could not {what}: {why}"
        raise NotInstalled(msg)


def _other_versions(place: Path, requirements: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each requirement that is there in another version, or not at all."""
    found = {
        _normal(each.metadata["Name"]): each.version
        for each in importlib.metadata.distributions(path=[str(_packages(place))])
    }
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        have = found.get(_normal(name.partition("[")[0]), "none")
        if have != version:
            yield f"the library {name} must be version {version}; got {have}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
