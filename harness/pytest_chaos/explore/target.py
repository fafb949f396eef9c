"""What is explored: a class, two functions, or two commands, behind one face.

    class Target:
        name = "my store"
        def setup(self, directory): ...           # optional: what is there before the run; not explored
        def run(self, directory, marks): ...      # the work; it says with marks what it has promised
        def recover(self, directory): ...         # optional: what a restart does; done before each check
        def check(self, directory, marks): ...    # returns what is wrong: findings, or texts

A command is run in the directory; ``{directory}`` and ``{marks}`` in it become paths, and so do
``CHAOS_DIRECTORY`` and ``CHAOS_MARKS`` in its environment. The check command prints one finding a
line and exits 0 for none, 1 for findings; any other exit is an error of the check, and so is a
Python traceback. Where it prints nothing, what it said last on standard error is the finding.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import child
from pytest_chaos.runtime.marks import MARKS_VARIABLE, Marks
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Program

DIRECTORY_VARIABLE: Final = "CHAOS_DIRECTORY"
FINDINGS_MAX: Final = 50
TEXT_CHARACTERS_MAX: Final = 2000
_DEFAULT_NAME: Final = "Target"
_METHODS: Final = ("setup", "run", "recover", "check")
_NUMBER: Final = re.compile(r"\b(0x[0-9a-f]+|[0-9a-f]{8,}|\d+)", re.IGNORECASE)
_SIGNATURE_CHARACTERS: Final = 60
_TRACEBACK: Final = "Traceback (most recent call last)"


@runtime_checkable
class Target(Protocol):
    """What a user writes. ``setup`` and ``recover``, each with the directory, are optional."""

    def run(self, directory: Path, marks: Marks) -> object:
        """Do the work in this directory, with intents and acks."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Return what is wrong with the directory, given what was said before the crash."""


class CheckError(Exception):
    """A check command did not answer as it should have: it ended with another exit than 0 and 1."""


class Subject:
    """A target behind one face, as the exploration uses it. ``name`` is what reports call it.

    ``place`` tells it from others of that name: the file it is in, and which of that file it is.
    """

    def __init__(self, target: object, name: str, *, place: str = "") -> None:
        self.place = place or f"{type(target).__module__}:{type(target).__qualname__}"
        self.name = str(_asked(target, "name", name) or name)
        self._target: Any = target
        methods = {attribute: _asked(target, attribute, name) for attribute in _METHODS}
        for attribute in ("run", "check"):
            if not callable(methods[attribute]):
                msg = f"{name} has no {attribute}(): a target has run(directory, marks) and check(directory, marks)"
                raise UsageError(msg)
        for attribute, method in methods.items():
            if inspect.iscoroutinefunction(method):
                msg = f"{name}.{attribute}() is async, and nobody awaits it: let it call asyncio.run() itself"
                raise UsageError(msg)

    def sources(self) -> list[bytes]:
        """Return what the target is written in; when that is changed, nothing that was found before can be built on."""
        own: Any = self._target if inspect.ismodule(self._target) else type(self._target)
        if isinstance(self._target, _Functions):
            own = self._target.check
        try:
            return [_read(inspect.getfile(own))]
        except (TypeError, OSError):  # it was typed in
            return []

    def setup(self, directory: Path) -> None:
        """Put what is there before the run into the directory."""
        if callable(step := getattr(self._target, "setup", None)):
            step(directory)

    def program(self, directory: Path, marks: Path) -> Program:
        """Return what is to be run and watched."""
        return lambda: self._run(directory, marks)

    def _run(self, directory: Path, marks: Path) -> None:
        sys.dont_write_bytecode = True  # or a module that is imported late would be written beside its source
        print_to_descriptors()
        self._target.run(directory, Marks(marks, "target"))

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the restart after a crash, to be watched: the target's own recovery, and then its check."""
        del marks
        return lambda: self._recover_and_look(directory, seen)

    def _recover_and_look(self, directory: Path, seen: Sequence[Mark]) -> None:
        sys.dont_write_bytecode = True  # as above
        print_to_descriptors()
        list(self.examine(directory, seen))

    def examine(self, directory: Path, marks: Sequence[Mark]) -> list[Finding]:
        """Recover, then check, and return what was found. Whatever the target raises comes out, but AssertionError.

        An assertion that fails says something about the target, as it does in a test.
        """
        try:
            if callable(step := getattr(self._target, "recover", None)):
                step(directory)
            found = self._target.check(directory, marks)
            return [as_finding(each) for each in _listed(found)]
        except AssertionError as error:
            text = readable(str(error)).strip() or _asserted(error)
            return [Finding(signature=_signature("assertion", text), text=text[:TEXT_CHARACTERS_MAX])]


class CommandSubject(Subject):
    """A target that is two command lines, in any language. ``timeout_s`` bounds the check."""

    def __init__(self, run: Sequence[str], check: Sequence[str], *, name: str = "", timeout_s: float = 60.0) -> None:
        if not run or not check:
            msg = "a target of commands needs both, one to run and one to check: give --run and --check"
            raise UsageError(msg)
        self.name = name or Path(run[0]).name
        self.place = shlex.join([*run, "&&", *check])
        self._commands = tuple(run), tuple(check)
        self._timeout_s = timeout_s

    def sources(self) -> list[bytes]:
        """Return the words of both commands, and what is in the files that they name."""
        words = [word for command in self._commands for word in command]
        return [os.fsencode(word) for word in words] + [_read(word) for word in words]

    def setup(self, directory: Path) -> None:
        """Leave the directory empty: the run command may make what it needs."""

    def program(self, directory: Path, marks: Path) -> Program:
        """Return the run command."""
        return _environment_for(self._commands[0], directory, marks)

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the check command: what it reopens is the recovery."""
        del seen
        return _environment_for(self._commands[1], directory, marks)

    def check_with_file(self, directory: Path, marks: Path) -> list[Finding]:
        """Run the check command. Raises CheckError."""
        argv = [_filled(part, directory, marks) for part in self._commands[1]]
        environment = os.environ | {DIRECTORY_VARIABLE: str(directory), MARKS_VARIABLE: str(marks)}
        try:
            done = subprocess.run(
                argv, cwd=directory, env=environment, capture_output=True, timeout=self._timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            text = f"the check command did not end within {self._timeout_s:g} s (--check-timeout sets it)"
            return [Finding(signature="liveness:check-hangs", text=text, kind="liveness")]
        return _answer_of(done.returncode, _lines_of(done.stdout), _lines_of(done.stderr))


def _read(file: str) -> bytes:
    """Return a file's digest, or nothing where there is none."""
    if not Path(file).is_file():
        return b""
    with Path(file).open("rb") as source:
        return hashlib.file_digest(source, "blake2b").digest()


def _lines_of(output: bytes) -> list[str]:
    return [line for line in output.decode(errors="replace").splitlines() if line.strip()]


def _answer_of(exit_code: int, printed: Sequence[str], said: Sequence[str]) -> list[Finding]:
    """Return what a check command has found, by its exit and what it wrote. Raises CheckError.

    Python ends with 1 after an exception as well: a traceback, and nothing printed, is a check that
    is broken.
    """
    if exit_code == 0:
        return []
    if exit_code != 1 or (not printed and any(line.startswith(_TRACEBACK) for line in said)):
        msg = f"the check command ended with {exit_code} ({said[-1] if said else 'it said nothing'})"
        raise CheckError(msg)
    if not printed:
        told = f"said: {said[-1]}" if said else "printed nothing"
        return [as_finding(f"the check command exited 1 and {told}")]
    return [as_finding(line) for line in printed]


def words_of(command: str, option: str) -> list[str]:
    """Return the words of a command, with what is named from the current folder as it is named from any other.

    It will run in the explored folder, so files that are there now get their whole path. Raises
    UsageError for a command that is empty, cannot be split, or names no program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        msg = f"{option} {command!r} cannot be split into words ({error}): quote it as for a shell"
        raise UsageError(msg) from error
    if not words:
        msg = f"{option} wants a command, such as {option} './worker --data .', and this is empty"
        raise UsageError(msg)
    if shutil.which(words[0]) is None:
        msg = f"{option}: there is no program {words[0]!r} that can be executed; seen from {Path.cwd()}"
        raise UsageError(msg)
    return [str(Path(word).absolute()) if Path(word).is_file() else word for word in words]


class _Functions:
    """Two functions as a target."""

    def __init__(self, run: Callable[..., object], check: Callable[..., Iterable[Finding | str]]) -> None:
        self.name = getattr(run, "__qualname__", "")
        self.run = run
        self.check = check


def print_to_descriptors() -> None:
    """Let what this forked process prints go to its own descriptors 1 and 2, and not into what pytest captures."""
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - to stay open
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - to stay open


def subject_of(target: object, *, check: Callable[..., Any] | None = None, name: str = "", place: str = "") -> Subject:
    """Return the face of a target: a class, an object, a module, or a function together with ``check``.

    Raises UsageError for anything else, for a class that cannot be made without arguments, and for
    what raises when it is asked for its name or its methods.
    """
    if isinstance(target, Subject):
        return target
    if check is not None:
        if not callable(target):
            msg = f"with check= the target is the function that runs, and this is {type(target).__name__}"
            raise UsageError(msg)
        return Subject(_Functions(target, check), name or getattr(target, "__qualname__", ""))
    own = type(target).__name__
    called = name or str(_asked(target, "__qualname__", own) or _asked(target, "__name__", own) or own)
    if inspect.isclass(target):
        try:
            return Subject(target(), called, place=place)
        except TypeError as error:
            msg = (
                f"the target {called} cannot be made without arguments ({error}): give an object in place of the class"
            )
            raise UsageError(msg) from error
        except (Exception, SystemExit) as error:
            msg = f"the target {called} cannot be made ({type(error).__name__}: {error}): let it wait for run()"
            raise UsageError(msg) from error
    return Subject(target, called, place=place)


def _asked(target: object, attribute: str, called: str) -> Any:
    """Return an attribute of a target, None where it has none. Raises UsageError where it cannot be asked for."""
    try:
        return getattr(target, attribute, None)
    except (Exception, SystemExit) as error:
        msg = (
            f"asked for its {attribute}, the target {called} raises {type(error).__name__}: {error}; "
            "let it answer as soon as it is made"
        )
        raise UsageError(msg) from error


def load_subject(text: str) -> Subject:
    """Return the target that ``module:Target`` or ``file.py:Target`` names; without a name, Target or the module.

    Raises UsageError that says what is missing.
    """
    module_name, _, name = text.partition(":")
    for place in ("", str(Path(module_name).resolve().parent) if module_name.endswith(".py") else ""):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        module = child.load(module_name)
    except (Exception, SystemExit) as error:  # one that exits with 0 would look like a pass
        msg = f"{text} cannot be loaded ({type(error).__name__}: {error}): give module:Target or path/to/file.py:Target"
        raise UsageError(msg) from error
    own = getattr(module, "__file__", None)  # a folder without __init__.py, or a module that is built in, has none
    file = str(Path(own).resolve()) if own else module_name
    if not name:
        default = f"{file}:{_DEFAULT_NAME}" if hasattr(module, _DEFAULT_NAME) else file
        return subject_of(getattr(module, _DEFAULT_NAME, module), name=Path(module_name).stem, place=default)
    found: Any = module
    for part in name.split("."):
        found = _asked(found, part, text)
        if found is None:
            known = ", ".join(key for key, value in vars(module).items() if _is_target(value)) or "none"
            msg = f"{module_name} has no {name}; targets in it: {known}"
            raise UsageError(msg)
    if inspect.isfunction(found) and hasattr(module, "check"):
        msg = f"{name} is a function: give {module_name} alone, whose run() and check() are a target together"
        raise UsageError(msg)
    return subject_of(found, name=name, place=f"{file}:{name}")


def _is_target(value: object) -> bool:
    """Whether this may be meant, of all that is in a module; what cannot even be asked is not."""
    try:
        return _asked(value, "check", "") is not None
    except UsageError:
        return False


def as_finding(found: object) -> Finding:
    """Return a finding as it is, and a text as one whose signature leaves the numbers out. Raises TypeError."""
    if isinstance(found, Finding):
        return msgspec.structs.replace(found, signature=readable(found.signature), text=readable(found.text))
    if not isinstance(found, str):
        raise TypeError(_no_finding(found))
    text = readable(found)
    return Finding(signature=_signature("check", text), text=text[:TEXT_CHARACTERS_MAX])


def _no_finding(found: object) -> str:
    return f"a check returns findings or texts, and this one returned {type(found).__name__} ({found!r:.100})"


def _signature(prefix: str, text: str) -> str:
    return f"{prefix}:{_NUMBER.sub('#', text.strip().partition(chr(10))[0])[:_SIGNATURE_CHARACTERS]}"


def _listed(found: object) -> list[object]:
    if found is None:
        return []
    if isinstance(found, str | Finding):
        return [found]
    if not isinstance(found, Iterable):
        raise TypeError(_no_finding(found))
    listed: list[object] = []
    for each in found:
        listed.append(each)
        if len(listed) == FINDINGS_MAX:
            break
    return listed


def _asserted(error: AssertionError) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "the check"
    return f"an assertion failed at {where}"


def _filled(part: str, directory: Path, marks: Path) -> str:
    return part.replace("{directory}", str(directory)).replace("{marks}", str(marks))


def _environment_for(command: Sequence[str], directory: Path, marks: Path) -> Program:
    argv = [_filled(part, directory, marks) for part in command]

    def become() -> None:
        os.environ[DIRECTORY_VARIABLE] = str(directory)
        os.execvp(argv[0], argv)

    return become
