"""Evidence packs: what is left of a run that did not hold, in one folder that can be asked, copied and trusted.

A pack is built from a journal (``pytest_chaos.runtime.journal``) by one function, :func:`write`,
whoever calls it: the plugin when a run does not hold, the guardian process when its controller is
gone (:func:`salvage`), a later session that finds a left-over journal. None of it needs pytest.

    limits     how much of everything a pack takes
    problems   what was cut or could not be read: a row in the pack, never the end of it
    reading    opening a file without letting go of the locks that this process has on it
    databases  finds SQLite files and copies them, byte for byte, before anything opens them
    sqlite     what to ask any SQLite file
    redact     takes secrets out of text
    gather     the journal's facts, redacted and bounded
    index      ``evidence.sqlite``, the one file to query
    manifest   every file with its size and hash, written last; verifies a pack
    pack       puts a pack together; ``open`` reads one; ``standalone`` makes one of a single database

A pack is built in a sibling folder and renamed when it is whole, so a folder of the final name is
always a whole pack. The order inside is: copies first, then questions to scratch copies, then the
index, then the manifest.

Text is redacted. The byte-exact copies under ``database/`` are **not**: they are the evidence, and
the manifest says so. The manifest is not signed: it shows damage and carelessness, not a forger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_chaos.evidence.manifest import verify
    from pytest_chaos.evidence.open import Pack, open_pack
    from pytest_chaos.evidence.pack import salvage, write
    from pytest_chaos.evidence.redact import SECRETS
    from pytest_chaos.evidence.standalone import dump_failure_evidence

__all__ = ["SECRETS", "Pack", "dump_failure_evidence", "open_pack", "salvage", "verify", "write"]

_HOME: Final = {
    "SECRETS": "redact",
    "Pack": "open",
    "dump_failure_evidence": "standalone",
    "open_pack": "open",
    "salvage": "pack",
    "verify": "manifest",
    "write": "pack",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: the plugin loads this package in every session."""
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
