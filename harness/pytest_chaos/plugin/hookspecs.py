"""Hooks that any plugin or conftest may implement.

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
    """A session with chaos runs is over: called in the process that has all of its records.

    ``session_folder`` holds the records and the evidence; ``formats`` is what ``--chaos-report``
    asks for.
    """


@pytest.hookspec
def pytest_chaos_evidence_queries(config: pytest.Config) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return names and SQL of queries that an evidence pack asks each SQLite file."""


@pytest.hookspec
def pytest_chaos_replay_arguments(config: pytest.Config) -> list[str]:  # type: ignore[empty-body]
    """Return the project's own arguments that a replay needs, such as a backend's name."""
