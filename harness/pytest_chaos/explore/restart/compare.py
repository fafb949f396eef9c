"""What an end lacks beside the end of a clean run, and what of ends can be compared at all. Pure.

Clean runs of one program may differ: times, process numbers, drawn names. A part is compared by the
strictest of four rules that finds all clean runs equal: as it is; without the fields that vary;
without the numbers in it; or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.restart.ends import KEYS, LINES, ROWS, UNREADABLE, End, EndPart, lines_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_chaos.explore.restart.ends import EndRecord

_DRAWN: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|0x[0-9a-f]+|(?<=tmp)[a-z0-9_]{8}"
    r"|(?<![a-z])[0-9a-f]{6,}(?![a-z])|\d+",
    re.IGNORECASE,
)
_INDEX: Final = re.compile(r"\[\d+\]")
_LOG: Final = re.compile(r"(^|/)logs?/|\.log(\.\d+)?$|(^|/)logs?$")
_SHOWN: Final = 3
_VALUE_CHARACTERS: Final = 80
OUTPUT: Final = "output"


class PartRule(NamedTuple):
    """How a part is compared: without some fields, perhaps without the numbers in it."""

    without: frozenset[str] = frozenset()
    has_numbers: bool = True


class EndDifference(NamedTuple):
    """A way in which an end is not that of a clean run.

    ``kind`` is missing, extra, changed or unreadable; ``lacks`` has the texts that the clean run
    has, and this end has not.
    """

    part: str
    kind: str
    text: str
    lacks: tuple[str, ...] = ()


class Learned(NamedTuple):
    """What is known of a program after some clean runs, and a second run after a complete one.

    ``parts`` are those of a clean run that are compared, each with its rule. ``varying`` are parts
    that differ in each clean run; ``added`` are parts that a second complete run changes, each with
    how. ``drawn`` says of which names only the shape is compared.
    """

    parts: Mapping[str, EndPart]
    rules: Mapping[str, PartRule]
    varying: tuple[str, ...]
    added: Mapping[str, str]
    printed: Counter[str]
    drawn: frozenset[str]
    exit_again: int | None

    @property
    def logs(self) -> tuple[str, ...]:
        """The added parts that look like logs, which each run is expected to append to."""
        return tuple(part for part in self.added if _LOG.search(part))


def without_numbers(text: str) -> str:
    """Return a text with ``#`` for what programs draw: numbers, digests, temporary names.

    >>> without_numbers("out/tmpab12cd34.json at 17:03, id 5f3a9c")
    'out/tmp#.json at #:#, id #'
    """
    return _DRAWN.sub("#", text)


def learn(clean: Sequence[End], again: End, named: Collection[str] = ()) -> Learned:
    """Return what the ends of clean runs have in common, and what a second run changes.

    ``named`` are the patterns of parts that a user has named as volatile: ``app.db:orders``,
    ``app.db:orders.created``, ``state.json:started``.
    """
    drawn = _drawn_names(clean)
    folded = [_folded(end.parts, drawn) for end in clean]
    first = folded[0]
    rules: dict[str, PartRule] = {}
    varying: list[str] = []
    for part in sorted({name for each in folded for name in each}):
        if _is_named(part, named):
            continue
        versions = [each.get(part) for each in folded]
        rule = None if None in versions else _rule([each for each in versions if each is not None], part, named)
        if rule is None:
            varying.append(part)
        else:
            rules[part] = rule
    last = _folded(again.parts, drawn)
    added: dict[str, str] = {}
    for difference in _differences(first, rules, last, frozenset()):
        added.setdefault(difference.part, difference.text)
    for part in added.keys() & rules.keys():
        del rules[part]
    for part in last.keys() - first.keys():
        if part not in varying and not _is_named(part, named):
            added[part] = f"{part} is there only after a second run"
    printed = Counter(_printed(clean[0].output))
    for end in (*clean[1:], again):
        printed &= Counter(_printed(end.output))
    return Learned(first, rules, tuple(varying), added, printed, drawn, again.exit_code)


def differences(
    learned: Learned, end: End, before: Collection[str] = (), *, output: bool = False
) -> list[EndDifference]:
    """Return how an end differs from that of a clean run.

    ``before`` are the paths that were there before the run: one that a clean run removes must not
    be left. Nor must a path be there that has the shape of those that a clean run leaves
    (``order-5.json``). Other paths are no difference: a killed run may leave temporary files.
    """
    there = _folded(end.parts, learned.drawn)
    found = _differences(learned.parts, learned.rules, there, frozenset(before) - learned.parts.keys())
    others = {*learned.varying, *learned.added}
    shapes = {without_numbers(path) for path in learned.rules} - {without_numbers(path) for path in others}
    known = {*learned.parts, *others, *before}
    found += [
        EndDifference(path, "extra", f"{path} is there; an unkilled run leaves no such file")
        for path in sorted(there.keys() - known)
        if " table " not in path and without_numbers(path) != path and without_numbers(path) in shapes
    ]
    if output and (lost := learned.printed - Counter(_printed(end.output))):
        shown = _listed(list(lost))
        text = f"the output of the restart lacks what each complete run prints: {shown}"
        found.append(EndDifference(OUTPUT, "missing", text, tuple(lost)))
    return found


def _printed(output: str) -> list[str]:
    return [without_numbers(record[0][1]) for record in lines_of(output).records]


def _drawn_names(ends: Sequence[End]) -> frozenset[str]:
    """Return the shapes of the paths that differ from run to run in what is drawn alone."""
    everywhere = set.intersection(*(set(end.parts) for end in ends))
    return frozenset(without_numbers(path) for end in ends for path in end.parts.keys() - everywhere)


def _folded(parts: Mapping[str, EndPart], drawn: frozenset[str]) -> dict[str, EndPart]:
    """Return parts with those of one drawn shape as one part: a record for each file."""
    folded: dict[str, EndPart] = {}
    for path, part in parts.items():
        shape = without_numbers(path) if drawn else path
        if shape not in drawn:
            folded[path] = part
            continue
        record = (("", " | ".join(map(_shown, part.records))),)
        before = folded.get(shape)
        folded[shape] = EndPart(
            part.kind if before is None else before.kind, (*(before.records if before else ()), record)
        )
    return {
        path: part._replace(records=tuple(sorted(part.records))) if path in drawn else part
        for path, part in folded.items()
    }


def _is_named(part: str, patterns: Iterable[str]) -> bool:
    path, _, table = part.partition(" table ")
    return any(
        fnmatchcase(path, pattern.partition(":")[0]) and fnmatchcase(table, pattern.partition(":")[2])
        for pattern in patterns
        if table
    )


def _named_fields(part: str, patterns: Iterable[str], fields: Iterable[str]) -> set[str]:
    path, _, table = part.partition(" table ")
    prefix = f"{table}." if table else ""
    wanted = [pattern.partition(":")[2] for pattern in patterns if fnmatchcase(path, pattern.partition(":")[0])]
    return {field for field in fields if any(fnmatchcase(prefix + field, each) for each in wanted)}


def _rule(versions: Sequence[EndPart], part: str, named: Collection[str]) -> PartRule | None:
    """Return the strictest rule by which all versions of a part are equal, or None."""
    fields = {_field(field) for each in versions for record in each.records for field, _ in record}
    without = frozenset(_named_fields(part, named, fields))
    if len({each.kind for each in versions}) > 1:
        return None
    if _are_equal(versions, rule := PartRule(without)):
        return rule
    values = [_values(each) for each in versions]
    varying = {field for field in fields if len({values_of.get(field) for values_of in values}) > 1}
    if varying < fields and _are_equal(versions, rule := PartRule(without | varying)):
        return rule
    return rule if _are_equal(versions, rule := PartRule(without, has_numbers=False)) else None


def _field(name: str) -> str:
    """Return the name of a field without the places in lists."""
    return _INDEX.sub("[]", name)


def _values(part: EndPart) -> dict[str, tuple[str, ...]]:
    values: dict[str, list[str]] = {}
    for record in part.records:
        for field, value in record:
            values.setdefault(_field(field), []).append(value)
    return {field: tuple(sorted(each)) for field, each in values.items()}


def _are_equal(versions: Sequence[EndPart], rule: PartRule) -> bool:
    views = [_view(each, rule) for each in versions]
    return all(each == views[0] for each in views[1:])


def _view(part: EndPart, rule: PartRule) -> list[EndRecord]:
    """Return the records as a rule compares them: rows in any order, others in theirs."""
    records = []
    for record in part.records:
        kept = tuple((field, value) for field, value in record if _field(field) not in rule.without)
        if not rule.has_numbers:
            kept = tuple((without_numbers(field), without_numbers(value)) for field, value in kept)
        records.append(kept)
    return sorted(records) if part.kind == ROWS else records


def _differences(
    wanted: Mapping[str, EndPart], rules: Mapping[str, PartRule], there: Mapping[str, EndPart], unwanted: frozenset[str]
) -> list[EndDifference]:
    found = []
    unreadable = {path for path, part in there.items() if part.kind == UNREADABLE and path not in wanted}
    for path in sorted(unreadable):
        if any(part.startswith(f"{path} table ") for part in rules):
            text = f"{path} cannot be read: {there[path].records[0][0][1]}; an unkilled run leaves it sound"
            found.append(EndDifference(path, "unreadable", text))
    for part, rule in rules.items():
        path = part.partition(" table ")[0]
        if part in there:
            found += _compared(part, wanted[part], there[part], rule)
        elif path not in unreadable:
            text = f"{part} is not there; an unkilled run leaves it{_extent(wanted[part])}"
            found.append(EndDifference(part, "missing", text, _texts(wanted[part].records)))
    found += [
        EndDifference(path, "extra", f"{path} is still there; an unkilled run removes it")
        for path in sorted(unwanted & there.keys())
    ]
    return found


def _extent(part: EndPart) -> str:
    return f" with {_counted(len(part.records), _NOUNS[part.kind])}" if part.kind in _NOUNS else ""


_NOUNS: Final = {ROWS: "row", LINES: "line"}


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _compared(part: str, wanted: EndPart, there: EndPart, rule: PartRule) -> list[EndDifference]:
    ours, theirs = _view(there, rule), _view(wanted, rule)
    if ours == theirs:
        return []
    if there.kind != wanted.kind:
        shown = _listed(_texts(there.records)) or "nothing"
        text = f"{part} has {there.kind} ({shown}), an unkilled run's has {wanted.kind}{_of(wanted)}"
        return [EndDifference(part, "changed", text, _texts(wanted.records))]
    lacks, more = Counter(theirs) - Counter(ours), Counter(ours) - Counter(theirs)
    if wanted.kind == KEYS and len(ours) == len(theirs) == 1:
        return [_of_keys(part, dict(theirs[0]), dict(ours[0]))]
    if not lacks and not more:
        text = f"{part} has the {_NOUNS.get(wanted.kind, 'record')}s of an unkilled run in another order"
        return [EndDifference(part, "changed", text)]
    noun = _NOUNS.get(wanted.kind, "record")
    if wanted.kind in {ROWS, LINES, KEYS}:
        text = f"{part} has {_counted(len(ours), noun)}, an unkilled run {len(theirs):,}"
    else:
        text = f"{part} differs from an unkilled run's"
    if lacks:
        text += f"; missing: {_listed(_texts(lacks.elements()))}"
    if more:
        text += f"; too many: {_listed(_texts(more.elements()))}"
    kind = "changed" if lacks and more else "missing" if lacks else "extra"
    return [EndDifference(part, kind, text, _texts(lacks.elements()))]


def _of(part: EndPart) -> str:
    return f" ({_listed(_texts(part.records))})"


def _of_keys(part: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> EndDifference:
    lacks = [f"{key} = {value}" for key, value in wanted.items() if there.get(key) != value]
    has = [f"{key} = {value}" for key, value in there.items() if wanted.get(key) != value]
    text = f"{part} has {_listed(has) or 'less'}, an unkilled run's has {_listed(lacks) or 'no such key'}"
    return EndDifference(part, "changed", text, tuple(lacks))


def _texts(records: Iterable[EndRecord]) -> tuple[str, ...]:
    return tuple(map(_shown, records))


def _shown(record: EndRecord) -> str:
    """Return a record in words: a line as it is, a row as its values, an object as its keys."""
    if len(record) == 1 and not record[0][0]:
        return record[0][1]
    return ", ".join(f"{field}={value}" for field, value in record)


def _listed(texts: Sequence[str]) -> str:
    shown = "; ".join(
        text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…" for text in texts[:_SHOWN]
    )
    return f"{shown} and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else shown
