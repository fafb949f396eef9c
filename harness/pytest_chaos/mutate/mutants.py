"""The mutants of a package: ids that outlive changes elsewhere, diffs, and compiled code. Pure.

A module is compiled either with one mutant, or with *probes*: a store into shared memory before
each statement that has mutants, which shows the statements that a test reaches.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.mutate.edits import FUNCTIONS, SCOPES
from pytest_chaos.mutate.operators import edits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType

    from pytest_chaos.mutate.package import SourceModule

_CONTEXT_LINES: Final = 2
_MAP: Final = "__chaos_reach__"


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """One edit of one module.

    ``id`` depends on the operator, the function and the changed lines, and not on line numbers.
    ``number`` is the place among the edits of the module, ``probe`` that of its statement among
    the statements that have edits. ``constants`` are the names that a statement outside of
    functions binds.
    """

    id: str
    operator: str
    module: str
    function: str
    line: int
    diff: str
    number: int
    probe: int
    constants: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The function, with its module."""
        return f"{self.module}:{self.function}"


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return the mutants of a module. Raises SyntaxError for a source that is none."""
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    probes: dict[int, int] = {}
    for number, edit in enumerate(edits(ast.parse(source))):
        before, after = edit.before, edit.after
        if before == after:
            continue
        first = edit.block[edit.start]
        changed = "\n".join(_changed_lines(before, after))
        key = f"{edit.operator}\n{module}:{edit.qualname}\n{changed}"
        seen[key] += 1
        digest = hashlib.blake2b(f"{key}\n{seen[key]}".encode(), digest_size=5).hexdigest()
        found.append(
            Mutant(
                id=digest,
                operator=edit.operator,
                module=module,
                function=edit.qualname,
                line=first.lineno,
                diff=_diff(before, after),
                number=number,
                probe=probes.setdefault(id(first), len(probes)),
                constants=_bound_names(first) if edit.at_import else (),
            )
        )
    return found


def _changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[0] + " ".join(line[1:].split()) for line in lines if line[0] in "+-"]


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=_CONTEXT_LINES, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def _bound_names(statement: ast.stmt) -> tuple[str, ...]:
    names = (n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return tuple(dict.fromkeys(names))


def compiled_mutant(source: str, filename: str, mutant: Mutant) -> CodeType:
    """Compile a module with one mutant. Raises SyntaxError if it is no program."""
    tree = ast.parse(source)
    for number, edit in enumerate(edits(tree)):
        if number == mutant.number:
            edit.apply()
            return compile(ast.fix_missing_locations(tree), filename, "exec")
    msg = f"{mutant.module} must have the mutant {mutant.id}; it has changed since they were listed"
    raise ValueError(msg)


def compiled_with_probes(source: str, filename: str, offset: int) -> tuple[CodeType, int, dict[str, int]]:
    """Compile a module that marks each statement with mutants as reached; return their number.

    Each function has a mark, too: the third value has their numbers by the function's name.

    The mark of its first such statement is at ``offset`` of the shared memory.
    """
    tree = ast.parse(source)
    probes: dict[int, tuple[list[ast.stmt], ast.stmt]] = {}
    for edit in edits(tree):
        if edit.before != edit.after:
            first = edit.block[edit.start]
            probes.setdefault(id(first), (edit.block, first))
    for number, (block, first) in enumerate(probes.values()):
        probe = ast.parse(f"{_MAP}[{offset + number}] = 1").body[0]
        place = next(index for index, statement in enumerate(block) if statement is first)
        block.insert(place, ast.copy_location(probe, first))
    functions: dict[str, int] = {}
    for qualname, body in list(_functions(tree)):
        number = offset + len(probes) + len(functions)
        if qualname not in functions:
            functions[qualname] = number
            first = body[0]
            body.insert(
                int(_must_come_first(first)),
                ast.copy_location(ast.parse(f"{_MAP}[{number}] = 1").body[0], first),
            )
    start = next((i for i, s in enumerate(tree.body) if not _must_come_first(s)), len(tree.body))
    tree.body.insert(start, ast.parse(f"{_MAP} = __import__('sys')._chaos_reach").body[0])
    return compile(ast.fix_missing_locations(tree), filename, "exec"), len(probes) + len(functions), functions


def _functions(tree: ast.AST, around: str = "") -> Iterator[tuple[str, list[ast.stmt]]]:
    for child in ast.iter_child_nodes(tree):
        qualname = f"{around}.{child.name}".lstrip(".") if isinstance(child, SCOPES) else around
        if isinstance(child, FUNCTIONS):
            yield qualname, child.body
        yield from _functions(child, qualname)


def _must_come_first(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__"
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def users_of(source: str, names: frozenset[str]) -> frozenset[str]:
    """Return the functions of a module that use one of these names, also as an attribute.

    The names that they use at the level of the module count too: a constant made of constants.
    """
    if not any(name in source for name in names):
        return frozenset()
    tree = _parsed(source)
    found: set[str] = set()

    def look(node: ast.AST, qualname: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = f"{qualname}.{child.name}".lstrip(".") if isinstance(child, SCOPES) else qualname
            name = child.id if isinstance(child, ast.Name) else child.attr if isinstance(child, ast.Attribute) else ""
            if name in names and qualname:
                found.add(qualname)
            look(child, inner)

    look(tree, "")
    return frozenset(found)


def derived_names(source: str, names: frozenset[str]) -> frozenset[str]:
    """Return these names, and those that statements outside of functions make of them."""
    known = set(names)
    for statement in _parsed(source).body if any(name in source for name in names) else ():
        used = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        used |= {n.attr for n in ast.walk(statement) if isinstance(n, ast.Attribute)}
        if isinstance(statement, ast.Assign | ast.AnnAssign) and used & known:
            known |= set(_bound_names(statement))
    return frozenset(known)


def used_at_import_elsewhere(mutant: Mutant, modules: Sequence[SourceModule]) -> bool:
    """Whether another module makes a constant of its own of what a mutant changes."""
    if not mutant.constants:
        return False
    own = next(module.source for module in modules if module.name == mutant.module)
    names = derived_names(own, frozenset(mutant.constants))
    for module in modules:
        if module.name != mutant.module and any(name in module.source for name in names):
            imported = {
                alias.asname or alias.name
                for node in ast.walk(_parsed(module.source))
                if isinstance(node, ast.ImportFrom) and node.module == mutant.module
                for alias in node.names
                if alias.name in names
            }
            if derived_names(module.source, frozenset(imported)) != imported:
                return True
    return False


@functools.lru_cache(maxsize=256)
def _parsed(source: str) -> ast.Module:
    """Return the tree of a module that nobody changes."""
    return ast.parse(source)
