"""The settings of a reconciler, and for how long each stage is left to its webhooks."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import msgspec

from recovery.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Collection

_DURATION_S_MAX: Final = 365 * 24 * 3600.0
_LOGGER: Final = logging.getLogger("recovery.reconciler")


class ReconcilerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciler does, and how patient it is. Durations are seconds. Raises InvalidSetting, which names all.

    ``reconcile_enabled`` mutes everything, ``reconcile_plane_enabled`` the tracker's part alone; what is off does
    nothing, and is no error. ``reconcile_start_approved`` also starts what is Approved and has no task, since start and
    verdict were both lost, and lets the approval count when the first stage's work is done; it is off since a tracker
    may hold many issues that were approved before it had a pipeline. ``reconcile_grace_overrides_json`` is a JSON
    object of stages and their grace; one that cannot be read is no reason not to start: the default holds (``Graces``).
    """

    reconcile_enabled: bool = True
    reconcile_plane_enabled: bool = True
    reconcile_notify_unblock: bool = True
    reconcile_start_approved: bool = False
    reconcile_grace_default_s: float = 600.0
    reconcile_grace_overrides_json: str = ""
    reconcile_interval_s: float = 60.0

    def __post_init__(self) -> None:
        """Check all of them but the overrides."""
        problems = []
        for name, low in (("grace_default", 0.0), ("interval", 0.001)):
            value = getattr(self, f"reconcile_{name}_s")
            if not _is_duration(value) or value < low:
                problems.append(f"reconcile_{name}_s={value!r} is not between {low:g} and {_DURATION_S_MAX:g} s")
        if problems:
            message = f"Expected settings of a reconciler but {'; '.join(problems)}; correct these."
            raise InvalidSetting(message)


class Graces:
    """How many seconds a task may wait in a stage before the reconciler looks at it.

    What is wrong with the overrides is one warning, in which everything is; the default holds in its place.
    """

    def __init__(self, settings: ReconcilerSettings, stages: Collection[str]) -> None:
        """Read the overrides."""
        self._default_s = settings.reconcile_grace_default_s
        self._overrides_s, problems = _overrides(settings.reconcile_grace_overrides_json, stages)
        if problems:
            _LOGGER.warning(
                "reconcile_grace_overrides_json is not as expected, and %g s hold instead: %s; give a JSON object of "
                'stages and seconds, such as {"review": 7200}',
                self._default_s,
                "; ".join(problems),
            )

    def grace_for_stage(self, stage: str) -> float:
        """Return the seconds."""
        return self._overrides_s.get(stage, self._default_s)


def _overrides(text: str, stages: Collection[str]) -> tuple[dict[str, float], list[str]]:
    """Return what can be read of the overrides, and what is wrong with them."""
    if not text.strip():
        return {}, []
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        return {}, [f"it is not JSON ({error})"]
    if not isinstance(found, dict):
        return {}, [f"it is {found!r:.80}, which is no object"]
    good = {stage: float(value) for stage, value in found.items() if stage in stages and _is_duration(value)}
    problems = [f"{stage!r:.80} is no stage" for stage in found if stage not in stages]
    problems += [
        f"the grace of {stage!r} is {value!r:.80}"
        for stage, value in found.items()
        if stage in stages and stage not in good
    ]
    return good, problems


def _is_duration(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= _DURATION_S_MAX  # type: ignore[arg-type,operator]
