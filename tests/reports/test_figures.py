"""Numbers and texts as a reader sees them."""

from __future__ import annotations

import pytest
from chaos_reports.figures import clean, clip, duration, href, measure, moment, percent, size
from hypothesis import given, strategies as st


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, "—"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.98, "98.0 %"),
        (0.9418, "94.2 %"),
        (0.9999, "99.9 %"),
        (1e-6, "0.1 %"),
    ],
)
def test_only_everything_is_a_hundred_percent(share: float | None, expected: str) -> None:
    """A share is never rounded to a claim that it does not make."""
    assert percent(share) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.0000123, "12 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (15.5, "15.5 s"),
        (99.6, "1 min 40 s"),
        (3599.7, "1 h 00 min"),
        (3600, "1 h 00 min"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, expected: str) -> None:
    """From microseconds to hours, also where rounding carries over."""
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (23_400_000, "23.4 MB")]
)
def test_a_size_is_decimal(count: int, expected: str) -> None:
    """Sizes carry over to the next unit instead of showing a thousand of one."""
    assert size(count) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("time_saved_s", 3480.0, "58 min 00 s"),
        ("checkpoints_per_s", 812.5, "812 / s"),
        ("flush_ms", 2.5, "2.5 ms"),
        ("log_bytes", 1500, "1.5 kB"),
        ("hit_rate", 0.5, "50.0 %"),
        ("tokens_saved", 100_000, "100,000"),
    ],
)
def test_a_measurement_is_read_by_the_unit_its_name_ends_with(name: str, value: float, expected: str) -> None:
    """Names end with their unit, so the report needs no table of them."""
    assert measure(name, value) == expected


def test_a_moment_is_shown_to_the_minute_and_anything_else_as_it_is() -> None:
    """What is not UTC in ISO 8601 is not made to look like it."""
    assert moment("2026-11-21T04:00:31.5Z") == "2026-11-21 04:00 UTC"
    assert moment("2026-11-21T04:00:31+02:00") == "2026-11-21T04:00:31+02:00"


def test_control_characters_are_made_visible() -> None:
    """A log line can neither colour a terminal nor turn the direction of the text."""
    assert clean("\x1b[31mred\u202e\x00") == "\\x1b[31mred\\x202e\\x00"


def test_a_cut_says_how_much_is_missing() -> None:
    """No text is shortened in silence."""
    assert clip("x" * 1_000, 10) == "x" * 10 + " … (990 characters more)"
    assert clip("short") == "short"


@given(st.text())
def test_a_link_never_leaves_its_place(path: str) -> None:
    """Whatever a record names as evidence, the link is relative,
    printable and closes no attribute.
    """
    link = href(path)
    assert link.startswith("./")
    assert not set(link) & set("\"'<> :\\\n\t")


@given(st.floats(0, 1e12))
def test_every_number_can_be_shown(value: float) -> None:
    """No size or duration makes a report fail."""
    assert duration(value).split()[-1] in {"s", "ms", "µs", "min"}
    assert size(value).split()[-1] in {"B", "kB", "MB", "GB", "TB"}
