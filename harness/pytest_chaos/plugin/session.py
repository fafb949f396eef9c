"""The chaos session of one pytest process: its name, seed, settings and results folder."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.plugin.interrupts import Interrupts
from pytest_chaos.plugin.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.evidence.records import SessionFolder
    from pytest_chaos.model.values import PlannedRuns, SessionHeader
    from pytest_chaos.plugin.campaign.resuming import Resumed
    from pytest_chaos.plugin.campaign.suite import Suite
    from pytest_chaos.plugin.settings import Settings

WORKER_INPUT: Final = "chaos"


class ChaosSession:
    """The session of a controller, or the part of it that an xdist worker was given.

    ``replayed`` is the evidence that is run again, if any, and ``first_iteration`` its iteration.
    ``planned`` and ``suite`` are known once the tests are collected. ``resumed`` is the session
    that this one goes on with, if any. ``elsewhere`` are tests that another shard runs, or that the
    resumed session has run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.given: Mapping[str, Any] = getattr(config, "workerinput", {}).get(WORKER_INPUT, {})
        self.is_worker = hasattr(config, "workerinput")
        self.first_iteration = 0
        self.replayed: Pack | None = None
        self.interrupts = Interrupts()
        self.planned: tuple[PlannedRuns, ...] = ()
        self.suite: Suite | None = None
        self.resumed: Resumed | None = None
        self.resumed_folder: SessionFolder | None = None
        self.elsewhere: frozenset[pytest.Item] = frozenset()
        self._began_s: float | None = None
        self._settings: Settings | None = None
        self._name = ""
        self._header: SessionHeader | None = None

    @property
    def settings(self) -> Settings:
        """The settings, built at the first use. Raises pytest.UsageError with all problems."""
        if self._settings is None:
            self._settings = self._collect_settings()
        return self._settings

    @property
    def began_s(self) -> float:
        """The moment from which a budget counts: the first time that anybody asks."""
        if self._began_s is None:
            from pytest_chaos.plugin.campaign import stopping

            self._began_s = float(self.given.get("began_s", stopping.now_s()))
        return self._began_s

    @property
    def name(self) -> str:
        """The session's name: time, seed, and a random part."""
        if not self._name and self.resumed is not None:
            self._name = self.resumed.folder.name
        if not self._name:
            import datetime
            import secrets

            moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
            self._name = self.given.get("name") or f"{moment}-{self.settings.seed}-{secrets.token_hex(2)}"
        return self._name

    @property
    def folder(self) -> Path:
        """The folder for records, reports and evidence of this session."""
        return self.settings.results / "sessions" / self.name

    @property
    def header(self) -> SessionHeader:
        """The header of the session's records."""
        if self.resumed is not None:
            return self.resumed.header
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
                planned=self.planned,
                prove=self.settings.prove,
                budget_s=self.settings.budget_s,
                shard=str(self.settings.shard or ""),
                **(self.suite._asdict() if self.suite is not None else {}),
            )
        return self._header

    def _collect_settings(self) -> Settings:
        import msgspec

        from pytest_chaos.errors import ChaosError
        from pytest_chaos.plugin import settings

        option = self.config.getoption
        try:
            found = settings.collect(
                command_line={each.name: option(each.name) for each in OPTIONS},
                environment=os.environ,
                ini=lambda name: str(self.config.getini(name)),
                quick=bool(option("chaos_quick")),
                scenarios=tuple(option("chaos_scenario") or ()),
                replay=option("chaos_replay"),
                root=self.config.rootpath,
                remembered=self.given.get("remembered", None) or self._remembered(),
            )
            if (resumed := option("chaos_resume")) is not None:
                found = self._resume(resumed, found)
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

    def _remembered(self) -> Mapping[str, str]:
        if not (getattr(self.config.option, "lf", False) or getattr(self.config.option, "failedfirst", False)):
            return {}
        from pytest_chaos.plugin.campaign.remembered import remembered

        return remembered(self.config)

    def _resume(self, given: str, found: Settings) -> Settings:
        """Return the settings of the session that goes on, in this process alone."""
        import msgspec

        from pytest_chaos.errors import UsageError
        from pytest_chaos.evidence.records import SessionFolder
        from pytest_chaos.model.deciding import shards
        from pytest_chaos.plugin.campaign import resuming

        if found.replay is not None:
            msg = "--chaos-resume must be left out with --chaos-replay; got both"
            raise UsageError(msg)
        here = self.config.invocation_params.dir
        self.resumed = resumed = resuming.find(given, found.results, here, found.scratch, self.given.get("runs"))
        header = resumed.header
        resuming.check_options(header, found, {each.name: self.config.getoption(each.name) for each in OPTIONS})
        if not self.is_worker:
            self.resumed_folder = SessionFolder(resumed.folder.parents[1], resumed.folder.name)
            if not self.resumed_folder.hold():
                msg = f"--chaos-resume must name a session that has ended; {header.session} is going on. Wait for it"
                raise UsageError(msg)
        return msgspec.structs.replace(
            found,
            seed=header.seed,
            iterations=header.iterations,
            pass_rate_min=header.pass_rate_min,
            prove=header.prove,
            shard=shards.parse(header.shard) if header.shard else None,
            results=resumed.folder.parents[1],
        )

    def for_worker(self) -> dict[str, Any]:
        """Return the input of an xdist worker."""
        from pytest_chaos.runtime import processes

        here = processes.own()
        return {
            "seed": self.settings.seed,
            "name": self.name,
            "began_s": self.began_s,
            "remembered": dict(self._remembered()),
            "runs": None if self.resumed is None else len(self.resumed.runs),
            "watch": [here.pid, here.start_ticks, processes.namespace()],
            **self._order(),
        }

    def _order(self) -> dict[str, dict[str, float]]:
        """Return what a worker needs to begin with the longest runs, where the order is ours."""
        if self.config.getoption("dist") not in {"load", "worksteal"}:
            return {}
        return {TOOK_S: {name: took_s for name, took_s in earlier_s(self.config).items() if took_s >= LONG_S}}


TOOK_S: Final = "took_s"
"""Key of what a worker is given: the time of each run that takes long."""
LONG_S: Final = 0.5
"""Runs that took so long the last time are begun first."""
DURATIONS: Final = "chaos/durations"
"""What each run took the last time, in pytest's cache: seconds by node id."""


def earlier_s(config: pytest.Config) -> dict[str, float]:
    """Return what each run took the last time; nothing without a cache, or from an edited one."""
    cache = getattr(config, "cache", None)  # -p no:cacheprovider: there is none
    try:
        return {str(name): float(took_s) for name, took_s in cache.get(DURATIONS, {}).items()} if cache else {}
    except (AttributeError, TypeError, ValueError):
        return {}


def shown(path: Path, config: pytest.Config) -> str:
    """Return a path as a person would type it where pytest was started."""
    try:
        return str(path.relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def command_line() -> str:
    """Return the command of this process, as a person would type it."""
    import shlex

    from pytest_chaos.evidence.redact import redactor

    program = Path(sys.argv[0])
    named = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join(redactor().words([*named, *sys.argv[1:]]))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a record needs to be understood."""
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
