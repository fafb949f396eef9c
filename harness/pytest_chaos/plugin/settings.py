"""The plugin's options as data: names, help, how they are written. Imports nothing: pytest always loads it.

Settings of a session: built and checked once, from all their sources, all problems told together.

Precedence: ini < environment < command line; a marker may raise or lower what concerns its own
scenario alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.seed import draw_seed, normalise_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Option(NamedTuple):
    """One setting: its ini name; with dashes the command-line option, in capitals the environment variable."""

    name: str
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.name.upper()


class Flag(NamedTuple):
    """An option that makes sense on the command line alone; ``arguments`` are argparse's."""

    flag: str
    name: str
    help: str
    arguments: dict[str, Any]


OPTIONS: Final = (
    Option("chaos_seed", "SEED", "Seed of everything random (default: drawn, and shown)."),
    Option("chaos_iterations", "N", "Runs of each scenario's quick form, as separate tests (default: 1)."),
    Option(
        "chaos_min_pass_rate", "P", "Least share of runs that hold, 0 to 1 (default: 1.0; for several iterations 0.98)."
    ),
    Option("chaos_confirm", "N", "Replays of a violation before it is reported (default: 2; 0: none)."),
    Option("chaos_results", "DIR", "Folder for records, reports and evidence (default: chaos-results)."),
    Option("chaos_report", "FORMATS", "Formats of the matrix, separated by commas (default: md,html,json)."),
    Option(
        "chaos_scratch", "DIR", "Folder for the files of runs, removed afterwards (default: /dev/shm if there is one)."
    ),
)

FLAGS: Final = (
    Flag(
        "--chaos-quick",
        "chaos_quick",
        "Same as 10 iterations with a least pass rate of 0.95.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-scenario",
        "chaos_scenario",
        "Only the scenario with this id; may be given again. 'chaos list' shows them.",
        {"action": "append", "metavar": "ID", "default": None},
    ),
    Flag("--chaos-replay", "chaos_replay", "Only the run in this evidence pack.", {"metavar": "PACK", "default": None}),
    Flag(
        "--chaos-list-json",
        "chaos_list_json",
        "Write the collected scenarios to a file as JSON and run nothing.",
        {"metavar": "FILE", "default": None},
    ),
)


QUICK_ITERATIONS: Final = 10
QUICK_PASS_RATE_MIN: Final = 0.95
CAMPAIGN_PASS_RATE_MIN: Final = 0.98
CONFIRM_REPLAYS: Final = 2
FORMATS: Final = ("md", "html", "json")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a session goes by. ``seed_given`` says whether the user chose the seed."""

    seed: str
    seed_given: bool
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
    """Build the settings from all sources. Raises UsageError that lists every problem at once."""
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
    number = read(iterations, QUICK_ITERATIONS if quick else 1, _parse_iterations)
    default_rate = QUICK_PASS_RATE_MIN if quick else 1.0 if number == 1 else CAMPAIGN_PASS_RATE_MIN
    settings = Settings(
        seed=seed_text or draw_seed(),
        seed_given=bool(seed_text),
        iterations=number,
        pass_rate_min=read(rate, default_rate, _parse_rate),
        replays=read(confirm, CONFIRM_REPLAYS, _parse_replays),
        results=root / read(results, "chaos-results", str),
        formats=read(formats, FORMATS, _parse_formats),
        scratch=Path(read(scratch, str(_default_scratch()), str)),
        scenarios=scenarios,
        replay=Path(replay) if replay is not None else None,
    )
    if problems:
        raise UsageError("; ".join(problems))
    return settings


def _parse_iterations(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        msg = f"a whole number of at least 1 was expected, and this is {text!r}"
        raise UsageError(msg)
    return int(text)


def _parse_replays(text: str) -> int:
    if not text.strip().isdecimal():
        msg = f"a whole number of 0 or more was expected, and this is {text!r}"
        raise UsageError(msg)
    return int(text)


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        msg = f"a share from 0 to 1 was expected (0.98 for 98 %), and this is {text!r}"
        raise UsageError(msg)
    return rate


def _parse_formats(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [part for part in found if part not in FORMATS]:
        msg = f"there is no report format {unknown[0]!r}; there are {', '.join(FORMATS)}"
        raise UsageError(msg)
    return found


def _default_scratch() -> Path:
    """Return a memory file system where there is one: a SIGKILL loses no page cache, a disk would prove no more."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, with mode 0700
    if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK):
        return memory
    import tempfile  # only without a memory file system

    return Path(tempfile.gettempdir())
