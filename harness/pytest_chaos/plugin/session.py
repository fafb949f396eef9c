"""What one pytest process knows of its chaos session: its name, its seed, its settings, and where its results go."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.values import SessionHeader
    from pytest_chaos.plugin.settings import Settings

OPTIONS: Final = ("seed", "iterations", "min_pass_rate", "confirm", "results", "report", "scratch")
"""Those that are settings: given in any of four ways."""

WORKER_INPUT: Final = "chaos"


class ChaosSession:
    """A controller's session, or one alone, is all of it; that of an xdist worker knows what the controller gave it.

    ``replayed`` is the evidence that is run again, if any is, and ``first_iteration`` the iteration
    it is of.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.given: Mapping[str, Any] = getattr(config, "workerinput", {}).get(WORKER_INPUT, {})
        self.is_worker = hasattr(config, "workerinput")
        self.first_iteration = 0
        self.replayed: Pack | None = None
        self._settings: Settings | None = None
        self._name = ""
        self._header: SessionHeader | None = None

    @property
    def settings(self) -> Settings:
        """The settings, built at the first question. Raises pytest.UsageError that lists all that is wrong."""
        if self._settings is None:
            self._settings = self._collect_settings()
        return self._settings

    @property
    def name(self) -> str:
        """The session's name: when it was, and by which seed."""
        if not self._name:
            import datetime

            moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
            self._name = self.given.get("name") or f"{moment}-{self.settings.seed}-{secrets.token_hex(2)}"
        return self._name

    @property
    def folder(self) -> Path:
        """Where records, reports and evidence of this session go."""
        return self.settings.results / "sessions" / self.name

    @property
    def header(self) -> SessionHeader:
        """What all records of the session share."""
        if self._header is None:
            import datetime

            from pytest_chaos.model.values import SessionHeader

            self._header = SessionHeader(
                session=self.name,
                seed=self.settings.seed,
                started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                iterations=self.settings.iterations,
                pass_rate_min=self.settings.pass_rate_min,
                versions=versions(),
                command=command_line(),
            )
        return self._header

    def _collect_settings(self) -> Settings:
        import msgspec

        from pytest_chaos.errors import ChaosError
        from pytest_chaos.plugin import settings

        option = self.config.getoption
        try:
            found = settings.collect(
                command_line={f"chaos_{name}": option(f"chaos_{name}") for name in OPTIONS},
                environment=os.environ,
                ini=lambda name: str(self.config.getini(name)),
                quick=bool(option("chaos_quick")),
                scenarios=tuple(option("chaos_scenario") or ()),
                replay=option("chaos_replay"),
                root=self.config.rootpath,
            )
            if found.replay is not None:
                from pytest_chaos.evidence import open_pack

                self.replayed = pack = open_pack(found.replay)
                self.first_iteration = pack.iteration
                found = msgspec.structs.replace(found, seed=pack.seed, iterations=1)
        except ChaosError as error:
            raise pytest.UsageError(str(error)) from error
        if "seed" in self.given:
            found = msgspec.structs.replace(found, seed=self.given["seed"])
        return found

    def for_worker(self) -> dict[str, Any]:
        """Return what an xdist worker has to know."""
        from pytest_chaos.runtime import processes

        here = processes.read(os.getpid())
        watch = [here.pid, here.start_ticks] if here is not None else None
        return {"seed": self.settings.seed, "name": self.name, "watch": watch}


def shown(path: Path, config: pytest.Config) -> str:
    """Return a path as a person would type it where pytest was started."""
    try:
        return str(path.relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def command_line() -> str:
    """Return what this process was started by, as a person would type it."""
    import shlex

    program = Path(sys.argv[0])
    named = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*named, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions that a record is of no use without."""
    import platform
    import sqlite3
    from importlib.metadata import version

    return {
        "pytest-chaos": version("pytest-chaos"),
        "pytest": pytest.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
