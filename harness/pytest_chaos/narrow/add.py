"""What a narrowing found goes into the evidence pack, where the failure page looks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.evidence import manifest
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model.story import CURVE_NAME, SHRUNK_NAME, Curve, Shrunk
from pytest_chaos.runtime.journal import ATTACHMENTS

if TYPE_CHECKING:
    from pathlib import Path

TEST_NAME: Final = "shrunk-test.txt"
"""The test to paste. Its name is not that of a test, which pytest would find."""
EXPLAINED_NAME: Final = "explained.txt"


def check_free(pack: Path, name: str, *, again: bool) -> None:
    """Raise UsageError if the pack has this result already, unless it is to be replaced."""
    if (pack / ATTACHMENTS / name).exists() and not again:
        msg = f"{pack} has {ATTACHMENTS}/{name} already, from before. chaos report shows it; --again makes a new one"
        raise UsageError(msg)


def add_shrunk(pack: Path, shrunk: Shrunk) -> str:
    """Add a shrunk plan and its test to a pack; return why that cannot be done, or nothing."""
    content = {SHRUNK_NAME: msgspec.json.encode(clean(shrunk))}
    if shrunk.test:
        content[TEST_NAME] = f"{clean(shrunk.test)}\n".encode()
    return _add(pack, content)


def add_curve(pack: Path, curve: Curve) -> str:
    """Add a curve to a pack; return why that cannot be done, or nothing."""
    text = "\n".join(curve.neighbours) or "no moment differs from its neighbours"
    return _add(pack, {CURVE_NAME: msgspec.json.encode(clean(curve)), EXPLAINED_NAME: f"{clean(text)}\n".encode()})


def shrunk_of(pack: Path) -> Shrunk | None:
    """Return the shrunk plan of a pack, or None if it has none that can be read."""
    try:
        return msgspec.json.decode((pack / ATTACHMENTS / SHRUNK_NAME).read_bytes(), type=Shrunk)
    except (OSError, msgspec.DecodeError):
        return None


def _add(pack: Path, content: dict[str, bytes]) -> str:
    try:
        folder = pack / ATTACHMENTS
        folder.mkdir(exist_ok=True)
        for name, data in content.items():
            new = folder / f".{name}.new"
            new.write_bytes(data)
            new.replace(folder / name)
        manifest.write(pack, manifest.read(pack))
    except OSError as error:
        return f"{pack} could not be added to ({error.strerror or error})"
    return ""
