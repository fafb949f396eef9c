"""Targets of exploration: a class, two functions, or two commands, behind one interface.

    class Target:
        name = "my store"
        def setup(self, directory): ...         # optional: files before the run; not explored
        def run(self, directory, marks): ...    # the work; marks say what it has promised
        def recover(self, directory): ...       # optional: the restart, before each check
        def check(self, directory, marks): ...  # returns what is wrong: findings, or texts
        ignore = ("*.log",)                     # optional: files that are no data
        volatile = ("run/*.pid",)               # optional: files that no power loss leaves

``ignore`` and ``volatile`` are patterns of paths in the directory; ``trace.step.FileKinds`` says
what they mean. SQLite's ``-shm`` and the lock file of LMDB are volatile without a pattern.

A ``recover`` that raises on a state that a fault has left is a finding: the target does not start
again. A ``check`` that raises, or returns anything but findings, makes the state INCONCLUSIVE.

A command runs in the directory. ``{directory}`` and ``{marks}`` in it become paths; its environment
has the same paths in ``CHAOS_DIRECTORY`` and ``CHAOS_MARKS``. A check command that finds nothing
exits 0 and prints nothing. Otherwise it exits 1 and prints one finding a line. Any other exit is
INCONCLUSIVE. Its standard error is shown. A recover command that does not exit 0 is a finding, as
above.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.options import CHECK_TIMEOUT_S, RUN_TIMEOUT_S, patterns_wrong
from pytest_chaos.model.signatures import without_keys
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import child
from pytest_chaos.runtime.marks import MARKS_VARIABLE, Marks
from pytest_chaos.trace.step import KNOWN_FILES, VOLATILE, FileKinds, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set as AbstractSet
    from types import ModuleType

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.report import ExplorationError
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Observation, Program

DIRECTORY_VARIABLE: Final = "CHAOS_DIRECTORY"
FINDINGS_MAX: Final = 50
TEXT_CHARACTERS_MAX: Final = 2000
RECOVERY_FAILS: Final = "recovery-fails"
"""Prefix of the signature of a target that does not start again."""
_DEFAULT_NAME: Final = "Target"
_PARAMETERS: Final = {
    "setup": ("directory",),
    "run": ("directory", "marks"),
    "serve": ("directory",),
    "drive": ("directory", "marks"),
    "recover": ("directory",),
    "check": ("directory", "marks"),
}
_NUMBER: Final = re.compile(r"\b(0x[0-9a-f]+|[0-9a-f]{8,}|\d+)", re.IGNORECASE)
_INTERPRETERS: Final = frozenset({"python", "node", "sh", "bash", "perl", "ruby", "php"})
_SIGNATURE_CHARACTERS: Final = 60
_SAID_CHARACTERS: Final = 300
_NOT_FOUND: Final = {126: "a program that it names cannot be executed", 127: "a program that it names was not found"}
_NOT_OF_THE_TARGET: Final = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}
"""Errors of the machine, which say nothing about the target's recovery."""
_SHOWN_FRAMES: Final = 3
_OURS: Final = Path(__file__).parents[1]
_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@runtime_checkable
class Target(Protocol):
    """The class that a user writes; ``setup`` and ``recover`` are optional."""

    def run(self, directory: Path, marks: Marks) -> object:
        """Do the work in this directory, with intents and acks."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Return what is wrong with the directory, given the marks from before the crash."""


class CheckError(Exception):
    """A broken check, or recovery before it: the state is INCONCLUSIVE."""


class Subject:
    """A target behind the interface that the exploration uses. Reports call it ``name``.

    ``place`` tells it from others of that name: its file, and its name in that file.
    """

    needed: tuple[str, ...] = ("run", "check")
    """The methods that the target must have."""
    run_timeout_s = RUN_TIMEOUT_S
    check_timeout_s = CHECK_TIMEOUT_S
    is_server = False
    is_machine = False
    """Whether it is a state machine, of which a workload has to be drawn first."""
    is_by_restart = False
    """Whether the check is the program's own restart: what it should leave has to be learned."""
    files = KNOWN_FILES
    """The files that are no data."""
    fixed_port = 0
    """The port of a server that uses the same one at each start: one can run at a time."""

    def __init__(self, target: object, name: str, *, place: str = "") -> None:
        self.place = place or f"{type(target).__module__}:{type(target).__qualname__}"
        self.name = str(asked(target, "name", name) or name)
        self._target: Any = target
        self.files = _files_of(target, name)
        methods = {attribute: asked(target, attribute, name) for attribute in ("setup", "recover", *self.needed)}
        for attribute in self.needed:
            if not callable(methods[attribute]):
                *most, last = (f"{each}({', '.join(_PARAMETERS[each])})" for each in self.needed)
                msg = f"{name} must have {', '.join(most)} and {last}; got no {attribute}. Add it"
                raise UsageError(msg)
        for attribute, method in methods.items():
            if inspect.iscoroutinefunction(method):
                msg = f"{name}.{attribute}() must be a plain function; got an async one. Let it call asyncio.run()"
                raise UsageError(msg)
            if attribute != "check" and inspect.isgeneratorfunction(method):
                msg = f"{name}.{attribute}() must be a plain function; got one with yield, which would do nothing"
                raise UsageError(msg)
            if callable(method):
                _check_parameters(method, attribute, name)

    def sources(self) -> list[bytes]:
        """Return digests of the target's source: a change makes saved progress useless."""
        own: Any = self._target if inspect.ismodule(self._target) else type(self._target)
        if isinstance(self._target, _Functions):
            own = self._target.check
        try:
            return [_read(inspect.getfile(own))]
        except (TypeError, OSError):  # it was typed in
            return []

    def limit(self, options: Options) -> None:
        """Take over the time limits of an exploration."""
        self.run_timeout_s, self.check_timeout_s = options.run_timeout_s, options.check_timeout_s

    def learn(self, folder: Path, files: FileKinds, *, timeout_s: float) -> tuple[list[str], list[Finding]]:
        """Learn what the check has to know, in clean runs; return notes and findings."""
        del folder, files, timeout_s
        return [], []

    def judging(self, family: str, ran: Judgement | None) -> None:
        """Hear of which family the next state is, and how the run before it ended, if any."""
        del family, ran

    def explain(self, seen: Observation) -> ExplorationError | None:
        """Return why a run without any fault failed for a reason of its own, if that is known."""
        del seen
        return None

    def setup(self, directory: Path) -> None:
        """Run the target's ``setup``, which fills the directory before the run."""
        if callable(step := getattr(self._target, "setup", None)):
            step(directory)

    def program(self, directory: Path, marks: Path) -> Program:
        """Return the program that is run and traced."""
        return lambda: self._run(directory, marks)

    def _run(self, directory: Path, marks: Path) -> None:
        sys.dont_write_bytecode = True  # or a module that is imported late would be written beside its source
        print_to_descriptors()
        self._target.run(directory, Marks(marks, "target"))

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the restart after a crash as a program to trace: recovery, then check."""
        del marks
        return lambda: self._recover_and_look(directory, seen)

    def _recover_and_look(self, directory: Path, seen: Sequence[Mark]) -> None:
        sys.dont_write_bytecode = True  # as above
        print_to_descriptors()
        list(self.examine(directory, seen))

    def examine(self, directory: Path, marks: Sequence[Mark], keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Recover, then check, and return the findings. Raises CheckError if the check is broken.

        A failed assertion in the check is a finding about the target, as it is in a test. The
        signatures of texts are without these ``keys``.
        """
        if found := self._recover(directory):
            return found
        before = _printed_bytes()
        try:
            answer = self._target.check(directory, marks)
            listed = [as_finding(each, keys) for each in _listed(answer)]
        except CheckError:
            raise
        except AssertionError as error:
            text = readable(str(error)).strip() or _asserted(error)
            return [Finding(signature=_signature("assertion", text, keys), text=text[:TEXT_CHARACTERS_MAX])]
        except (Exception, SystemExit) as error:
            msg = f"the check raised {raised(error)}"
            raise CheckError(msg) from error
        if answer is None and (printed := _printed_since(before)):
            msg = f"check() printed {printed!r} and returned nothing: let it return or yield its findings as texts"
            raise CheckError(msg)
        return listed

    def _recover(self, directory: Path) -> list[Finding]:
        """Run the target's ``recover``; return a finding if it failed."""
        if not callable(step := getattr(self._target, "recover", None)):
            return []
        try:
            step(directory)
        except SystemExit as error:
            if error.code in {None, 0}:  # a program's main() that is done
                return []
            return [no_restart(f"recover() exited with {error.code!r:.100}{_where(error)}", "SystemExit")]
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NOT_OF_THE_TARGET):
                msg = f"recover() met an error of this machine, {raised(error)}"
                raise CheckError(msg) from error
            place = "".join(f":{line.partition(': ')[0]}" for line in _lines_through(error)[-1:])
            return [no_restart(f"recover() raised {raised(error)}", f"{type(error).__name__}{place}")]
        return []


def _files_of(target: object, name: str) -> FileKinds:
    """Return a target's patterns of files that are no data. Raises UsageError."""
    given = {attribute: asked(target, attribute, name) or () for attribute in ("ignore", "volatile")}
    listed = {attribute: (value,) if isinstance(value, str) else value for attribute, value in given.items()}
    if wrong := [text for attribute, value in listed.items() for text in patterns_wrong(f"{name}.{attribute}", value)]:
        raise UsageError("; ".join(wrong))
    return FileKinds(tuple(listed["ignore"]), (*VOLATILE, *listed["volatile"]))


def no_restart(text: str, signature: str) -> Finding:
    """Return the finding that the target does not start again."""
    told = readable(f"it does not start again: {text}")[:TEXT_CHARACTERS_MAX]
    return Finding(signature=f"{RECOVERY_FAILS}:{signature}", text=told)


def raised(error: BaseException) -> str:
    """Return an exception in words, with the user's lines that it came through."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text[:_SAID_CHARACTERS]}{_where(error)}"


def _where(error: BaseException) -> str:
    lines = _lines_through(error)
    return f" (at {' > '.join(lines[-_SHOWN_FRAMES:])})" if lines else ""


def _lines_through(error: BaseException) -> list[str]:
    """Return the user's lines that an exception came through, the innermost last."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_OURS) or frame.filename.startswith(("<", *_LIBRARIES)):
            continue
        code = linecache.getline(frame.filename, frame.lineno or 0).strip()
        lines.append(f"{path.name}:{frame.lineno}: {code}" if code else f"{path.name}:{frame.lineno}")
    return lines


def _printed_bytes() -> int:
    """Return the bytes that this process has printed; 0 if standard output is no file."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return os.fstat(1).st_size
    return 0


def _printed_since(before: int) -> str:
    """Return the beginning of what was printed after the first ``before`` bytes."""
    count = _printed_bytes() - before
    if count <= 0:
        return ""
    with contextlib.suppress(OSError):
        return os.pread(1, min(count, _SAID_CHARACTERS), before).decode(errors="replace").strip()
    return ""


def _check_parameters(method: Callable[..., object], attribute: str, name: str) -> None:
    """Raise UsageError for a method that cannot be called with the arguments it gets."""
    wanted = _PARAMETERS[attribute]
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # it is built in
        return
    try:
        signature.bind(*wanted)
    except TypeError as error:
        msg = f"{name}.{attribute} must take ({', '.join(wanted)}); got {signature} ({error}). Change its parameters"
        raise UsageError(msg) from error


class CommandSubject(Subject):
    """A target made of command lines, in any language.

    ``setup`` fills the directory before the run; ``recover`` does what a restart does, before each
    check. Both may be empty. ``timeout_s`` bounds the check, and the recovery before it.
    """

    def __init__(
        self,
        run: Sequence[str],
        check: Sequence[str],
        *,
        setup: Sequence[str] = (),
        recover: Sequence[str] = (),
        name: str = "",
        timeout_s: float = 60.0,
    ) -> None:
        if not run or not check:
            msg = "a target of commands must have both --run and --check; got one of them. Give both"
            raise UsageError(msg)
        self.name = name or command_name(run)
        self.place = shlex.join([*run, "&&", *check])
        self._commands = {"run": tuple(run), "check": tuple(check), "setup": tuple(setup), "recover": tuple(recover)}
        self._timeout_s = timeout_s
        self.said = ""
        """Standard error of the last check that held."""

    def sources(self) -> list[bytes]:
        """Return the words of all commands, and digests of the files that they name."""
        words = [f"--{name}" if place == 0 else word
                 for name, command in self._commands.items() for place, word in enumerate(("", *command))]  # fmt: skip
        return [os.fsencode(word) for word in words] + [_read(word) for word in words]

    @property
    def words(self) -> list[str]:
        """All words of all commands."""
        return [word for command in self._commands.values() for word in command]

    def move(self, moved: Mapping[str, str]) -> None:
        """Put other words in the place of some, since the files that they name lie elsewhere."""
        self._commands = {
            name: tuple(moved.get(word, word) for word in command) for name, command in self._commands.items()
        }

    def setup(self, directory: Path) -> None:
        """Run the setup command, if there is one. Raises CheckError if it fails."""
        if not self._commands["setup"]:
            return
        done = self._done("setup", directory, Path(os.devnull), timeout_s=None)
        if done.returncode != 0:
            msg = f"the setup command ended with {exit_text(done.returncode)}{_said(_lines_of(done.stderr))}"
            raise CheckError(msg)

    def program(self, directory: Path, marks: Path) -> Program:
        """Return the run command."""
        return self._becomes("run", directory, marks)

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the recover command followed by the check command, which may recover, too."""
        del seen
        check = self._becomes("check", directory, marks)
        if not self._commands["recover"]:
            return check

        def recover_and_check() -> None:
            if self._done("recover", directory, marks, timeout_s=None).returncode == 0:
                check()

        return recover_and_check

    def check_with_file(self, directory: Path, marks: Path, keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Run the recover command, if there is one, and then the check command.

        The signatures of texts are without these ``keys``. Raises CheckError if either command
        cannot be started or gives no valid answer.
        """
        self.said = ""
        try:
            if found := self._restart(directory, marks):
                return found
            done = self._done("check", directory, marks, timeout_s=self._timeout_s)
        except subprocess.TimeoutExpired as expired:
            what = "check" if expired.cmd[0] == "check" else "recovery"
            text = f"the {expired.cmd[0]} command did not end within {self._timeout_s:g} s (--check-timeout sets it)"
            return [Finding(signature=f"liveness:{what}-hangs", text=text, kind="liveness")]
        said = _lines_of(done.stderr)
        found = _answer_of(done.returncode, _lines_of(done.stdout), said, keys)
        self.said = _said(said)
        return found

    def _restart(self, directory: Path, marks: Path) -> list[Finding]:
        """Run the recover command, if there is one; return a finding if it failed."""
        if not self._commands["recover"]:
            return []
        done = self._done("recover", directory, marks, timeout_s=self._timeout_s)
        if done.returncode == 0:
            return []
        return [_recovery_ended(done.returncode, [*_lines_of(done.stdout), *_lines_of(done.stderr)])]

    def argv(self, name: str, directory: Path, marks: Path) -> list[str]:
        """Return one of the commands with its placeholders filled in."""
        return [
            part.replace("{directory}", str(directory)).replace("{marks}", str(marks)) for part in self._commands[name]
        ]

    def _becomes(self, name: str, directory: Path, marks: Path) -> Callable[[], None]:
        argv = self.argv(name, directory, marks)

        def become() -> None:
            os.environ[DIRECTORY_VARIABLE] = str(directory)
            os.execvp(argv[0], argv)

        return become

    def _done(
        self, name: str, directory: Path, marks: Path, *, timeout_s: float | None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of the commands to its end; TimeoutExpired names it as the command."""
        argv = self.argv(name, directory, marks)
        environment = os.environ | {DIRECTORY_VARIABLE: str(directory), MARKS_VARIABLE: str(marks)}
        try:
            return subprocess.run(
                argv,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise subprocess.TimeoutExpired([name], expired.timeout) from expired
        except OSError as error:
            msg = f"the {name} command cannot be started ({error}): give it as it is typed in a shell"
            raise CheckError(msg) from error


def exit_text(code: int) -> str:
    """Return an exit code in words."""
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code}" + (f" ({_NOT_FOUND[code]})" if code in _NOT_FOUND else "")


def _said(lines: Sequence[str]) -> str:
    """Return the last lines of a standard error, as the end of a sentence."""
    shown = readable(" | ".join(lines[-_SHOWN_FRAMES:]))
    shown = shown if len(shown) <= _SAID_CHARACTERS else f"…{shown[1 - _SAID_CHARACTERS :]}"
    return f"; on standard error: {shown}" if shown else ""


def _recovery_ended(code: int, lines: Sequence[str]) -> Finding:
    """Return the finding about a recover command that failed.

    Raises CheckError if the command could not be executed.
    """
    if code in _NOT_FOUND:
        msg = f"the recover command ended with {exit_text(code)}{_said(lines)}"
        raise CheckError(msg)
    last = readable(" | ".join(lines[-_SHOWN_FRAMES:]))[-_SAID_CHARACTERS:] or "nothing"
    return no_restart(f"the recover command ended with {exit_text(code)}; it printed: {last}", exit_text(code))


def _read(file: str) -> bytes:
    """Return a file's digest, or empty bytes if there is no such file."""
    if not Path(file).is_file():
        return b""
    with Path(file).open("rb") as source:
        return hashlib.file_digest(source, "blake2b").digest()


def _lines_of(output: bytes) -> list[str]:
    return [line for line in output.decode(errors="replace").splitlines() if line.strip()]


def _answer_of(exit_code: int, printed: Sequence[str], said: Sequence[str], keys: AbstractSet[str]) -> list[Finding]:
    """Return the findings of a check command, from its exit code and output. Raises CheckError.

    Exit 0 without output is no finding; exit 1 with lines is a finding a line. Shells and Python
    also exit 1 after their own errors, so exit 1 without output is a broken check.
    """
    told = _said(said)
    if exit_code == 0 and printed:
        msg = f"the check command printed {printed[0]!r:.200} and exited 0: exit 1 for findings, or print nothing{told}"
        raise CheckError(msg)
    if exit_code == 1 and not printed:
        msg = f"the check command exited 1 and printed no finding: print each on a line of standard output{told}"
        raise CheckError(msg)
    if exit_code not in {0, 1}:
        msg = f"the check command ended with {exit_text(exit_code)}: exit 0 where all is well, 1 for findings{told}"
        raise CheckError(msg)
    found = [as_finding(line, keys) for line in printed[:FINDINGS_MAX]]
    return [msgspec.structs.replace(each, text=f"{each.text}{told}") for each in found]


def words_of(command: str, option: str) -> list[str]:
    """Return the words of a command, with relative names of files made absolute.

    The command will run in the explored folder, not in the current one. Raises UsageError for a
    command that is empty, cannot be split, or names no program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        msg = f"{option} must be a command line; got {command!r} ({error}). Quote it as for a shell"
        raise UsageError(msg) from error
    if not words:
        msg = f"{option} must be a command; got an empty one. Give one such as {option} './worker --data .'"
        raise UsageError(msg)
    require_program(words[0], option)
    return [str(Path(word).absolute()) if Path(word).is_file() else word for word in words]


def command_name(command: Sequence[str]) -> str:
    """Return the name for reports: an interpreter's script or module, else the program.

    >>> command_name(["python3", "-m", "shop", "--fast"]), command_name(["/usr/bin/redis-server"])
    ('shop', 'redis-server')
    """
    program, *arguments = command
    if Path(program).name.rstrip("0123456789.") in _INTERPRETERS and arguments:
        if arguments[0] == "-m" and arguments[1:]:
            return arguments[1]
        if Path(arguments[0]).is_file():
            return Path(arguments[0]).name
    return Path(program).name


def require_program(word: str, option: str) -> None:
    """Raise UsageError if a word names no program that can be executed."""
    if shutil.which(word) is None:
        has_no_mode = Path(word).is_file()
        advice = f"Make it executable: chmod +x {word}" if has_no_mode else f"Give its path from {Path.cwd()}"
        msg = f"{option} must name a program that can be executed; got {word!r}. {advice}"
        raise UsageError(msg)


class _Functions:
    """Two functions as a target."""

    def __init__(self, run: Callable[..., object], check: Callable[..., Iterable[Finding | str]]) -> None:
        self.name = getattr(run, "__qualname__", "")
        self.run = run
        self.check = check


def print_to_descriptors() -> None:
    """Print to descriptors 1 and 2 of this forked process, not into pytest's capture."""
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - to stay open
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - to stay open


def subject_of(target: object, *, check: Callable[..., Any] | None = None, name: str = "", place: str = "") -> Subject:
    """Return the subject of a class, an object, a module, or a function together with ``check``.

    Raises UsageError for anything else, for a class whose constructor needs arguments, and for a
    target that raises when its name or its methods are read.
    """
    if isinstance(target, Subject):
        return target
    if check is not None:
        if not callable(target):
            msg = f"target must be a function when check= is given; got {type(target).__name__}"
            raise UsageError(msg)
        return Subject(_Functions(target, check), name or getattr(target, "__qualname__", ""))
    own = type(target).__name__
    called = name or str(asked(target, "__qualname__", own) or asked(target, "__name__", own) or own)
    from pytest_chaos.explore.machine.subject import MachineTarget
    from pytest_chaos.explore.machine.workload import is_machine
    from pytest_chaos.explore.server.subject import ServerSubject, serves  # it imports this module

    if is_machine(target):
        return MachineTarget(target, place=place)  # type: ignore[arg-type] # see is_machine
    if inspect.isclass(target):
        try:
            made = target()
        except TypeError as error:
            msg = f"the target {called} must be a class without arguments; got: {error}. Give an object of the class"
            raise UsageError(msg) from error
        except (Exception, SystemExit) as error:
            msg = f"the target {called} must be made without error; got {type(error).__name__}: {error}. Work in run()"
            raise UsageError(msg) from error
        target = made
    return (ServerSubject if serves(target, called) else Subject)(target, called, place=place)


def asked(target: object, attribute: str, called: str) -> Any:
    """Return an attribute of a target, or None. Raises UsageError if reading it raises."""
    try:
        return getattr(target, attribute, None)
    except (Exception, SystemExit) as error:
        msg = (
            f"the {attribute} of the target {called} must be readable; got {type(error).__name__}: {error}. "
            "Set it in the constructor"
        )
        raise UsageError(msg) from error


def load_subject(text: str) -> Subject:
    """Return the target that ``module:Target`` or ``file.py:Target`` names.

    Without a name it is the module's ``Target``, or the module itself. Raises UsageError that says
    what is missing.
    """
    module_name, _, name = text.partition(":")
    for place in ("", str(Path(module_name).resolve().parent) if module_name.endswith(".py") else ""):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        module = _imported(module_name)
    except (Exception, SystemExit) as error:  # SystemExit(0) would look like a pass
        msg = (
            f"{text} must be a target that can be imported; got {type(error).__name__}: {error}. "
            "Give module:Target or path/to/file.py:Target"
        )
        raise UsageError(msg) from error
    own = getattr(module, "__file__", None)  # None for a folder without __init__.py and for a built-in module
    file = str(Path(own).resolve()) if own else module_name
    if not name:
        default = f"{file}:{_DEFAULT_NAME}" if hasattr(module, _DEFAULT_NAME) else file
        return subject_of(getattr(module, _DEFAULT_NAME, module), name=Path(module_name).stem, place=default)
    found: Any = module
    for part in name.split("."):
        found = asked(found, part, text)
        if found is None:
            known = ", ".join(key for key, value in vars(module).items() if _is_target(value)) or "none"
            msg = f"a target must be defined in {module_name}; got {name}. Targets in it: {known}"
            raise UsageError(msg)
    if inspect.isfunction(found) and hasattr(module, "check"):
        msg = f"a target must have a check; got the function {name}. Give {module_name} alone, with its run and check"
        raise UsageError(msg)
    return subject_of(found, name=name, place=f"{file}:{name}")


def _imported(module_name: str) -> ModuleType:
    """Import a module; a file by its plain name if that leads to it.

    Processes that multiprocessing spawns import what they get by that name.
    """
    name = Path(module_name).stem
    if module_name.endswith(".py") and name.isidentifier():
        with contextlib.suppress(ValueError):  # it is loaded and has no spec
            spec = importlib.util.find_spec(name)
            if spec is not None and Path(spec.origin or "").resolve() == Path(module_name).resolve():
                return importlib.import_module(name)
    return child.load(module_name)


def _is_target(value: object) -> bool:
    """Whether a value of a module may be a target: it has a ``check``."""
    try:
        return asked(value, "check", "") is not None
    except UsageError:
        return False


def as_finding(found: object, keys: AbstractSet[str] = frozenset()) -> Finding:
    """Return a finding, or a text as a finding whose signature has no numbers and no ``keys``.

    Raises CheckError for any other type, and for an empty text.
    """
    if isinstance(found, Finding):
        return msgspec.structs.replace(found, signature=readable(found.signature), text=readable(found.text))
    if not isinstance(found, str):
        raise CheckError(_no_finding(found))
    if not found.strip():
        msg = "check() answered with an empty text: return nothing (None or []) where all is well, else what is wrong"
        raise CheckError(msg)
    text = readable(found)
    return Finding(signature=_signature("check", text, keys), text=text[:TEXT_CHARACTERS_MAX])


def _no_finding(found: object) -> str:
    return (
        f"check() must return findings or texts, one for each thing that is wrong; got {found!r:.100} "
        f"({type(found).__name__}). Return [] where all is well, or assert"
    )


def _signature(prefix: str, text: str, keys: AbstractSet[str]) -> str:
    head = without_keys(text.strip().partition("\n")[0], keys)
    return f"{prefix}:{_NUMBER.sub('#', head)[:_SIGNATURE_CHARACTERS]}"


def _listed(found: object) -> list[object]:
    if found is None:
        return []
    if isinstance(found, str | Finding):
        return [found]
    if not isinstance(found, Iterable) or isinstance(found, bytes | Mapping):
        raise CheckError(_no_finding(found))
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
