"""Known findings: what an exploration may find again without failing.

    compare     what is new, what is known, what is not seen any more; pure
    file        the file of a baseline: read, checked, written whole or not at all

A program that has findings cannot be explored in CI if each of them fails each job. ``chaos explore
--write-baseline FILE`` writes what is found today; ``--baseline FILE`` fails on what is not in it.
The file is meant for version control: JSON, one entry a line, sorted.

An entry is a finding by its cause, not by its state: the signature without numbers and keys, the
family, the disk model of a power loss, and of a kill the function whose step it came before. So the
same loss is *new* if a kill shows it where only a power loss did, or ext4 where only a strict disk
did, or if it shows in another function. It stays *known* if lines move or the seed is another.

Line numbers are left out as mypy-baseline leaves them out; that an entry which is gone is told, and
not failed, is its habit, too. detect-secrets and Ruff's ``noqa`` keep what is known in files, too.
"""

from pytest_chaos.explore.baseline.compare import (
    AgainstBaseline,
    Baseline,
    KnownFinding,
    compared,
    known_findings,
    rest,
)
from pytest_chaos.explore.baseline.file import BaselineError, check_destination, read_baseline, write_baseline

__all__ = [
    "AgainstBaseline",
    "Baseline",
    "BaselineError",
    "KnownFinding",
    "check_destination",
    "compared",
    "known_findings",
    "read_baseline",
    "rest",
    "write_baseline",
]
