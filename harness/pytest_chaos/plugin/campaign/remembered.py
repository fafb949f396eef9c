"""The seed and the iterations of the last session, from pytest's cache, for ``--lf`` and ``--ff``.

The failing runs of a campaign are named by their iteration, and what an iteration draws depends on
the seed. So ``pytest --lf`` goes back to both, unless they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

    from pytest_chaos.plugin.settings import Settings

_KEY: Final = "chaos/campaign"
_OPTIONS: Final = ("chaos_seed", "chaos_iterations")


def remember(config: pytest.Config, settings: Settings) -> None:
    """Keep what a later ``--lf`` needs; nothing without the cache."""
    cache = getattr(config, "cache", None)
    if cache is not None:
        cache.set(_KEY, {"chaos_seed": settings.seed, "chaos_iterations": str(settings.iterations)})


def remembered(config: pytest.Config) -> dict[str, str]:
    """Return the options of the last session, if this one runs its failures."""
    option = config.option
    cache = getattr(config, "cache", None)
    if cache is None or not (getattr(option, "lf", False) or getattr(option, "failedfirst", False)):
        return {}
    found = cache.get(_KEY, {})
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in _OPTIONS if isinstance(found.get(name), str)}
