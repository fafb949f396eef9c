"""Published histories: beside the checkout, in ``../shared/data``, or the test is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLACES = (ROOT.parent / "shared", ROOT.parent.parent / "shared")


def published(name: str) -> Path:
    """Return a file or folder of the published data; skip the test where there is none."""
    for place in PLACES:
        if (found := place / "data" / name).exists():
            return found
    pytest.skip(f"the published histories {name} are not beside the checkout (../shared/data)")
