"""The settings of a session, built and checked once, from all their sources.

Precedence: ini < environment < command line. A marker may change ``min_pass_rate`` for its own
scenario. All problems are reported together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError
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
_DIGITS_MAX: Final = 20
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


def collect(
    *,
    command_line: Mapping[str, str | None],
    environment: Mapping[str, str],
    ini: Callable[[str], str],
    quick: bool,
    scenarios: tuple[str, ...],
    replay: str | None,
    root: Path,
) -> Settings:
    """Build the settings from all sources. Raises UsageError with all problems."""
    problems: list[str] = []

    def read(option: Option, default: Any, parse: Callable[[str], Any]) -> Any:
        given = command_line.get(option.name)
        name = option.flag
        if given is None and (given := environment.get(option.variable)) is not None:
            name = option.variable
        if given is None and (given := ini(option.name) or None) is not None:
            name = option.name
        if given is None:
            return default
        try:
            return parse(given)
        except (ValueError, UsageError) as error:
            problems.append(f"{name}: {error}")
            return default

    seed, iterations, rate, confirm, results, formats, scratch = OPTIONS
    seed_text = read(seed, "", normalise_seed)
    number = read(iterations, QUICK_ITERATIONS if quick else 1, lambda text: _parse_count(text, 1, ITERATIONS_MAX))
    default_rate = QUICK_PASS_RATE_MIN if quick else 1.0 if number == 1 else CAMPAIGN_PASS_RATE_MIN
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
    )
    if problems:
        raise UsageError("; ".join(problems))
    return settings


def _parse_count(text: str, minimum: int, maximum: int) -> int:
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > _DIGITS_MAX or not minimum <= int(digits) <= maximum:
        msg = f"must be a whole number from {minimum} to {maximum:,}; got {text[:40]!r}"
        raise UsageError(msg)
    return int(digits)


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        msg = f"must be a share from 0 to 1 (0.98 for 98 %); got {text!r}"
        raise UsageError(msg)
    return rate


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
