"""Network: what stands between programs of one machine, and what is done to it without privilege.

    from pytest_chaos.network import disturb, heal, isolate, partition

``link.py``         the test's side of a link, a TCP proxy on loopback
``link_server.py``  its process: connections carried, held, slowed, cut, reset, left half open
``cuts.py``         who no longer reaches whom: partitions, bridges, rings of majorities
``answers.py``      the watcher's part: network calls of any program, answered with an errno
``trial.py``        a child's call answered, to see whether it works here
``sockets.py``      the kernel's table of sockets, for receipts

The kinds of faults, and the functions that plan them, are in ``faults/network``; the names below
are theirs. What works and what does not: docs/how-to/network.md.
"""

import importlib
from typing import Any, Final

_LINKS: Final = "pytest_chaos.faults.network.links"
_PARTITIONS: Final = "pytest_chaos.faults.network.partitions"
__all__ = ["bridge", "disturb", "heal", "isolate", "majorities_ring", "partition", "unreachable"]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_LINKS if name == "disturb" else _PARTITIONS), name)
