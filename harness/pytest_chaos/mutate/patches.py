"""Patches of a target that a user names, as compiled modules; no file of the user's is changed.

A patch is a diff (``no-sync.patch``), or a function in place of another one
(``shop.store:Store.save=twins:save``). What it changes is compiled with a mark in each function
that is changed, so it is seen whether a test comes there.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.mutate.package import located, read_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType

    from pytest_chaos.mutate.package import SourceModule

ENDINGS: Final = (".patch", ".diff")
"""How the name of a diff ends."""
_KINDS: Final = "a diff (no-sync.patch), or module:function=module:function"
_MARK: Final = "__import__('sys')._chaos_reach[0] = 1"
_APPLY_S_MAX: Final = 60.0
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


class PatchedModule(NamedTuple):
    """A module with a patch: how it was, and its new source.

    ``functions`` are the names of the functions that are changed.
    """

    before: SourceModule
    source: str
    functions: frozenset[str]

    @property
    def line(self) -> int:
        """The first line that differs."""
        pairs = zip(self.before.source.splitlines(), self.source.splitlines(), strict=False)
        same = next((number for number, (old, new) in enumerate(pairs) if old != new), None)
        return 1 + (len(self.before.source.splitlines()) if same is None else same)

    def compiled(self) -> CodeType:
        """Return the code of the new source; the changed functions mark that they are reached."""
        tree = ast.parse(self.source)
        for name, function in _functions(tree):
            if name in self.functions:
                first = function.body[0]
                is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                mark = ast.copy_location(ast.parse(_MARK).body[0], first)
                function.body.insert(int(is_docstring), mark)
        return compile(ast.fix_missing_locations(tree), str(self.before.path), "exec", dont_inherit=True)


class TargetPatch(NamedTuple):
    """A patch, as it was named.

    ``is_counted``: whether it is seen that a test reaches it; what is executed at an import is not.
    """

    name: str
    modules: tuple[PatchedModule, ...]
    is_counted: bool

    @property
    def id(self) -> str:
        """A digest of its name and of what it makes of its modules."""
        content = "\0".join([self.name, *(each.source for each in self.modules)])
        return hashlib.blake2b(content.encode(), digest_size=5).hexdigest()

    @property
    def diff(self) -> str:
        """What it changes; nothing for a function in place of another one, which its name says."""
        lines: list[str] = []
        for each in self.modules if self.name.endswith(ENDINGS) else ():
            names = (f"a/{each.before.path.name}", f"b/{each.before.path.name}")
            before, after = each.before.source.splitlines(), each.source.splitlines()
            lines += difflib.unified_diff(before, after, *names, n=2, lineterm="")
        return "\n".join(lines)


def patch_of(text: str) -> TargetPatch:
    """Return the patch that a user has named. Raises UsageError for one that cannot be applied.

    Example::

        patch_of("shop.store:Store.save=twins:save_without_sync").modules[0].before.name
    """
    path = Path(text)
    if path.suffix in ENDINGS:
        return _of_diff(path, text)
    place, equals, other = text.partition("=")
    if not equals or ":" not in place or ":" not in other:
        msg = f"a patch must be {_KINDS}; got {text!r}. Name such a one"
        raise UsageError(msg)
    return _of_names(text, place, other)


def _of_names(text: str, place: str, other: str) -> TargetPatch:
    before, changed = _named(place, "the function that is replaced")
    _, new = _named(other, "the replacement")
    is_plain = isinstance(new, ast.FunctionDef) and not new.decorator_list and not _yields(new)
    is_counted = is_plain and not isinstance(changed, ast.ClassDef)
    *_, qualname = place.partition(":")
    call = f"{qualname!r}, {other!r}, is_counted={is_counted}"
    source = f'{before.source}\n__import__("chaos_mutate_replace").replace(globals(), {call})\n'
    return TargetPatch(text, (PatchedModule(before, source, frozenset()),), is_counted)


def _named(text: str, what: str) -> tuple[SourceModule, ast.stmt]:
    """Return a module and the statement that makes the name after the colon."""
    name, _, qualname = text.partition(":")
    origin = _origin(name, text, what)
    module = read_module(name, origin)
    block: Sequence[ast.stmt] = ast.parse(module.source).body
    found: ast.stmt | None = None
    for part in qualname.split("."):
        found = next((each for each in block if part in _names_of(each)), None)
        if found is None:
            msg = f"{what} must be in {origin}; got {text!r}, and no {part!r} is there. Look at its name"
            raise UsageError(msg)
        block = found.body if isinstance(found, ast.ClassDef) else ()
    assert found is not None  # noqa: S101 - a name has a part
    return module, found


def _origin(name: str, text: str, what: str) -> Path:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        msg = f"{what} must be module:name, such as shop.store:save; got {text!r}. Name such a one"
        raise UsageError(msg)
    origin, _ = located(name)
    if origin is None:
        msg = f"{what} must be in a module with Python source; got {text!r}, a package without one. Name its module"
        raise UsageError(msg)
    return origin


def _names_of(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (*_DEFINITIONS, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom):
        stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        imported = {(n.asname or n.name).partition(".")[0] for n in ast.walk(statement) if isinstance(n, ast.alias)}
        return stored | imported
    return set()


def _yields(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom | ast.Await) for node in ast.walk(function))


def _of_diff(path: Path, text: str) -> TargetPatch:
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"a patch must be a file that can be read; got {text} ({error.strerror}). Name another one"
        raise UsageError(msg) from error
    if (git := shutil.which("git")) is None:
        msg = "a diff must be applied by git, which was not found here. Install it, or name module:name=module:name"
        raise UsageError(msg)
    names, strip = _files(git, content, text)
    base = _base(git, names, text)
    modules = []
    with tempfile.TemporaryDirectory(prefix="chaos-doubt-") as name:
        folder = Path(name)
        for each in names:
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / each, folder / each)
        done = _git(git, folder, content, "apply", f"-p{strip}")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = said[0].removeprefix("error: ") if said else f"exit code {done.returncode}"
            msg = f"{text} must apply to what is in {base}; got '{why}'. Make it anew, by git diff"
            raise UsageError(msg)
        for each in names:
            before = read_module(_module_of(base / each), base / each)
            after = read_module(before.name, folder / each).source
            modules.append(PatchedModule(before, after, _changed(before.source, after)))
    changed = [each for each in modules if each.source != each.before.source]
    if not changed:
        msg = f"{text} must change a statement; it changes nothing. Look at what it contains"
        raise UsageError(msg)
    return TargetPatch(text, tuple(changed), all(each.functions for each in changed))


def _files(git: str, content: bytes, text: str) -> tuple[list[str], int]:
    """Return the files that a diff changes, and how many folders git has put before their names."""
    strip = int(_has_prefix(content))
    with tempfile.TemporaryDirectory(prefix="chaos-doubt-") as folder:
        done = _git(git, Path(folder), content, "apply", f"-p{strip}", "--numstat", "-z")
    names = [entry.rpartition("\t")[2] for entry in done.stdout.decode(errors="replace").split("\0") if entry]
    if done.returncode or not names:
        why = done.stderr.decode(errors="replace").strip().removeprefix("error: ") or "no change in it"
        msg = f"{text} must be a diff; got '{why:.200}'. Make it by git diff, or diff -u"
        raise UsageError(msg)
    return _checked(names, text), strip


def _has_prefix(content: bytes) -> bool:
    heads = [line.split(b"\t")[0][4:] for line in content.splitlines() if line.startswith((b"--- ", b"+++ "))]
    return all(head.startswith((b"a/", b"b/", b"/dev/null")) for head in heads)


def _checked(names: list[str], text: str) -> list[str]:
    for name in names:
        if Path(name).suffix != ".py" or Path(name).is_absolute() or ".." in Path(name).parts:
            msg = f"{text} must change Python files of this project alone; got {name}. Leave the others out"
            raise UsageError(msg)
    return names


def _base(git: str, names: Sequence[str], text: str) -> Path:
    """Return the folder that the names of a diff are relative to: this one, or the repository."""
    top = _git(git, Path.cwd(), b"", "rev-parse", "--show-toplevel").stdout.decode(errors="replace").strip()
    for base in [Path.cwd(), *[Path(top)] * bool(top)]:
        if all((base / name).is_file() for name in names):
            return base
    missing = next(name for name in names if not (Path.cwd() / name).is_file())
    msg = f"{text} must change files that are there; got {missing}. Run chaos in the folder of the diff"
    raise UsageError(msg)


def _git(git: str, folder: Path, content: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C"}
    if words[0] == "apply":  # or it would look for the repository that the folder may be in
        environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    return subprocess.run(
        [git, *words], cwd=folder, input=content, capture_output=True, env=environment, timeout=_APPLY_S_MAX,
        check=False,
    )  # fmt: skip


def _module_of(path: Path) -> str:
    """Return the name by which a file is imported: that of its packages, from the first one on."""
    names, folder = [path.stem] * (path.stem != "__init__"), path.resolve().parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    longer = list(names)
    for parent in [folder, *folder.parents] if len(names) == 1 else ():  # a namespace package has no __init__.py
        with contextlib.suppress(UsageError):
            origin, _ = located(".".join(longer))
            if origin is not None and origin.resolve() == path.resolve():
                return ".".join(longer)
        if not parent.name.isidentifier():
            break
        longer.insert(0, parent.name)
    return ".".join(names)


def _changed(before: str, after: str) -> frozenset[str]:
    """Return the names of the functions that have a changed line; none if one is outside of all.

    What is left out counts for the line before it.
    """
    lines: set[int] = set()
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    for kind, _, _, first, last in matcher.get_opcodes():
        if kind != "equal":
            lines |= set(range(first + 1, last + 1)) or {max(1, first)}
    spans = {name: range(_first(each), (each.end_lineno or 0) + 1) for name, each in _functions(ast.parse(after))}
    found = [[name for name, span in spans.items() if line in span] for line in lines]
    if not all(found):
        return frozenset()
    return frozenset(min(names, key=lambda name: len(spans[name])) for names in found)


def _first(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        name = f"{outer}.{node.name}".lstrip(".") if isinstance(node, (*_DEFINITIONS, ast.ClassDef)) else outer
        if isinstance(node, _DEFINITIONS):
            yield name, node
        yield from _functions(node, name)
