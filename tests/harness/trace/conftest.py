"""The lab of the tests that need no other one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.trace.lab import Lab

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return a lab in a folder of its own."""
    return Lab(tmp_path)
