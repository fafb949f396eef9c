"""A program in C that keeps a number in a file: another language, unmodified,
also where nothing can be preloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scenarios.targets.files import InPlace

if TYPE_CHECKING:
    from pytest_chaos import Marks

SOURCE: Final = Path(__file__).with_name("numbers.c")
_BUILD_TIMEOUT_S: Final = 60


class NoCompiler(Exception):  # noqa: N818 - says what this machine lacks; nobody made a mistake
    """There is no C compiler here, or it cannot link statically."""


def build(folder: Path, *, static: bool) -> Path:
    """Compile the program and return it. Raises NoCompiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        message = "there is no C compiler (cc) on this machine"
        raise NoCompiler(message)
    program = folder / ("numbers-static" if static else "numbers")
    command = [compiler, *(["-static"] if static else []), "-O1", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
    if done.returncode:
        message = f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}"
        raise NoCompiler(message)
    return program


class Compiled(InPlace):
    """The program, called ``careful`` or ``careless``; its check is that of the JSON files."""

    def __init__(self, program: Path, how: str) -> None:
        self.name = f"{program.name} {how}"
        self._command = [str(program), how]

    def run(self, directory: Path, marks: Marks) -> None:
        """Become the program: it writes its own marks to the file that the environment names."""
        os.chdir(directory)
        os.execv(self._command[0], self._command)
