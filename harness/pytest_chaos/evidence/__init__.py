"""Evidence packs: one folder with all that is left of a run that did not hold.

A pack is built from a journal (``pytest_chaos.runtime.journal``) by :func:`write`. The plugin calls
it when a run does not hold; the guardian when its controller is gone (:func:`salvage`); a later
session when it finds a left-over journal. None of it needs pytest.

    limits      the bounds of a pack; a part that was cut or unreadable becomes a row
    reading     opens a file without losing the locks that this process has on it
    databases   finds SQLite files and copies them, byte for byte, before anything opens them
    sqlite      what to ask any SQLite file
    files       copies the other files of the run's folder, within a budget
    redact      masks secrets in text
    gather      the facts of a journal, redacted and bounded
    index       ``evidence.sqlite``, the one file to query
    perfetto    the run as a trace
    manifest    every file with its size and hash, written last; verifies a pack
    pack        puts a pack together; ``open`` reads one; ``standalone`` makes one of a database
    records     ``records.jsonl`` of a session: what the reports are made of
    replay      runs a violation again from its pack: is it reproducible?

A pack is built in a sibling folder and renamed when it is whole. The order inside is: copies, then
questions to scratch copies, then the index, then the manifest.

Text is redacted. The byte-exact copies under ``database/`` and ``files/`` are **not**: they are
the evidence, and the manifest says so. The manifest is not signed: it shows damage and
carelessness, not a forger.

``plugin``, ``cli``, ``runtime`` (to save what a dead session left) and the package
``chaos_reports`` (``records`` alone) import this room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # every session imports this package
