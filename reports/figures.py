"""Numbers and texts as a reader sees them: one place, so that all formats say the same. Pure."""

from __future__ import annotations

import math
import re
from typing import Final
from urllib.parse import quote

TEXT_CHARACTERS_MAX: Final = 600
"""How much of a text that a program under test wrote is shown."""

_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def percent(share: float | None) -> str:
    """Show a share between 0 and 1. Only everything is 100 %, only nothing is 0 %: 4,999 of 5,000 is 99.9 %."""
    if share is None:
        return "—"
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    return f"{min(max(share * 100, 0.1), 99.9):.1f} %"


def moment(iso: str) -> str:
    """Show a moment in UTC, given in ISO 8601, in a form that may be broken between day and time."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)?$", r"\1 \2 UTC", clean(iso))


def duration(seconds: float) -> str:
    """Show a number of seconds with a unit that suits it."""
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
    """Show a count with separators, or a measured number with three digits that mean something."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def measure(name: str, value: float) -> str:
    """Show a number by the unit its name ends with: ``_per_s``, ``_s``, ``_ms``, ``_bytes``, ``_rate``; else plain."""
    if name.endswith("_per_s"):
        return f"{number(value)} / s"
    if name.endswith("_s"):
        return duration(value)
    if name.endswith("_ms"):
        return duration(value / 1000)
    if name.endswith(("_bytes", "_bytes_max")):
        return size(value)
    return percent(value) if name.endswith("_rate") and 0 <= value <= 1 else number(value)


def plural(count: int, one: str, many: str = "") -> str:
    """Return the count with its noun."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def clean(text: str) -> str:
    """Make control characters visible: a log line must neither colour a terminal nor turn the direction of a page."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def clip(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Clean a text and cut it, saying how much is left out."""
    shown = clean(text)
    omitted = len(shown) - characters_max
    return shown if omitted <= 0 else f"{shown[:characters_max].rstrip()} … ({plural(omitted, 'character')} more)"


def href(path: str) -> str:
    """Return a relative link to a path; whatever the record says, it cannot become a scheme or another host."""
    return "./" + quote(path, safe="/", errors="replace")
