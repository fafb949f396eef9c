"""The bounded wait of the tests: for a condition that another thread,
process or the kernel brings about.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND_S: Final = 60.0
_PAUSE_S: Final = 0.001


def until(condition: Callable[[], object], what: str | Callable[[], str] = "the condition did not come") -> None:
    """Wait until ``condition()`` is true, ``BOUND_S`` seconds at most;
    ``what`` says what failed.
    """
    deadline_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline_s, what if isinstance(what, str) else what()
        time.sleep(_PAUSE_S)  # sleeps because this is the pause of the tests' bounded wait
