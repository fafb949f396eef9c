"""Swim lanes: who did what in which order, laid out for an SVG. Pure.

The place of a mark in the mark file is the only clock, so the axis counts marks (or durable steps),
not seconds. A long history is shown in pieces: what surrounds faults, findings, starts and unknown
operations. The pieces between them are counted in a break.

Sources of the picture: Jepsen's timeline and porcupine's visualisation, which open-end unknown
operations, too.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SHOWN_MAX: Final = 320
"""Places of the axis that are drawn; of a longer history, those around what matters."""
AROUND: Final = 10
LANES_MAX: Final = 40
ROWS_MAX: Final = 6
"""Rows of one lane: operations that are under way at once lie below each other."""

STEP_PX: Final = 24
FLAG_ROWS_MAX: Final = 4
STEP_PX_MAX: Final = 64
"""A short history is drawn wider, to fill :data:`WIDTH_PX`."""
WIDTH_PX: Final = 1_000
BREAK_PX: Final = 64
ROW_PX: Final = 22
MARGIN_PX: Final = 10
HEAD_PX: Final = 22
FLAG_PX: Final = 18


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that lasts from one place of the axis to another.

    ``end`` None is open: it was never acknowledged, or it never ended. ``kind`` is a class of the
    page: process, ack, unknown, lost, stray, lease, checkpoint. ``brief`` is shown where there is
    no room for ``label``.
    """

    lane: str
    start: int
    end: int | None
    kind: str
    label: str = ""
    brief: str = ""
    title: str = ""
    row: int = 0
    """The row in the lane that it keeps for itself; 0 finds one for it."""


class Instant(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens at one place: a durable step, a note. ``kind``: write, sync, note."""

    lane: str
    at: int
    kind: str
    title: str = ""


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """A fault: a line through all lanes, or a band up to ``end``. It struck before this place."""

    at: int
    label: str
    title: str = ""
    end: int | None = None


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """A span or band as drawn, in pixels. ``text`` is empty where it would not fit."""

    x: int
    y: int
    width: int
    height: int
    kind: str
    text: str = ""
    title: str = ""
    is_open: bool = False


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """A moment as drawn, in pixels."""

    x: int
    y: int
    kind: str
    title: str = ""


class LaneBox(msgspec.Struct, frozen=True, kw_only=True):
    """A lane as drawn: its name beside it, its place in pixels."""

    name: str
    y: int
    height: int


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """The picture. ``omitted`` counts the places of the axis that are not drawn."""

    width: int
    height: int
    lanes: tuple[LaneBox, ...]
    boxes: tuple[Box, ...]
    dots: tuple[Dot, ...]
    bands: tuple[Box, ...]
    breaks: tuple[Box, ...]
    ticks: tuple[tuple[int, str], ...]
    unit: str
    omitted: int = 0
    lanes_omitted: int = 0


class _Axis:
    """The places that are drawn, each with its pixel; breaks where some are left out."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        self.step = min(STEP_PX_MAX, max(STEP_PX, WIDTH_PX // max(1, len(places))))
        self._x: list[int] = []
        self.breaks: list[tuple[int, int]] = []
        x = MARGIN_PX
        for before, place in zip([None, *places], places, strict=False):
            if before is not None and place != before + 1:
                self.breaks.append((x, place - before - 1))
                x += BREAK_PX
            self._x.append(x)
            x += self.step
        self.end = x

    def x(self, place: int) -> int:
        """Return where a place begins; one in a break is at the end of the break."""
        index = bisect.bisect_left(self.places, place)
        return self._x[index] if index < len(self._x) else self.end

    def shows(self, start: int, end: int | None) -> bool:
        """Whether anything of a span is drawn."""
        index = bisect.bisect_left(self.places, start)
        return index < len(self.places) and (end is None or self.places[index] <= end)


def layout(
    length: int,
    spans: Iterable[Span],
    moments: Iterable[Instant] = (),
    strikes: Iterable[Strike] = (),
    *,
    matters: Iterable[int] = (),
    unit: str = "mark",
    numbers: Sequence[int] = (),
) -> Chart | None:
    """Lay out a history of ``length`` places; return None if there is nothing to draw.

    ``matters`` are the places to show first where not all fit. ``numbers`` are the numbers of the
    places on the axis, 0 for none; by default they count from 1. Lanes are in the order in which
    they are first named.
    """
    spans, moments, strikes = list(spans), list(moments), list(strikes)
    names = list(dict.fromkeys([span.lane for span in spans] + [moment.lane for moment in moments]))
    if not names or length <= 0:
        return None
    axis = _Axis(_shown(length, [*(strike.at for strike in strikes), *matters]))
    rows = _Rows(axis)
    lanes, boxes, dots = [], [], []
    by_lane: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_lane[span.lane].append(span)
    dots_of: defaultdict[str, list[Instant]] = defaultdict(list)
    for moment in moments:
        dots_of[moment.lane].append(moment)
    bands, flag_rows = _bands(axis, _merged(strikes))
    top = y = HEAD_PX + flag_rows * FLAG_PX + 10
    for name in names[:LANES_MAX]:
        placed, height = rows.place(by_lane[name], has_moments=bool(dots_of[name]))
        boxes += [_box(axis, span, y + row * ROW_PX) for span, row in placed]
        at = y + height - ROW_PX
        dots += [
            Dot(x=axis.x(each.at) + axis.step // 2, y=at + ROW_PX // 2, kind=each.kind, title=each.title)
            for each in dots_of[name]
            if axis.shows(each.at, each.at)
        ]
        lanes.append(LaneBox(name=name, y=y, height=height))
        y += height + 14
    return Chart(
        width=max([axis.end + MARGIN_PX + STEP_PX, *(_flag_end(band.x, band.text) for band in bands)]),
        height=y + 4,
        lanes=tuple(lanes),
        boxes=tuple(boxes),
        dots=tuple(dots),
        bands=tuple(msgspec.structs.replace(band, height=y - band.y) for band in bands),
        breaks=tuple(
            Box(x=x, y=top, width=BREAK_PX, height=y - top, kind="break", text=f"{count:,}") for x, count in axis.breaks
        ),
        ticks=tuple(_ticks(axis, numbers)),
        unit=unit,
        omitted=length - len(axis.places),
        lanes_omitted=max(0, len(names) - LANES_MAX),
    )


def _shown(length: int, matters: Sequence[int]) -> list[int]:
    """Return the places that are drawn: all of a short history, else those around what matters."""
    if length <= SHOWN_MAX:
        return list(range(length))
    shown: set[int] = set()
    for place in [*matters, length - 1, 0]:
        near = min(max(place, 0), length - 1)
        around = set(range(max(0, near - AROUND), min(length, near + AROUND))) - shown
        if len(shown) + len(around) > SHOWN_MAX:
            continue
        shown |= around
    return sorted(shown)


class _Rows:
    """Gives each span of a lane a row in which nothing else is at that time."""

    def __init__(self, axis: _Axis) -> None:
        self._axis = axis

    def place(self, spans: Iterable[Span], *, has_moments: bool) -> tuple[list[tuple[Span, int]], int]:
        """Return the spans that are drawn with their rows, and the height of the lane."""
        drawn = [span for span in spans if self._axis.shows(span.start, span.end)]
        fixed = max((span.row for span in drawn), default=0)
        free: list[int] = []
        placed: list[tuple[Span, int]] = []
        for span in sorted(drawn, key=lambda span: span.start):
            if span.row:
                placed.append((span, span.row - 1))
                continue
            end = self._axis.end + 1 if span.end is None else self._axis.x(span.end)
            row = next((row for row, until in enumerate(free) if until <= self._axis.x(span.start)), len(free))
            if row == len(free) and row < ROWS_MAX:
                free.append(0)
            row = min(row, ROWS_MAX - 1)
            free[row] = max(free[row], end)
            placed.append((span, fixed + row))
        rows = fixed + len(free) + has_moments
        return placed, max(1, rows) * ROW_PX


def _box(axis: _Axis, span: Span, y: int) -> Box:
    x = axis.x(span.start) + 1
    end = axis.end + STEP_PX if span.end is None else axis.x(span.end) + axis.step
    width = max(axis.step - 2, end - x - 1)
    is_process = span.kind.startswith("process")
    return Box(
        x=x,
        y=y + (7 if is_process else 2),
        width=width,
        height=8 if is_process else ROW_PX - 4,
        kind=span.kind,
        text=_fitting(span.label, span.brief, width),
        title=span.title,
        is_open=span.end is None,
    )


def _fitting(text: str, brief: str, width: int) -> str:
    """Return the text or the brief one, or as much of it as fits into so many pixels."""
    most = (width - 6) // 7
    for each in (text, brief):
        if each and len(each) <= most:
            return each
    short = brief or text
    return f"{short[: most - 1]}…" if most >= 3 else ""


def _merged(strikes: Iterable[Strike]) -> list[Strike]:
    """Return one strike for those at the same place."""
    groups: defaultdict[tuple[int, int | None], list[Strike]] = defaultdict(list)
    for strike in strikes:
        groups[strike.at, strike.end].append(strike)
    return [
        Strike(
            at=at,
            end=end,
            label=", ".join(dict.fromkeys(each.label for each in group[:3])),
            title="; ".join(each.title for each in group[:10]),
        )
        for (at, end), group in sorted(groups.items(), key=lambda group: group[0][0])
    ]


def _flag_end(x: int, label: str) -> int:
    return x + len(label) * 7 + 14


def _bands(axis: _Axis, strikes: Iterable[Strike]) -> tuple[list[Box], int]:
    """Return the strikes with their flags in rows that do not overlap, and the number of rows."""
    ends: list[int] = []
    bands: list[Box] = []
    for strike in strikes:
        x = axis.x(strike.at)
        row = next((row for row, end in enumerate(ends) if end < x), len(ends))
        if row == len(ends) and row < FLAG_ROWS_MAX:
            ends.append(0)
        row = min(row, FLAG_ROWS_MAX - 1)
        ends[row] = _flag_end(x, strike.label)
        width = 2 if strike.end is None else max(2, axis.x(strike.end) - x)
        y = HEAD_PX + row * FLAG_PX
        bands.append(Box(x=x, y=y, width=width, height=0, kind="band", text=strike.label, title=strike.title))
    return bands, len(ends)


def _ticks(axis: _Axis, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    last_x = -200
    for place in axis.places:
        x = axis.x(place)
        if x - last_x >= 5 * STEP_PX and (not numbers or numbers[place]):
            last_x = x
            yield x, f"{numbers[place] if numbers else place + 1:,}"
