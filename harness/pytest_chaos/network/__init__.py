"""Network: what stands between programs of one machine, and what is done to it without privilege.

    from pytest_chaos.network import disturb

``link.py``         the test's side of a link, a TCP proxy on loopback
``link_server.py``  its process: connections carried, held, slowed, cut, reset, left half open
``sockets.py``      the kernel's table of sockets, for receipts

The kinds of faults, and the functions that plan them, are in ``faults/network``; the names below
are theirs. What works and what does not: docs/how-to/network.md.
"""

import importlib
from typing import Any, Final

_PLACES: Final = {"disturb": "pytest_chaos.faults.network.links"}
"""The module of each name. ``lazy_loader`` takes names of this package alone."""
__all__ = ["disturb"]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_PLACES[name]), name)
