"""P(violation) against the moment of a fault, drawn with its confidence bounds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.model.statistics import rate_lower_bound

from chaos_reports.failure.values import CurveView
from chaos_reports.figures import clip, percent, plural

if TYPE_CHECKING:
    from pytest_chaos.model.story import Curve, CurvePoint

POINTS_MAX: Final = 1_000
ROWS_MAX: Final = 60
NEIGHBOURS_MAX: Final = 8
WIDTH: Final = 1000
HEIGHT: Final = 100


def drawn(curve: Curve | None) -> CurveView | None:
    """Return a curve as SVG paths in a box of 1000 by 100; None without a moment that was run.

    The band has the one-sided bounds of each share, 95 % each (Clopper and Pearson).
    """
    known = sorted((each for each in (curve.points if curve is not None else ()) if _is_sound(each)), key=_moment)
    if curve is None or not known:
        return None
    shown = known[:: -(-len(known) // POINTS_MAX)]
    first, last = shown[0].at, shown[-1].at
    places = [(each.at - first) * WIDTH // max(1, last - first) for each in shown]
    shares = [each.violated / each.runs for each in shown]
    bounds = [_bounds(each) for each in shown]
    upper = [f"{x} {_y(high)}" for x, (_, high) in zip(places, bounds, strict=True)]
    lower = [f"{x} {_y(low)}" for x, (low, _) in zip(places, bounds, strict=True)]
    worst = max(range(len(shown)), key=lambda place: shares[place])
    unit = clip(curve.unit, 20)
    title = (
        f"P(violation) by the {unit} of the fault{f' ({clip(curve.fault, 80)})' if curve.fault else ''}: "
        f"highest {percent(shares[worst])} at {unit} {shown[worst].at:,}; "
        f"{plural(sum(each.runs for each in known), 'run')} at {plural(len(known), 'moment')}"
    )
    return CurveView(
        line="M" + "L".join(f"{x} {_y(share)}" for x, share in zip(places, shares, strict=True)),
        band="M" + "L".join([*upper, *reversed(lower)]) + "Z",
        title=title,
        neighbours=tuple(clip(text, 400) for text in curve.neighbours[:NEIGHBOURS_MAX]),
        low=f"{unit} {first:,}",
        high=f"{unit} {last:,}",
        rows=tuple(
            (
                f"{each.at:,}",
                clip("  ".join(part for part in (each.text, each.line) if part), 200),
                f"{each.violated:,} of {each.runs:,}",
                f"{percent(low)} to {percent(high)}",
            )
            for each, (low, high) in zip(shown[:ROWS_MAX], bounds, strict=False)
        ),
    )


def _is_sound(point: CurvePoint) -> bool:
    return point.runs > 0 and 0 <= point.violated <= point.runs


def _moment(point: CurvePoint) -> int:
    return point.at


def _bounds(point: CurvePoint) -> tuple[float, float]:
    held = point.runs - point.violated
    return rate_lower_bound(point.violated, point.runs), 1.0 - rate_lower_bound(held, point.runs)


def _y(share: float) -> int:
    return round((1.0 - share) * HEIGHT)
