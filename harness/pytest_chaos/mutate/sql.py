"""The operators inside SQL: from one statement's text to texts in which one guard is weaker. Pure.

The text is cut into words, strings, numbers and signs, not parsed: the dialect does not matter, and
a part of a statement (an f-string has several) can be changed, too.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STATEMENT: Final = re.compile(
    r"^[\s(]*(SELECT\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|REPLACE\s+INTO\s|UPDATE\s+\S+(\s+AS\s+\w+)?\s+SET\b|DELETE\s+FROM\s"
    r"|WITH\s+\w+.*\bAS\s*\(|CREATE\s+(UNIQUE\s+)?(TABLE|INDEX|TRIGGER|VIEW)\s)",
    re.DOTALL,
)
_PART: Final = re.compile(
    r"\bWHERE\s+[\w.(\ue000-\uf8ff]+\s*(=|<|>|!|\(|IS\b|IN\b|NOT\b|BETWEEN\b|LIKE\b)|^\s*ORDER BY\b.*\b(DESC|ASC)\b"
)
_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\?\d*|%s|%\(\w+\)s|\"[^\"]*\"|\w+|<=|>=|<>|!=|==|\|\||\s+|.", re.DOTALL)
_PARAMETER: Final = re.compile(r"\?\d*|%s|%\(\w+\)s")
_ENDS: Final = frozenset({"GROUP", "ORDER", "LIMIT", "RETURNING", "UNION", "WINDOW", "DO", "HAVING", "WHERE", ";"})
_WEAKER: Final = {"=": ">=", "==": ">=", "<": "<=", ">": ">="}
_BOUNDS: Final = {"<=": "<", ">=": ">"}


class Change(NamedTuple):
    """One changed text, and the operator that made it."""

    operator: str
    text: str


class _Condition(NamedTuple):
    """The tokens of a WHERE: ``parts`` are its conjuncts, as ranges of tokens."""

    start: int
    stop: int
    parts: tuple[tuple[int, int], ...]


def is_sql(text: str) -> bool:
    """Whether a string is an SQL statement. Keywords must be in capitals, as SQL is written."""
    return _STATEMENT.match(text) is not None


def is_part_of_sql(text: str) -> bool:
    """Whether a string is a piece of an SQL statement, put together elsewhere."""
    return is_sql(text) or _PART.search(text) is not None


def changes(text: str) -> Iterator[Change]:
    """Yield every change of one SQL text."""
    tokens = _TOKEN.findall(text)
    for condition in _conditions(tokens):
        yield from _without_conjuncts(tokens, condition)
        yield from _with_other_signs(tokens, condition)
    yield from _with_other_order(tokens)
    yield from _without_counts(tokens)


def _conditions(tokens: Sequence[str]) -> Iterator[_Condition]:
    """Yield each WHERE, also of a subquery: it ends with its parenthesis or the next clause."""
    for start, token in enumerate(tokens):
        if token.upper() == "WHERE":
            yield _condition(tokens, start + 1)


def _condition(tokens: Sequence[str], start: int) -> _Condition:
    depth, stop, between, cuts = 0, len(tokens), False, []
    for index in range(start, len(tokens)):
        word = tokens[index].upper()
        depth += (word in {"(", "CASE"}) - (word in {")", "END"})
        if depth < 0 or (depth == 0 and word in _ENDS):
            stop = index
            break
        if depth == 0 and word == "BETWEEN":
            between = True
        elif depth == 0 and word == "AND":
            if not between:
                cuts.append(index)
            between = False
    edges = [start - 1, *cuts, stop]
    return _Condition(start, stop, tuple((a + 1, b) for a, b in itertools.pairwise(edges)))


def _without_conjuncts(tokens: Sequence[str], condition: _Condition) -> Iterator[Change]:
    for number, (start, stop) in enumerate(condition.parts):
        if not "".join(tokens[start:stop]).strip():
            continue
        kept = ["".join(tokens[a:b]).strip() for other, (a, b) in enumerate(condition.parts) if other != number]
        parameters = [token for token in tokens[start:stop] if _PARAMETER.fullmatch(token)]
        if parameters:  # they stay, so that their number is right: each in a condition that is always true
            kept.insert(number, " AND ".join(f"({each} IS NULL OR 1 = 1)" for each in parameters))
        elif not kept:
            kept = ["1 = 1"]
        tail = "".join(tokens[condition.stop :])
        text = "".join(tokens[: condition.start]) + " " + " AND ".join(kept) + (" " + tail if tail else "")
        yield Change("sql-drop-conjunct", text)


def _with_other_signs(tokens: Sequence[str], condition: _Condition) -> Iterator[Change]:
    nested = [each for each in _conditions(tokens) if condition.start < each.start < condition.stop]
    for index in range(condition.start, condition.stop):
        if any(each.start <= index < each.stop for each in nested):
            continue  # it has its own turn
        sign = tokens[index]
        for operator, table in (("sql-weaken", _WEAKER), ("sql-bound", _BOUNDS)):
            if sign in table:
                yield Change(operator, _with(tokens, index, table[sign]))


def _with_other_order(tokens: Sequence[str]) -> Iterator[Change]:
    for index, token in enumerate(tokens):
        if token.upper() == "DESC":
            yield Change("sql-order", _with(tokens, index, "ASC"))
        elif token.upper() == "ASC":
            yield Change("sql-order", _with(tokens, index, "DESC"))


def _without_counts(tokens: Sequence[str]) -> Iterator[Change]:
    """Yield ``SET attempts = attempts`` for ``SET attempts = attempts + 1``."""
    solid = [(index, token) for index, token in enumerate(tokens) if not token.isspace()]
    for place in range(len(solid) - 4):
        (_, name), (_, sign), (_, again), (plus, add), (last, one) = solid[place : place + 5]
        if sign == "=" and name == again and add in {"+", "-"} and one.isdigit():
            yield Change("sql-drop-count", "".join(tokens[:plus]).rstrip() + "".join(tokens[last + 1 :]))


def _with(tokens: Sequence[str], index: int, token: str) -> str:
    return "".join([*tokens[:index], token, *tokens[index + 1 :]])
