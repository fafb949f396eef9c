"""An edit: a slice of a block of statements, and what stands in its place. Pure.

Every operator is a function from a :class:`Spot`, one statement in its block, to edits. A block is
a list of statements of a syntax tree: the body of a function, of an ``if``, of a module.
"""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCKS: Final = ("body", "orelse", "finalbody")
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Edit:
    """``block[start:stop]`` becomes ``new``.

    ``qualname`` is the function or class, or empty in a module. ``at_import``: it is executed when
    the module is imported.
    """

    operator: str
    qualname: str
    block: list[ast.stmt] = field(repr=False)
    start: int
    stop: int
    new: tuple[ast.stmt, ...]
    at_import: bool

    @property
    def before(self) -> str:
        """The source of the statements that are replaced, without comments."""
        return source_of(self.block[self.start : self.stop])

    @property
    def after(self) -> str:
        """The source of the statements in their place."""
        return source_of(self.new)

    def apply(self) -> None:
        """Change the tree that the edit was made from."""
        line = self.block[self.start].lineno
        for statement in self.new:
            for node in ast.walk(statement):
                if isinstance(node, ast.stmt | ast.expr) and not hasattr(node, "lineno"):
                    node.lineno = node.end_lineno = line
                    node.col_offset = node.end_col_offset = 0
        self.block[self.start : self.stop] = self.new


@dataclass(frozen=True, slots=True)
class Spot:
    """One statement: its block, its index there, and what it stands in.

    ``within`` are the statements around it, the outermost first.
    """

    qualname: str
    block: list[ast.stmt] = field(repr=False)
    index: int
    within: tuple[ast.AST, ...] = field(repr=False)

    @property
    def statement(self) -> ast.stmt:
        """The statement."""
        return self.block[self.index]

    @property
    def is_in_loop(self) -> bool:
        """Whether it is repeated by a loop of its own function."""
        for outer in reversed(self.within):
            if isinstance(outer, SCOPES):
                return False
            if isinstance(outer, ast.For | ast.AsyncFor | ast.While):
                return True
        return False

    @property
    def is_at_import(self) -> bool:
        """Whether no function is around it."""
        return not any(isinstance(outer, FUNCTIONS) for outer in self.within)

    def edit(self, operator: str, *new: ast.stmt, take: int = 1) -> Edit:
        """Return the edit that puts ``new`` in place of ``take`` statements from here on."""
        return Edit(operator, self.qualname, self.block, self.index, self.index + take, new, self.is_at_import)

    def replaced(self, operator: str, node: ast.AST, by: ast.expr) -> Edit:
        """Return the edit in which one expression of the statement is another one."""
        return self.edit(operator, with_replaced(self.statement, node, by))


def places(tree: ast.Module) -> Iterator[Spot]:
    """Yield every statement of a module, but docstrings, imports and what only types see."""
    yield from _in_block(tree.body, "", ())


def _in_block(block: list[ast.stmt], qualname: str, within: tuple[ast.AST, ...]) -> Iterator[Spot]:
    for index, statement in enumerate(block):
        if _is_idle(statement):
            continue
        if not isinstance(statement, SCOPES):
            yield Spot(qualname, block, index, within)
        inner = f"{qualname}.{statement.name}".lstrip(".") if isinstance(statement, SCOPES) else qualname
        for child in blocks_of(statement):
            yield from _in_block(child, inner, (*within, statement))


def blocks_of(statement: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the blocks directly within a statement."""
    for name in BLOCKS:
        if block := getattr(statement, name, None):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass | ast.Global | ast.Nonlocal):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    return isinstance(statement, ast.If) and name_of(statement.test) == "TYPE_CHECKING"


def own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield the expressions of a statement that are not in its blocks: the test of an ``if``."""
    for name, value in ast.iter_fields(statement):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.expr):
                yield part
            elif isinstance(part, ast.withitem):
                yield part.context_expr


def nodes_of(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield all nodes of the statement's own expressions; a function within is left out."""
    waiting: list[ast.AST] = list(own_expressions(statement))
    while waiting:
        node = waiting.pop(0)
        yield node
        waiting[:0] = list(ast.iter_child_nodes(node))


def with_replaced(statement: ast.stmt, node: ast.AST, by: ast.expr) -> ast.stmt:
    """Return a copy of the statement in which ``node`` is ``by``; the rest is shared, not copied.

    Sharing keeps a large ``if`` cheap: only the parents of the node are new.
    """
    return _copied(statement, node, by)  # type: ignore[return-value]


def _copied(here: ast.AST, node: ast.AST, by: ast.AST) -> ast.AST:
    if here is node:
        return ast.copy_location(by, node)
    new = copy.copy(here)
    for name, value in ast.iter_fields(here):
        if isinstance(value, ast.AST) and _holds(value, node):
            setattr(new, name, _copied(value, node, by))
        elif isinstance(value, list) and any(isinstance(part, ast.AST) and _holds(part, node) for part in value):
            setattr(
                new, name, [_copied(p, node, by) if isinstance(p, ast.AST) and _holds(p, node) else p for p in value]
            )
    return new


def _holds(tree: ast.AST, node: ast.AST) -> bool:
    return any(found is node for found in ast.walk(tree))


def with_fields(statement: ast.stmt, **fields: object) -> ast.stmt:
    """Return a copy of a statement with other fields."""
    new = copy.copy(statement)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def source_of(statements: list[ast.stmt] | tuple[ast.stmt, ...]) -> str:
    """Return the source of statements, each on lines of its own."""
    return "\n".join(ast.unparse(statement) for statement in statements)


def name_of(node: ast.AST) -> str:
    """Return the last part of a name, of an attribute, or of what a call calls; else nothing."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def calls_in(statement: ast.stmt) -> Iterator[ast.Call]:
    """Yield the calls of a statement's own expressions."""
    return (node for node in nodes_of(statement) if isinstance(node, ast.Call))


def is_named(pattern: str) -> Callable[[ast.AST], bool]:
    """Return a test: whether the name of a node matches a pattern, anywhere in it."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda node: compiled.search(name_of(node)) is not None
