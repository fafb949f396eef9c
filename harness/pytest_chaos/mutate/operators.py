"""The operators on Python: from one statement in its block to edits that remove one guard. Pure.

Names decide where an operator applies (a call of something named ``fsync``, a ``with`` over
something named ``transaction``), since a syntax tree has no types. A mutant that means nothing is
caught at once or marked as equivalent; a guard without a mutant would stay unseen.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final

from pytest_chaos.mutate import sql
from pytest_chaos.mutate.edits import FUNCTIONS, Edit, Spot, calls_in, is_named, name_of, nodes_of, places, with_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SYNC = is_named(r"fsync|fdatasync|^flush$|^sync$|^sync_|_sync$|msync")
_TRANSACTION = is_named(r"transaction|atomic|savepoint|^begin")
_COMMIT = is_named(r"^commit$|^ack$|acknowledge|^confirm$|^task_done$|basic_ack|send_response|^respond$")
_LOCK = is_named(r"lock$|lock_|mutex|semaphore|condition$|^exclusive$|^turn$|^guard$")
_LOCK_CALL = is_named(r"^flock$|^lockf$|^acquire$")
_KEY = re.compile(r"key|digest|fingerprint|identity|signature|checksum|cache_id", re.IGNORECASE)
_BACKOFF = re.compile(r"back_?off|retry_(in|after|delay)|delay|pause|attempts", re.IGNORECASE)
_WAIT = is_named(r"^sleep$")
_UNIT = re.compile(r"(^|_)(s|ms|us|seconds|minutes|millis|timeout|ttl)$", re.IGNORECASE)
_COUNTS: Final = frozenset({"rowcount", "total_changes"})
_FACTORS: Final = frozenset({60, 1000, 3600, 86400, 1_000_000, 1_000_000_000})
_BOUNDS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
_FIRST_PRIVATE: Final = 0xE000
"""A character of the private use area stands for each value within an f-string of SQL."""


def edits(tree: ast.Module) -> Iterator[Edit]:
    """Yield all edits of a module, in the order of the text. One is applied to a tree, not two."""
    for place in places(tree):
        for operator in OPERATORS:
            yield from operator(place)


def _sql(place: Spot) -> Iterator[Edit]:
    """Change an SQL text: drop a conjunct of a WHERE, weaken a comparison, turn an order."""
    within_string: set[int] = set()
    for node in nodes_of(place.statement):
        if isinstance(node, ast.JoinedStr):
            within_string |= {id(part) for part in node.values}
        if id(node) in within_string:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and sql.is_part_of_sql(node.value):
            for change in sql.changes(node.value):
                yield place.replaced(change.operator, node, ast.Constant(change.text))
        elif isinstance(node, ast.JoinedStr):
            text, values = _flat(node)
            if sql.is_part_of_sql(text):
                for change in sql.changes(text):
                    yield place.replaced(change.operator, node, _joined(change.text, values))


def _flat(node: ast.JoinedStr) -> tuple[str, list[ast.expr]]:
    values = [part for part in node.values if not isinstance(part, ast.Constant)]
    names = {id(part): chr(_FIRST_PRIVATE + number) for number, part in enumerate(values)}
    return "".join(str(p.value) if isinstance(p, ast.Constant) else names[id(p)] for p in node.values), values


def _joined(text: str, values: list[ast.expr]) -> ast.JoinedStr:
    pieces = re.split(f"([{chr(_FIRST_PRIVATE)}-{chr(_FIRST_PRIVATE + len(values))}])", text)
    parts: list[ast.expr] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append(values[ord(piece) - _FIRST_PRIVATE])
        elif piece:
            parts.append(ast.Constant(piece))
    return ast.JoinedStr(parts)


def _ignore_rowcount(place: Spot) -> Iterator[Edit]:
    """Take each number of changed rows for the expected one."""
    for node in nodes_of(place.statement):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and _is_count(node.left):
            expected = not isinstance(node.ops[0], ast.NotEq | ast.Lt | ast.LtE) and not (
                isinstance(node.ops[0], ast.Eq) and _is_zero(node.comparators[0])
            )
            yield place.replaced("ignore-rowcount", node, ast.Constant(expected))
    if isinstance(place.statement, ast.If | ast.While) and _is_count(_bare(place.statement.test)):
        is_negated = isinstance(place.statement.test, ast.UnaryOp)
        yield place.replaced("ignore-rowcount", place.statement.test, ast.Constant(not is_negated))


def _is_count(node: ast.expr) -> bool:
    return name_of(node) in _COUNTS and not isinstance(node, ast.Call)


def _bare(node: ast.expr) -> ast.expr:
    return node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) else node


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def _split_transaction(place: Spot) -> Iterator[Edit]:
    """Commit between two statements of a transaction, and begin another one."""
    statement = place.statement
    if not isinstance(statement, ast.With | ast.AsyncWith):
        return
    if not any(_TRANSACTION(item.context_expr) for item in statement.items):
        return
    bound = {
        n.id
        for item in statement.items
        if item.optional_vars
        for n in ast.walk(item.optional_vars)
        if isinstance(n, ast.Name)
    }
    for cut in range(1, len(statement.body)):
        first, second = statement.body[:cut], statement.body[cut:]
        if all(_has_effect(half) and (not bound or _uses(half, bound)) for half in (first, second)):
            halves = (with_fields(statement, body=first), with_fields(statement, body=second))
            yield place.edit("split-transaction", *halves)


def _has_effect(statements: list[ast.stmt]) -> bool:
    return any(isinstance(node, ast.Call) for statement in statements for node in ast.walk(statement))


def _uses(statements: list[ast.stmt], names: set[str]) -> bool:
    return any(isinstance(n, ast.Name) and n.id in names for statement in statements for n in ast.walk(statement))


def _commit_early(place: Spot) -> Iterator[Edit]:
    """Commit, or acknowledge, before the statement that it should follow."""
    if place.index == 0 or not isinstance(place.statement, ast.Expr):
        return
    if not any(_COMMIT(call) for call in calls_in(place.statement)):
        return
    before = Spot(place.qualname, place.block, place.index - 1, place.within)
    if _has_effect([before.statement]) and not _binds_for(before.statement, place.statement):
        yield before.edit("commit-early", place.statement, before.statement, take=2)


def _swap(place: Spot) -> Iterator[Edit]:
    """Swap two adjacent statements that both have an effect, and do not need one another."""
    if place.index == 0:
        return
    first, second = place.block[place.index - 1], place.statement
    simple = ast.Expr | ast.Assign | ast.AugAssign | ast.With
    if not (isinstance(first, simple) and isinstance(second, simple)):
        return
    if not (_acts(first) and _acts(second)) or _binds_for(first, second) or _binds_for(second, first):
        return
    if isinstance(second, ast.Expr) and any(_COMMIT(call) for call in calls_in(second)):
        return  # commit-early has it
    if place.qualname.endswith(".__init__") and _set_apart(first, second):
        return
    before = Spot(place.qualname, place.block, place.index - 1, place.within)
    yield before.edit("swap", second, first, take=2)


def _set_apart(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether both set attributes of a new object that nobody has yet, in an order without meaning.

    At most one of the two values is computed by a call, and that one does not get the object.
    """
    calls = 0
    for statement in (first, second):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            return False
        if any(name_of(node) == "self" for node in ast.walk(statement.value)):
            return False
        calls += any(isinstance(node, ast.Call | ast.Await | ast.Yield) for node in ast.walk(statement.value))
    return calls < 2


def _acts(statement: ast.stmt) -> bool:
    """Whether a statement does more than to bind a name."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.Await)
    if isinstance(statement, ast.With):
        return True
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)


def _binds_for(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether the second statement uses a name that the first binds."""
    bound = {n.id for n in ast.walk(first) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return any(isinstance(n, ast.Name) and n.id in bound for n in ast.walk(second))


def _drop_sync(place: Spot) -> Iterator[Edit]:
    """Leave out an fsync, a flush or the sync of a folder."""
    if isinstance(place.statement, ast.Expr) and any(_SYNC(call) for call in calls_in(place.statement)):
        yield place.edit("drop-sync", ast.Pass())


def _drop_lock(place: Spot) -> Iterator[Edit]:
    """Do without a lock: a ``with`` over one, or the call that takes it."""
    statement = place.statement
    if isinstance(statement, ast.With | ast.AsyncWith):
        for item in statement.items:
            if not _LOCK(item.context_expr) or item.optional_vars is not None:
                continue
            others = [other for other in statement.items if other is not item]
            if others:
                yield place.edit("drop-lock", with_fields(statement, items=others))
            else:
                yield place.edit("drop-lock", *statement.body)
    elif isinstance(statement, ast.Expr) and any(_LOCK_CALL(call) for call in calls_in(statement)):
        yield place.edit("drop-lock", ast.Pass())


def _drop_raise(place: Spot) -> Iterator[Edit]:
    """Go on where an error was raised."""
    if isinstance(place.statement, ast.Raise) and not any(isinstance(o, ast.ExceptHandler) for o in place.within[-1:]):
        yield place.edit("drop-raise", ast.Pass())


def _return_early(place: Spot) -> Iterator[Edit]:
    """End a function, or one pass of its loop, before its last statement that has an effect."""
    if place.index == 0 or place.index != len(place.block) - 1 or not place.within:
        return
    statement, outer = place.statement, place.within[-1]
    if not isinstance(statement, ast.Expr | ast.With | ast.If | ast.For | ast.Try) or not _has_effect([statement]):
        return
    if isinstance(outer, FUNCTIONS) and outer.body is place.block:
        yield place.edit("return-early", ast.Return())
    elif isinstance(outer, ast.For | ast.While) and outer.body is place.block:
        yield place.edit("return-early", ast.Continue())


def _catch_and_go_on(place: Spot) -> Iterator[Edit]:
    """Swallow what an ``except`` would raise again, translate or answer."""
    statement = place.statement
    if not isinstance(statement, ast.Try):
        return
    for handler in statement.handlers:
        if any(isinstance(node, ast.Raise | ast.Return) for part in handler.body for node in ast.walk(part)):
            silent = [with_handler(handler) if each is handler else each for each in statement.handlers]
            yield place.edit("catch-and-go-on", with_fields(statement, handlers=silent))


def with_handler(handler: ast.ExceptHandler) -> ast.ExceptHandler:
    """Return a handler that catches the same and does nothing."""
    return ast.ExceptHandler(handler.type, handler.name, [ast.Pass()])


def _drop_condition(place: Spot) -> Iterator[Edit]:
    """Drop one part of a condition with ``and``, or with ``or``."""
    for node in nodes_of(place.statement):
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                kept = [other for other in node.values if other is not part]
                by = kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
                yield place.replaced("drop-condition", node, by)


def _drop_guard(place: Spot) -> Iterator[Edit]:
    """Never leave where an ``if`` returns, breaks or continues before anything else."""
    statement = place.statement
    if isinstance(statement, ast.If) and not statement.orelse and len(statement.body) == 1:
        only = statement.body[0]
        if isinstance(only, ast.Return | ast.Continue | ast.Break):
            yield place.edit("drop-guard", ast.Pass())


def _bound(place: Spot) -> Iterator[Edit]:
    """Move a bound by one: ``<`` to ``<=`` and so on."""
    for node in nodes_of(place.statement):
        if isinstance(node, ast.Compare):
            for number, sign in enumerate(node.ops):
                if (other := _BOUNDS.get(type(sign))) is not None:
                    signs = [*node.ops[:number], other(), *node.ops[number + 1 :]]
                    yield place.replaced("bound", node, ast.Compare(node.left, signs, node.comparators))


def _unit(place: Spot) -> Iterator[Edit]:
    """Take one unit for another: leave out a factor of 60 or 1,000, or put one in."""
    for node in nodes_of(place.statement):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.FloorDiv):
            if _factor(node.right):
                yield place.replaced("unit", node, node.left)
            elif _factor(node.left) and isinstance(node.op, ast.Mult):
                yield place.replaced("unit", node, node.right)
        elif isinstance(node, ast.keyword) and node.arg and _UNIT.search(node.arg) and _is_number(node.value):
            yield place.replaced("unit", node.value, _times(node.value, node.arg))
    statement = place.statement
    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if _UNIT.search(name_of(target)) and _is_number(statement.value):
            yield place.replaced("unit", statement.value, _times(statement.value, name_of(target)))


def _factor(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not isinstance(node.value, bool | str | bytes) and node.value in _FACTORS


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in {int, float} and node.value != 0


def _times(node: ast.expr, name: str) -> ast.expr:
    factor = 1000 if name.lower().endswith(("ms", "us", "millis")) else 60
    return ast.BinOp(node, ast.Mult(), ast.Constant(factor))


def _key_field(place: Spot) -> Iterator[Edit]:
    """Make a key of one field less."""
    named = place.qualname.rpartition(".")[2]
    targets = place.statement.targets if isinstance(place.statement, ast.Assign) else []
    is_key = any(_KEY.search(name) for name in (named, *map(name_of, targets)))
    for node in nodes_of(place.statement):
        if isinstance(node, ast.Call) and (_KEY.search(name_of(node)) or name_of(node) in {"sha256", "blake2b"}):
            yield from _shorter(place, node.args)
        elif is_key and isinstance(node, ast.Tuple | ast.List | ast.Dict):
            yield from _shorter(place, [node])


def _shorter(place: Spot, found: list[ast.expr]) -> Iterator[Edit]:
    for node in found:
        if isinstance(node, ast.Tuple | ast.List) and isinstance(node.ctx, ast.Load):
            for part in node.elts if len(node.elts) > 1 else ():
                kept = [other for other in node.elts if other is not part]
                yield place.replaced("key-field", node, type(node)(kept, ast.Load()))
        elif isinstance(node, ast.Dict):
            for number in range(len(node.keys) if len(node.keys) > 1 else 0):
                keys = [*node.keys[:number], *node.keys[number + 1 :]]
                values = [*node.values[:number], *node.values[number + 1 :]]
                yield place.replaced("key-field", node, ast.Dict(keys, values))


def _no_backoff(place: Spot) -> Iterator[Edit]:
    """Retry at once: no pause between two attempts, or one that does not grow."""
    statement = place.statement
    if isinstance(statement, ast.Expr) and place.is_in_loop and any(_WAIT(call) for call in calls_in(statement)):
        yield place.edit("no-backoff", ast.Pass())
    for node in nodes_of(statement):
        grows = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)
        if grows and any(map(_BACKOFF.search, (place.qualname, *map(name_of, ast.walk(statement))))):
            yield place.replaced("no-backoff", node, ast.Constant(1))


def _drop_update(place: Spot) -> Iterator[Edit]:
    """Leave out a count, or the reset of a state."""
    statement = place.statement
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add | ast.Sub):
        yield place.edit("drop-update", ast.Pass())
    elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
        is_kept = isinstance(statement.targets[0], ast.Attribute | ast.Subscript)
        if is_kept and not place.qualname.endswith("__init__"):
            yield place.edit("drop-update", ast.Pass())


OPERATORS: Final[tuple[Callable[[Spot], Iterator[Edit]], ...]] = (
    _sql, _ignore_rowcount, _split_transaction, _commit_early, _swap, _drop_sync, _drop_lock, _drop_raise,
    _return_early, _catch_and_go_on, _drop_condition, _drop_guard, _bound, _unit, _key_field, _no_backoff,
    _drop_update,
)  # fmt: skip

NAMES: Final = (
    "sql-drop-conjunct", "sql-weaken", "sql-bound", "sql-order", "sql-drop-count", "ignore-rowcount",
    "split-transaction", "commit-early", "swap", "drop-sync", "drop-lock", "drop-raise", "return-early",
    "catch-and-go-on", "drop-condition", "drop-guard", "bound", "unit", "key-field", "no-backoff", "drop-update",
)  # fmt: skip
"""The operators by name, as mutants have them."""
