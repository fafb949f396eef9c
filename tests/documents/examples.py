"""Examples of the documents: what a page shows is written to files, run, and compared.

A page is Markdown. A fenced block whose first or second line is a comment with a file's name is
that file. A ``console`` block is a session: a line after ``$`` is a command, the lines below it are
what it prints. ``...`` stands for any text, and on a line of its own for any lines. Durations may
differ. Any other Python block is a program that ends without an error.

A comment before a block or a part says more:

``<!-- example: NAME; needs node, gcc; nightly -->``
    An example of its own begins here, in a folder of its own. It is skipped where a program is
    missing.
``<!-- nightly from here -->``
    What was before is an example of its own, too: it is run in the gate, and all of it nightly.
``<!-- not run: REASON -->``
    The next block is only shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIECE: Final = re.compile(
    r"^<!-- (?P<comment>.*?) -->$|^(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=ticks)$",
    re.MULTILINE | re.DOTALL,
)
_FILE_NAME: Final = re.compile(r"^(?:#|//|/\*|--|<!--) ?(?P<name>[\w./-]*\w\.\w+)(?: \*/| -->)?$")
_PROGRESS: Final = re.compile(r"^(?:crash|recovery|power|io): .* left\n", re.MULTILINE)
"""What a slow machine prints each 10 s into a pipe."""
_DURATION: Final = re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|min)\b")


@dataclass(frozen=True)
class File:
    """A file that a page shows."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line that a page shows, with what it prints."""

    line: str
    printed: str


@dataclass
class Example:
    """Files and commands that belong together, in a folder of their own."""

    page: str
    name: str
    needs: tuple[str, ...] = ()
    is_nightly: bool = False
    steps: list[File | Command] = field(default_factory=list)

    @property
    def commands(self) -> list[Command]:
        """The commands, in their order."""
        return [step for step in self.steps if isinstance(step, Command)]


def examples_of(page: str, text: str) -> Iterator[Example]:
    """Yield the examples of a page that have something to run."""
    example, skip = Example(page, "page"), False
    for piece in _PIECE.finditer(text):
        comment = piece["comment"]
        if comment is None:
            if not skip:
                example.steps += _steps(piece["language"].strip(), piece["text"])
            skip = False
        elif comment.startswith("example: "):
            if example.commands:
                yield example
            example = _declared(page, comment.removeprefix("example: "))
        elif comment == "nightly from here":
            yield Example(page, f"{example.name}, first part", example.needs, steps=list(example.steps))
            example.is_nightly = True
        else:
            skip = comment.startswith("not run: ")
    if example.commands:
        yield example


def _declared(page: str, comment: str) -> Example:
    name, *more = (part.strip() for part in comment.split(";"))
    needs = [part.removeprefix("needs ").split(",") for part in more if part.startswith("needs ")]
    return Example(page, name, tuple(each.strip() for all_of in needs for each in all_of), "nightly" in more)


def _steps(language: str, text: str) -> list[File | Command]:
    if language == "console":
        return list(_session(text))
    for line in text.splitlines()[:2]:
        if (named := _FILE_NAME.match(line)) is not None:
            return [File(named["name"], text)]
    if language == "python":
        return [Command(f"python - <<'END_OF_EXAMPLE'\n{text}END_OF_EXAMPLE", "")]
    return []


def _session(text: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next((n for n, line in enumerate(lines) if not line.endswith("\\")), 0)
        if (here := re.search(r"<<'?(\w+)'?", lines[0])) is not None:
            end = lines.index(here[1])
        yield Command("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :]).strip("\n"))


def script_of(example: Example, folder: Path) -> str:
    """Return a shell script that makes the files and runs the commands in the folder.

    A line of control characters comes before each command, and one with its exit status after it.
    """
    lines = [f"cd {folder}"]
    for number, step in enumerate(example.steps):
        if isinstance(step, Command):
            lines += [f"printf '\\001%d\\n' {number}", "(exit ${status:-0})", step.line]
            lines += ["status=$?", "printf '\\002%d\\n' $status"]
        else:
            source = folder / f".example-{number}"
            source.write_text(step.text)
            executable = f"; chmod +x {step.name}" if step.text.startswith("#!") else ""
            lines.append(f'mkdir -p "$(dirname {step.name})"; mv {source} {step.name}{executable}')
    return "\n".join([*lines, ""])


def problems_of(example: Example, printed: str) -> list[str]:
    """Return which commands printed something else than the page shows, or failed unannounced."""
    outputs = dict(re.findall(r"\x01(\d+)\n(.*?)(?=\x01|\Z)", _PROGRESS.sub("", printed), flags=re.DOTALL))
    problems = []
    for number, step in enumerate(example.steps):
        if isinstance(step, Command):
            output, _, status = outputs.get(str(number), "it was not run\x02-1").rpartition("\x02")
            if not matches(step.printed, output):
                problems.append(f"$ {step.line}\nmust print:\n{step.printed}\ngot:\n{output}")
            elif int(status or -1) and not step.printed and not _status_is_shown(example, number):
                problems.append(f"$ {step.line}\nmust end with status 0, or show what it prints; got {status}")
    return problems


def _status_is_shown(example: Example, number: int) -> bool:
    following = example.steps[number + 1 : number + 2]
    return [step.line for step in following if isinstance(step, Command)] == ["echo $?"]


def matches(expected: str, output: str) -> bool:
    """Return whether the output is what the page shows. Empty lines do not count."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else _pattern(line) + r"\n"
        for line in expected.splitlines()
        if line.strip()
    )
    plain = "".join(f"{line.rstrip()}\n" for line in output.splitlines() if line.strip())
    return re.fullmatch(pattern, plain) is not None


def _pattern(line: str) -> str:
    pieces = []
    for part in line.rstrip().split("..."):
        texts = (re.escape(text) for text in _DURATION.split(part))
        pieces.append(r"\d+(?:\.\d+)? ?(?:ms|s|min)".join(texts))
    return ".*".join(pieces)
