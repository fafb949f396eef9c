"""Resources: what a running agent may use, and how it is seen that it met the bound.

    from pytest_chaos.resources import crowd, limit, starve, unlimit

``limits.py``   bounds of the kernel on a live process (prlimit), what is in use
``witness.py``  a process that sees the agent's own call fail (ptrace), for receipts
``standing.py``  whether a process that a witness traces stands still
``starver.py``  a process that lets an agent run for a share of the time
``crowder.py``  processes that spin on the one processor that an agent may use

The kinds of faults, and the functions that plan them, are in ``faults/resources``; the names above
are theirs. What works and what does not: docs/how-to/resources.md.
"""

import importlib
from typing import Any, Final

_PLACES: Final = dict.fromkeys(("crowd", "limit", "starve", "unlimit"), "pytest_chaos.faults.resources.kinds")
"""The module of each name. ``lazy_loader`` takes names of this package alone."""
__all__ = ["crowd", "limit", "starve", "unlimit"]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_PLACES[name]), name)
