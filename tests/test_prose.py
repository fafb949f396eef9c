"""The rules of prose that no other tool keeps: the words of the glossary,
first lines of docstrings, examples that run.

Each rule is a function from text to problems and is tried on a bad snippet first.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("harness", "reports", "recovery")
SUMMARY_CHARACTERS_MAX = 100

REJECTED = {
    r"whoever|whomever|whosoever": "name the process, caller or user",
    r"somebody|someone": "name the process, caller or user",
    r"what is none|who is none|cannot be meant|cannot mean": "say which value is invalid",
    r"let alone|in peace": "use the technical term",
    r"nurse|attendants?|impatience|impatient|likeness": "use the word of docs/glossary.md",
    r"couriers?": "the glossary says fault proxy",
}
"""Words without a noun behind them, and words of earlier versions: pattern to remedy."""


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every comment and string constant of a Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING} or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


def word_problems(path: str, lines: Iterator[tuple[int, str]]) -> list[str]:
    """Return the lines with a rejected word, each with its remedy."""
    return [
        f"{path}:{number}: {match.group(0)!r}: {remedy}"
        for number, line in lines
        for pattern, remedy in REJECTED.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", line, re.IGNORECASE)
    ]


def summary_problems(path: str, source: str) -> list[str]:
    """Return the docstrings whose first line is not one complete line with a full
    stop at its end.
    """
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            first = text.splitlines()[0]
            where = f"{path}:{getattr(node, 'lineno', 1)}"
            if len(first) > SUMMARY_CHARACTERS_MAX:
                problems.append(f"{where}: first line has {len(first)} characters, at most {SUMMARY_CHARACTERS_MAX}")
            if not first.endswith((".", ":", "?")):
                problems.append(f"{where}: first line must end with a full stop; got {first[-20:]!r}")
    return problems


def sources() -> Iterator[tuple[str, str]]:
    """Yield path and text of every module of the product."""
    for room in PRODUCT:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def module_name(path: str) -> str:
    """Return the import name of a module of the product, which lies below a source root."""
    parts = Path(path).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_rejected_word_is_used() -> None:
    """Code and documents use the words of the glossary, and sentences have a noun."""
    problems = [problem for path, text in sources() for problem in word_problems(path, prose_of(text))]
    documents = [ROOT / "README.md", *(ROOT / "recovery").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        if document.name != "glossary.md":
            lines = enumerate(document.read_text(encoding="utf-8").splitlines(), start=1)
            problems += word_problems(document.name, iter(lines))
    assert problems == []


def test_docstrings_begin_with_one_whole_line() -> None:
    """The first line of a docstring is a summary of at most 100 characters."""
    assert [problem for path, text in sources() for problem in summary_problems(path, text)] == []


PUBLIC = re.compile(r"(?:>>>|\.\.\.) .*?\b([A-Z][A-Za-z]+)\(")
"""A public class that an example uses: examples may use them, and ``tmp_path``, a new folder."""

EXAMPLES = [path for path, text in sources() if ">>> " in text]


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_of_a_docstring_runs(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of a module do what they show; they may use public names, and ``tmp_path``,
    a new folder.
    """
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_name(path))
    package = importlib.import_module(module.__name__.partition(".")[0])
    public = {
        name: getattr(package, name)
        for name in PUBLIC.findall(Path(ROOT / path).read_text(encoding="utf-8"))
        if hasattr(package, name)
    }
    results = doctest.testmod(module, extraglobs={**public, "tmp_path": tmp_path}, optionflags=doctest.ELLIPSIS)
    assert results.attempted
    assert not results.failed


def test_there_are_examples() -> None:
    """The rule above looks at something."""
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("text", ["whoever reads it", "it cannot be meant", "The Courier carries it", "the likeness"])
def test_a_rejected_word_is_found(text: str) -> None:
    """A rejected word is found in a comment, in a docstring and in a message;
    similar words are left alone.
    """
    for source in (f"# {text}\n", f'"""{text}"""\n', f'x = f"{text} {{1}}"\n'):
        assert len(word_problems("x.py", prose_of(source))) == 1
    assert word_problems("x.py", prose_of("# the meaning of a stranger's presence\ncourier = 1\n")) == []


def test_a_bad_summary_is_found() -> None:
    """A first line that is too long, and one that is not a whole sentence, are found."""
    assert len(summary_problems("x.py", f'def f():\n    """{"a" * 101}."""')) == 1
    assert len(summary_problems("x.py", 'def f():\n    """One line\n    and another."""')) == 1
    assert summary_problems("x.py", '"""Return it."""') == []
