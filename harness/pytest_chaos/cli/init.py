"""The command ``chaos init``: write a first target for the user's command, and explore it.

The file is the user's from then on: plain Python, no longer than a screen. Its check holds for any
program: databases are sound, and JSON can be read.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.cli.documents import InitDocument
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILE: Final = Path("chaos_target.py")
_BUDGET_S: Final = 60.0

_PYTHON: Final = frozenset({"python", "python3"})
"""Programs that stand for the interpreter that runs us."""
_UNPROMISED: Final = (
    "this first check asks only whether JSON can be read and SQLite is sound, and looks at no other file: "
    "say at the end of {file} what your program promised"
)
_HEAD: Final = '''"""What `chaos explore {file}` explores. Change it: it is yours.

run() does the work that must survive; everything it keeps goes into `directory`. It says with marks what it is about to
do and what it has promised; no crash and no power loss may take back what was acknowledged.
If a restart does something of its own, add recover(self, directory): it is called before check(), and must not fail.
check() looks at what a crash has left, and returns a text for everything that is wrong with it.
"""

import json
{first}import sqlite3
{imports}from pathlib import Path


class Target:
    name = {name!r}

'''

_COMMAND_RUN: Final = """    def run(self, directory, marks):
        marks.intent("run")
        subprocess.run({command!r}, cwd=directory, {environment}check=True)
        marks.ack("run")

"""

_MODULE_ENVIRONMENT: Final = 'env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, '
_EXAMPLE_RUN: Final = """    def run(self, directory, marks):
        # Put your program here. This one keeps a counter in a JSON file, as most programs do.
        for number in range(1, 6):
            marks.intent("save", number)
            (directory / "state.json").write_text(json.dumps({"number": number}))
            marks.ack("save", number)

"""

_CHECK_HEAD: Final = """    def check(self, directory, marks):
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file() and path.read_bytes()[:16] == b"SQLite format 3\\0":
                connection = sqlite3.connect(path)
                try:
                    answer = connection.execute("pragma integrity_check").fetchone()[0]
                    if answer != "ok":
                        yield f"{path.name} is damaged: {answer}"
                except sqlite3.DatabaseError as error:
                    yield f"{path.name} cannot be read: {error}"
                finally:
                    connection.close()
            elif path.suffix == ".json":
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    yield f"{path.name} is no JSON any more: {error}"
"""

_COMMAND_CHECK: Final = """        # What did your program promise? Say it here:
        # if any(mark.kind == "ack" for mark in marks) and not Path(directory, "result").exists():
        #     yield "the result is gone, though the run was acknowledged"
"""

_EXAMPLE_CHECK: Final = """        saved = [mark.key for mark in marks if mark.kind == "ack"]
        if saved:
            try:
                found = json.loads((Path(directory) / "state.json").read_text())["number"]
            except (OSError, ValueError):
                found = 0
            if found < saved[-1]:
                yield f"number {saved[-1]} was acknowledged, and {found} is there"
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), default=_FILE, show_default=True,
    help="Where the target is written; a file that is there is left alone.",
)  # fmt: skip
@click.option("--no-run", is_flag=True, help="Only write it.")
@click.option("--seed", help="The seed of the first exploration.")
@click.option("--json", "as_json", is_flag=True, help="Print the file and the verdict as JSON, and nothing else.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def init(*, file: Path, no_run: bool, seed: str | None, as_json: bool, command: tuple[str, ...]) -> None:
    """Write a first target that runs COMMAND, or an example to fill in, and explore it.

    For example: chaos init -- python -m myprogram --data .

    Exits as chaos explore does: 0 held, 1 violated, 2 inconclusive, 3 for a mistake in the call.
    With --no-run it exits 0.
    """
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        verdict = _init(file, seed, command, is_run=not no_run)
    if as_json:
        again = f"chaos explore {file}"
        click.echo(
            msgspec.json.encode(InitDocument(file=str(file), again=again, verdict=verdict.name if verdict else ""))
        )
    if verdict is not None:
        from pytest_chaos.cli.explore import code_of

        raise click.exceptions.Exit(code_of(verdict))


def _init(file: Path, seed: str | None, command: tuple[str, ...], *, is_run: bool) -> Verdict | None:
    """Write the target, explore it, and return the verdict. Raises UsageError."""
    if file.exists():
        msg = (
            f"--file must be a new file; got {file}, which exists already. "
            f"Explore it with chaos explore {file}, or give another name"
        )
        raise UsageError(msg)
    if command and command[0] not in _PYTHON:
        from pytest_chaos.explore.target import require_program

        require_program(command[0], "COMMAND")
    try:
        file.write_text(target_text(file.name, command))
    except OSError as error:
        msg = f"--file must be a file that can be written; got {file}: {error.strerror}. Give another"
        raise UsageError(msg) from error
    click.echo(f"wrote {file}; explore it again with: chaos explore {file}")
    if not is_run:
        return None
    found = _explore(file, seed)
    if found is Verdict.HELD and command:
        click.echo(f"note: {_UNPROMISED.format(file=file)}")
    return found


def target_text(file_name: str, command: Sequence[str]) -> str:
    """Return the source of a first target."""
    from pytest_chaos.explore.target import command_name

    name = command_name(command) if command else "counter in a JSON file"
    is_module = "-m" in command  # Python looks for it in the current folder, which will be another one
    imports = "import subprocess\n" if command else ""
    head = _HEAD.format(file=file_name, first="import os\n" if is_module else "", imports=imports, name=name)
    if not command:
        return head + _EXAMPLE_RUN + _CHECK_HEAD + _EXAMPLE_CHECK
    environment = _MODULE_ENVIRONMENT if is_module else ""
    run = _COMMAND_RUN.format(command=_resolved(command), environment=environment)
    return head + run + _CHECK_HEAD + _COMMAND_CHECK


def _resolved(command: Sequence[str]) -> list[str]:
    """Return the command with paths that work from any folder: it will run in the explored one."""
    program = sys.executable if command[0] in _PYTHON else command[0]
    return [str(Path(part).absolute()) if Path(part).is_file() else part for part in (program, *command[1:])]


def _explore(file: Path, seed: str | None) -> Verdict:
    from pytest_chaos.cli.explore import RESULTS, options_for, run_and_show
    from pytest_chaos.explore.target import load_subject

    subject = load_subject(str(file))
    options = options_for(subject, f"chaos explore {file}", RESULTS, seed, budget_s=_BUDGET_S)
    return run_and_show(subject, options).verdict
