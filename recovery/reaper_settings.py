"""The settings of a reaper: one value, checked once, with everything that is wrong in one error."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from recovery.errors import InvalidSetting

_DURATION_S_MAX: Final = 365 * 24 * 3600.0
_TICKS_MAX: Final = 1_000_000


class ReaperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a reaper does what. Durations are seconds. Raises InvalidSetting, which names all that cannot be meant.

    ``reaper_enabled`` and ``lease_reclaim_enabled`` are switches of their own; what is off does nothing, and is no
    error. ``lease_folder`` is where the lease files are that a start reclaims, if anywhere.
    """

    reaper_enabled: bool = True
    lease_reclaim_enabled: bool = True
    reaper_dead_ticks: int = 2
    reaper_finalize_grace_s: float = 300.0
    reaper_max_running_s: float = 7200.0
    reaper_interval_s: float = 30.0
    lease_folder: str | None = None

    def __post_init__(self) -> None:
        """Check all of them."""
        problems = []
        if isinstance(self.reaper_dead_ticks, bool) or not 1 <= self.reaper_dead_ticks <= _TICKS_MAX:
            problems.append(
                f"reaper_dead_ticks={self.reaper_dead_ticks!r} is no number of ticks from 1 to {_TICKS_MAX}"
            )
        for name, low in (("finalize_grace", 0.0), ("max_running", 0.001), ("interval", 0.001)):
            value = getattr(self, f"reaper_{name}_s")
            if not (math.isfinite(value) and low <= value <= _DURATION_S_MAX):
                problems.append(f"reaper_{name}_s={value!r} is not between {low:g} and {_DURATION_S_MAX:g} s")
        if problems:
            message = f"Expected settings of a reaper but {'; '.join(problems)}; correct these."
            raise InvalidSetting(message)
