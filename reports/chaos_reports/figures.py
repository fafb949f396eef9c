"""Numbers and texts, the same in all formats; what a green matrix does not prove. Pure."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pytest_chaos.model.statistics import CONFIDENCE, gate_pass_probability, runs_needed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.campaign import MatrixSummary

TEXT_CHARACTERS_MAX: Final = 600
"""Limit of a text that a program under test wrote."""

PAGES: Final = "failures"
"""The folder of failure pages, beside the session's ``evidence``."""
_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def percent(share: float | None) -> str:
    """Show a share between 0 and 1. Only all is 100 %, and only none is 0 %.

    >>> percent(4999 / 5000), percent(1.0), percent(None)
    ('99.9 %', '100 %', '—')
    """
    if share is None:
        return "—"
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    return f"{min(max(share * 100, 0.1), 99.9):.1f} %"


def moment(iso: str) -> str:
    """Show a moment in UTC, given in ISO 8601, as day and time."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)?$", r"\1 \2 UTC", clean(iso))


def duration(seconds: float) -> str:
    """Show a number of seconds with a suitable unit.

    >>> duration(0.0321), duration(75)
    ('32.1 ms', '75 s')
    """
    if not math.isfinite(seconds):
        return "—"
    if seconds < 0.0005:
        return "0 s" if seconds <= 0 else f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count_bytes: float) -> str:
    """Show a number of bytes in decimal units."""
    value, unit = float(count_bytes), _SIZES[0]
    for unit in _SIZES:  # noqa: B007 - the unit at which the loop ends is the result
        if abs(value) < 999.5:
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def number(value: float) -> str:
    """Show a count with separators, or a measured number with three digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def measure(name: str, value: float) -> str:
    """Show a number with the unit that its name ends with: ``_per_s``, ``_s``, ``_bytes``, ..."""
    if name.endswith("_per_s"):
        return f"{number(value)} / s"
    if name.endswith("_s"):
        return duration(value)
    if name.endswith("_ms"):
        return duration(value / 1000)
    if name.endswith(("_bytes", "_bytes_max")):
        return size(value)
    return percent(value) if name.endswith("_rate") and 0 <= value <= 1 else number(value)


def plural(count: int, one: str) -> str:
    """Return the count with its noun."""
    return f"{number(count)} {one if count == 1 else one + 's'}"


def clean(text: str) -> str:
    """Make control characters visible: a log line must not steer a terminal or a page."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def clip(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Clean a text and cut it, with the number of characters left out."""
    shown = clean(text)
    omitted = len(shown) - characters_max
    return shown if omitted <= 0 else f"{shown[:characters_max].rstrip()} … ({plural(omitted, 'character')} more)"


def short(text: str, characters_max: int) -> str:
    """Clean a name and cut it to a width.

    >>> short("unreasonably", 7)
    'unreas…'
    """
    shown = clean(text)
    return shown if len(shown) <= characters_max else f"{shown[: characters_max - 1]}…"


def page_path(evidence: str) -> str:
    """Return the path of the page of a pack; both are relative to the session, with slashes.

    >>> page_path("evidence/run-1"), page_path("../a/evidence/run-1")
    ('failures/run-1.html', '../a/failures/run-1.html')
    """
    session, _, name = evidence.rpartition("/")
    return f"{session.rpartition('/')[0]}/{PAGES}/{name}.html".removeprefix("/")


def href(path: str) -> str:
    """Return a relative link to a path, which cannot become a scheme or another host."""
    return "./" + quote(path, safe="/", errors="replace")


_SAMPLE_RATE: Final = 0.95
"""The true pass rate of the example in the text: it fails one time in twenty."""

_WAL_RESET_FIXED: Final = (3, 51, 3)


def not_proved(matrix: MatrixSummary) -> tuple[str, ...]:
    """Return, in sentences, what a green matrix does not prove."""
    return (*_power_loss(matrix), *_samples(matrix), *_coverage(matrix), *_SCOPE)


def known_limitations(matrix: MatrixSummary) -> tuple[str, ...]:
    """Return the known limitations: those that scenarios noted, and those of versions."""
    noted = dict.fromkeys(
        f"{each.scenario.title or each.scenario.id}: {text}" for each in matrix.scenarios for text in each.limitations
    )
    return (*noted, *_clock(matrix), *_versions(matrix))


def _clock(matrix: MatrixSummary) -> Iterator[str]:
    backwards = sum(run.duration_s < 0 for each in matrix.scenarios for run in each.records)
    if backwards:
        was = "has a duration" if backwards == 1 else "have durations"
        yield f"{plural(backwards, 'run')} {was} below zero: the clock ran backwards, so no duration here is certain."


_SCOPE: Final = (
    "It is about one machine. Another kernel, file system, disk or SQLite version may keep writes differently.",
    "Checkers find what they were told to look for. A property that nobody wrote down may be broken in every run.",
)


def _power_loss(matrix: MatrixSummary) -> Iterator[str]:
    if not any("power" in fault.kind and fault.fired for each in matrix.scenarios for fault in each.faults):
        yield (
            "Nothing here is about power loss. A process that is killed leaves the page cache of the kernel whole, so "
            "a commit that never reached the disk still looks durable afterwards."
        )


def _samples(matrix: MatrixSummary) -> Iterator[str]:
    judged = [each for each in matrix.scenarios if each.pass_rate_lower is not None]
    if not judged:
        return
    weakest = min(judged, key=lambda each: each.pass_rate_lower or 0.0)
    yield (
        f"Moments drawn at random are a sample, not all moments. {plural(weakest.held, 'run')} that held of "
        f"{weakest.held + weakest.violated} ({weakest.scenario.id}) show, at {percent(CONFIDENCE)} confidence, a pass "
        f"rate of at least {percent(weakest.pass_rate_lower)}; to claim 98 % takes {runs_needed(0.98)} clean runs."
    )
    chances = [(gate_pass_probability(_SAMPLE_RATE, each.runs, each.pass_rate_min), each) for each in judged]
    passed, easiest = max(chances, key=lambda chance: chance[0])
    yield (
        f"A scenario that fails one time in twenty passes the easiest gate here ({percent(easiest.pass_rate_min)} of "
        f"{plural(easiest.runs, 'run')}) in {percent(passed)} of all campaigns."
    )


def _coverage(matrix: MatrixSummary) -> Iterator[str]:
    kinds = sorted({fault.kind for each in matrix.scenarios for fault in each.faults if fault.fired})
    if kinds:
        yield f"Only these faults fired: {', '.join(kinds)}. Nothing follows from that for any other."
    points = [point for each in matrix.scenarios for point in each.crash_points]
    if missed := sum(not point.fired for point in points):
        yield f"No fault was fired at {missed} of the {plural(len(points), 'known crash point')}."


def _versions(matrix: MatrixSummary) -> Iterator[str]:
    sqlite = matrix.header.versions.get("sqlite", "")
    parts = tuple(int(part) for part in re.findall(r"\d+", sqlite)[:3])
    if parts and parts < _WAL_RESET_FIXED:
        yield (
            f"SQLite {sqlite} has the WAL-reset bug, mended in 3.51.3: with several connections it can, rarely, damage "
            "a database. Compare a finding with its signature before blaming the target."
        )
