"""The settings of a session, built and checked once, from all their sources.

Precedence: ini < environment < command line. A marker may change ``min_pass_rate`` for its own
scenario. All problems are reported together.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.deciding.sequential import check_rate, runs_to_prove
from pytest_chaos.model.deciding.shards import Shard, parse as parse_shard
from pytest_chaos.model.plan import ITERATIONS_MAX
from pytest_chaos.model.seed import draw_seed, normalise_seed
from pytest_chaos.plugin.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.plugin.options import Option


QUICK_ITERATIONS: Final = 10
QUICK_PASS_RATE_MIN: Final = 0.95
CAMPAIGN_PASS_RATE_MIN: Final = 0.98
CONFIRM_REPLAYS: Final = 2
CONFIRM_REPLAYS_MAX: Final = 1_000
PROOF_VIOLATED: Final = 2
"""Violated runs for which a proof has room, if nobody gives the number of iterations."""
_DIGITS_MAX: Final = 20
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h)?")
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
DEFAULT_FORMATS: Final = ("md", "html", "json")
FORMATS: Final = (*DEFAULT_FORMATS, "ctrf")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a session."""

    seed: str
    iterations: int
    pass_rate_min: float
    replays: int
    results: Path
    formats: tuple[str, ...]
    scratch: Path
    scenarios: tuple[str, ...] = ()
    replay: Path | None = None
    prove: float | None = None
    budget_s: float | None = None
    shard: Shard | None = None
    cluster: str = ""


def collect(
    *,
    command_line: Mapping[str, str | None],
    environment: Mapping[str, str],
    ini: Callable[[str], str],
    quick: bool,
    scenarios: tuple[str, ...],
    replay: str | None,
    root: Path,
    remembered: Mapping[str, str] | None = None,
) -> Settings:
    """Build the settings from all sources. Raises UsageError with all problems.

    ``remembered`` are options of the last session, in place of what is given nowhere.
    """
    problems: list[str] = []

    def read(option: Option, default: Any, parse: Callable[[str], Any]) -> Any:
        given = command_line.get(option.name)
        name = option.flag
        if given is None and (given := environment.get(option.variable)) is not None:
            name = option.variable
        if given is None and (given := ini(option.name) or None) is not None:
            name = option.name
        if given is None and (given := (remembered or {}).get(option.name)) is None:
            return default
        try:
            return parse(given)
        except (ValueError, UsageError) as error:
            problems.append(f"{name}: {error}")
            return default

    seed, iterations, rate, confirm, results, formats, scratch, prove, budget, shard, cluster = OPTIONS
    seed_text = read(seed, "", normalise_seed)
    proved = read(prove, None, _parse_proof)
    fallback = QUICK_ITERATIONS if quick else 1 if proved is None else _iterations_to_prove(proved)
    number = read(iterations, fallback, lambda text: _parse_count(text, 1, ITERATIONS_MAX))
    default_rate = QUICK_PASS_RATE_MIN if quick else 1.0 if number == 1 else CAMPAIGN_PASS_RATE_MIN
    default_rate = default_rate if proved is None else proved
    settings = Settings(
        seed=seed_text or draw_seed(),
        iterations=number,
        pass_rate_min=read(rate, default_rate, _parse_rate),
        replays=read(confirm, CONFIRM_REPLAYS, lambda text: _parse_count(text, 0, CONFIRM_REPLAYS_MAX)),
        results=root / read(results, "chaos-results", str),
        formats=read(formats, DEFAULT_FORMATS, _parse_formats),
        scratch=Path(read(scratch, str(_default_scratch()), str)),
        scenarios=scenarios,
        replay=Path(replay) if replay is not None else None,
        prove=proved,
        budget_s=read(budget, None, _parse_time),
        shard=read(shard, None, parse_shard),
        cluster=read(cluster, "", _parse_cluster),
    )
    if settings.shard is not None and not seed_text:
        problems.append(f"{shard.flag}={settings.shard} must come with {seed.flag}, the same for all shards; got none")
    if proved is not None and command_line.get(rate.name) is not None:
        problems.append(f"{rate.flag} must be left out with {prove.flag}, which is a least pass rate; got both")
    if problems:
        raise UsageError("; ".join(problems))
    return settings


def _parse_count(text: str, minimum: int, maximum: int) -> int:
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > _DIGITS_MAX or not minimum <= int(digits) <= maximum:
        msg = f"must be a whole number from {minimum} to {maximum:,}; got {text[:40]!r}"
        raise UsageError(msg)
    return int(digits)


def _parse_cluster(text: str) -> str:
    from pytest_chaos.explore.cluster.address import read_address, require_extra  # only where there is one

    address = read_address(text)
    require_extra(address)
    return address.text


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        msg = f"must be a share from 0 to 1 (0.98 for 98 %); got {text!r}"
        raise UsageError(msg)
    return rate


def _parse_proof(text: str) -> float:
    rate = _parse_rate(text)
    check_rate(rate)
    return rate


def _iterations_to_prove(rate: float) -> int:
    """Return the most iterations of a campaign that stops once it is decided."""
    return min(ITERATIONS_MAX, runs_to_prove(rate, PROOF_VIOLATED))


def _parse_time(text: str) -> float:
    """Return the seconds of a time such as ``90s``, ``10m`` or ``2h``."""
    found = _TIME.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2] or ""] if found else 0.0
    if not 0 < seconds < math.inf:
        msg = f"must be a time above zero, such as 90s, 10m or 2h; got {text[:40]!r}"
        raise UsageError(msg)
    return seconds


def _parse_formats(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [part for part in found if part not in FORMATS]:
        msg = f"must be of the formats {', '.join(FORMATS)}; got {unknown[0]!r}"
        raise UsageError(msg)
    return found


def _default_scratch() -> Path:
    """Return a memory file system if there is one: after SIGKILL a disk proves no more."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, with mode 0700
    if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK):
        return memory
    import tempfile  # only without a memory file system

    return Path(tempfile.gettempdir())
