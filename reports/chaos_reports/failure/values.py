"""The values of a failure page, in the order in which the page shows them. Pure."""

from __future__ import annotations

import msgspec

from chaos_reports.failure.difference import Difference
from chaos_reports.failure.lanes import Chart


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A named value of the page."""

    name: str
    value: str
    is_code: bool = False


class Fired(msgspec.Struct, frozen=True, kw_only=True):
    """A fault, or a family of states, and what is known of it; ``look`` is its class in a page."""

    what: str
    fired: bool
    evidence: str
    line: str = ""
    look: str = ""


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """An acknowledged item that a finding names, and what should have made it durable."""

    item: str
    said: str
    step: str = ""
    line: str = ""
    why: str = ""


class StripRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the system-call strip. ``kind``: done, mark, next, not-made.

    ``relied``: an acknowledged item relied on this step.
    """

    number: str
    kind: str
    text: str
    process: str = ""
    line: str = ""
    relied: bool = False
    syncs: bool = False


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Two states side by side: what the other one is, and how the found one differs."""

    title: str
    text: str
    difference: Difference


class HeatCell(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that lie together, in thousandths of the run; ``share`` of them are wrong."""

    x: int
    width: int
    share: float


class HeatRow(msgspec.Struct, frozen=True, kw_only=True):
    """A family's row of the picture of all steps."""

    family: str
    cells: tuple[HeatCell, ...]
    title: str


class CauseView(msgspec.Struct, frozen=True, kw_only=True):
    """One finding: what it says, its lines, and what is known around it."""

    title: str
    is_harness: bool
    facts: tuple[Row, ...] = ()
    lines: tuple[str, ...] = ()
    lines_omitted: int = 0
    again: str = ""
    output: tuple[str, ...] = ()
    promises: tuple[Promise, ...] = ()
    chart: Chart | None = None
    strip: tuple[StripRow, ...] = ()
    compared: tuple[Compared, ...] = ()
    neighbour: str = ""
    heat: tuple[HeatRow, ...] = ()
    steps: int = 0
    at: int = 0


class FoundTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table of a database as it was found: number of rows, and the newest of them."""

    name: str
    count: str
    rows: tuple[str, ...] = ()


class FoundFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the run's folder as it was found."""

    path: str
    facts: str
    lines: tuple[str, ...] = ()
    lines_omitted: int = 0
    tables: tuple[FoundTable, ...] = ()
    is_bad: bool = False


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent: how each of its processes ended, and its last output."""

    name: str
    command: str
    ends: tuple[str, ...]
    lines: tuple[str, ...]
    lines_omitted: int = 0
    is_open: bool = False


class CurveView(msgspec.Struct, frozen=True, kw_only=True):
    """A curve in a box of 1000 by 100: the line, and its band of confidence, as SVG paths."""

    line: str
    band: str
    title: str
    low: str
    high: str
    rows: tuple[tuple[str, str, str, str], ...] = ()
    neighbours: tuple[str, ...] = ()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The whole page."""

    label: str
    sentence: str
    title: str
    kicker: str
    facts: tuple[Row, ...] = ()
    receipts: tuple[Fired, ...] = ()
    again: str = ""
    again_note: str = ""
    causes: tuple[CauseView, ...] = ()
    causes_omitted: int = 0
    chart: Chart | None = None
    promised: tuple[Promise, ...] = ()
    promised_counts: tuple[str, ...] = ()
    strip: tuple[StripRow, ...] = ()
    """The steps of a run around the first of the promised items."""
    watched: str = ""
    """How the steps of a run are known, or why they are not."""
    find_out: str = ""
    """The command that finds out what made the promised items durable, if that is not known."""
    found: tuple[FoundFile, ...] = ()
    found_omitted: int = 0
    agents: tuple[AgentView, ...] = ()
    agents_omitted: int = 0
    failure: str = ""
    plan: tuple[str, ...] = ()
    curve: CurveView | None = None
    shrunk: tuple[str, ...] = ()
    necessary: tuple[str, ...] = ()
    shrunk_text: str = ""
    shrunk_test: str = ""
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    has_story: bool = False
