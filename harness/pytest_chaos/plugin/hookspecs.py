"""Hooks that the harness calls; any plugin or conftest may implement them.

Implement them with ``@pytest.hookimpl(optionalhook=True)``, and a suite still runs where
pytest-chaos is switched off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.evidence.records import Records


@pytest.hookspec
def pytest_chaos_session_finished(
    session_folder: Path, records: Records, formats: tuple[str, ...], config: pytest.Config
) -> None:
    """Hear that a session with chaos runs is over, in the one process that has all of its records.

    ``session_folder`` holds the records and the evidence; ``formats`` is what ``--chaos-report``
    asks for.
    """


@pytest.hookspec
def pytest_chaos_evidence_queries(config: pytest.Config) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return names and SQL of questions that an evidence pack asks of each SQLite file in which they make sense."""


@pytest.hookspec
def pytest_chaos_replay_arguments(config: pytest.Config) -> list[str]:  # type: ignore[empty-body]
    """Return the arguments of the project's own that a replay needs to be the same run, such as a backend's name."""
