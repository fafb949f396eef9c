"""A session that ended early, by Ctrl-C or killed, and the runs that it has made.

It goes on in its own folder, with its seed, its iterations and its header, so its records are those
of one campaign. A run whose record is there is not made again. One that was cut short is, and its
earlier record does not count.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.model.values import RunRecord, SessionHeader
    from pytest_chaos.plugin.settings import Settings

LATEST: Final = "latest"
_SAVED_S_MAX: Final = 15.0


class Resumed(NamedTuple):
    """A session that goes on: its header, the runs that count, and those that are made again."""

    header: SessionHeader
    runs: tuple[RunRecord, ...]
    again: tuple[tuple[str, int], ...]
    made: frozenset[tuple[str, int]]
    folder: Path


def find(given: str, results: Path, here: Path, scratch: Path, runs_max: int | None = None) -> Resumed:
    """Read the session to go on with. Raises ResultsError or UsageError.

    ``runs_max`` is how many runs the controller of a worker has found: later ones are of this
    session, and a worker that takes the place of another must collect the same.
    """
    from pytest_chaos.evidence import records
    from pytest_chaos.model.campaign import is_cut_short
    from pytest_chaos.runtime import scratch as scratches

    candidates = (here / given, results / given, results / "sessions" / given)
    folder = next((each for each in candidates if (each / records.FILE_NAME).is_file()), None)
    if folder is None:
        msg = f"--chaos-resume must name a session in {results}, or 'latest'; got {given!r}, which has no records"
        raise UsageError(msg)
    folder = folder.resolve()
    deadline_s = time.monotonic() + _SAVED_S_MAX
    while scratches.runs_under_way(scratch, folder) and time.monotonic() < deadline_s:  # its guardian saves evidence
        if not scratches.sweep(scratch):
            time.sleep(0.01)
    found = records.read(folder)
    if not found.header.planned:
        msg = f"--chaos-resume must name a session that says what it planned; {folder.name} does not. Begin a new one"
        raise UsageError(msg)
    again = {(run.node_id, run.iteration) for run in found.runs if is_cut_short(run)}
    runs = tuple(run for run in found.runs if (run.node_id, run.iteration) not in again)[:runs_max]
    made = frozenset((run.node_id, run.iteration) for run in runs)
    return Resumed(found.header, runs, tuple(sorted(again)), made, folder)


def check_options(header: SessionHeader, settings: Settings, command_line: Mapping[str, str | None]) -> None:
    """Raise UsageError for an option that would make another campaign of it."""
    now = {
        "chaos_seed": (settings.seed, header.seed),
        "chaos_iterations": (settings.iterations, header.iterations),
        "chaos_min_pass_rate": (settings.pass_rate_min, header.pass_rate_min),
        "chaos_prove": (settings.prove, header.prove),
        "chaos_shard": (str(settings.shard or ""), header.shard),
    }
    for name, (given, then) in now.items():
        if command_line.get(name) is not None and given != then:
            msg = (
                f"--{name.replace('_', '-')} must be that of the campaign, {then or 'none'}; got {given}. Leave it out"
            )
            raise UsageError(msg)
