"""Targets: classes, functions and commands behind one face,
and what is said of those that are none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import UsageError
from pytest_chaos.explore.target import (
    FINDINGS_MAX,
    CheckError,
    CommandSubject,
    Subject,
    Target,
    as_finding,
    load_subject,
    subject_of,
)
from pytest_chaos.model.values import Finding, Mark, MarkKind

from tests.harness.explore import explored

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPLORED = Path(explored.__file__)
ACK = Mark(kind=MarkKind.ACK, operation="save", key=1)


def test_the_same_words_in_two_folders_are_two_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the file of this folder, whatever was loaded from another."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "same-words.py").write_text(f"name = {name!r}\nrun = check = print\n")
        monkeypatch.chdir(folder)
        assert load_subject("same-words.py").name == name


@pytest.mark.parametrize(
    "subject",
    [
        subject_of(explored.Careless),
        subject_of(explored.Careless()),
        subject_of(explored.run, check=explored.check),
        subject_of(explored),
        load_subject("tests.harness.explore.explored:Careless"),
        load_subject(f"{EXPLORED}:Careless"),
        load_subject(str(EXPLORED)),
    ],
    ids=["class", "object", "functions", "module", "module:name", "file:name", "file"],
)
def test_every_form_of_a_target_has_the_same_face(tmp_path: Path, subject: Subject) -> None:
    """However it is given, the run leaves a file, and the check judges it."""
    program = subject.program(tmp_path, tmp_path / "marks")

    assert subject.name
    assert callable(program)
    assert [finding.signature for finding in subject.examine(tmp_path, [ACK])] == ["check:lost #, and # is there"]
    assert isinstance(explored.Careless(), Target)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no_such_module:Target", "must be a target that can be imported; got ModuleNotFoundError"),
        ("no/such/file.py:Target", "there is no Python file"),
        ("tests.harness.explore.explored:Missing", "got Missing. Targets in it: "),
        ("sys:maxsize", "check(directory, marks); got no run"),
        ("json:loads", "loads must have run(directory, marks)"),
    ],
)
def test_what_is_no_target_is_told(text: str, said: str) -> None:
    """A name that leads nowhere is a mistake with a sentence that says what is there."""
    with pytest.raises(UsageError) as caught:
        load_subject(text)

    assert said in str(caught.value)


def test_a_class_that_needs_arguments_is_refused() -> None:
    """An object is needed then, and the sentence says so."""

    class Needy(explored.Careful):
        def __init__(self, what: str) -> None:
            self.what = what

    with pytest.raises(UsageError, match="Give an object of the class"):
        subject_of(Needy)


def test_a_text_is_a_finding_whose_signature_has_no_numbers() -> None:
    """Findings that differ in nothing but their numbers are one finding."""
    first, second = as_finding("row 12 at 0x7f00 is gone\nmore"), as_finding("row 7 at 0x55aa is gone")

    assert first.signature == second.signature == "check:row # at # is gone"
    assert first.text.endswith("more")
    assert as_finding(Finding(signature="own", text="x")).signature == "own"
    with pytest.raises(CheckError, match=r"got 42 \(int\)"):
        as_finding(42)


@pytest.mark.parametrize("code", [0, 5])
def test_a_file_that_exits_when_it_is_imported_is_a_mistake(tmp_path: Path, code: int) -> None:
    """A script without a guard ends the process that loads it:
    with its exit code 0 that would look like a pass.
    """
    (tmp_path / "script.py").write_text(f"import sys\nsys.exit({code})\n")

    with pytest.raises(UsageError, match=f"must be a target that can be imported; got SystemExit: {code}"):
        load_subject(str(tmp_path / "script.py"))


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("no configuration")], ids=["exits", "raises"])
def test_a_class_that_cannot_be_made_is_a_mistake(error: BaseException) -> None:
    """Whatever its constructor does instead, nothing was explored."""

    class Unmade(explored.Careful):
        def __init__(self) -> None:
            raise error

    with pytest.raises(UsageError, match=f"Unmade must be made without error; got {type(error).__name__}"):
        subject_of(Unmade)


@pytest.mark.parametrize("attribute", ["name", "run", "check", "setup", "recover"])
@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("no configuration")], ids=["exits", "raises"])
def test_an_attribute_that_cannot_be_asked_for_is_a_mistake(attribute: str, error: BaseException) -> None:
    """A property may raise: it is told which one, with what it says, before anything runs."""

    def ask(self: object) -> str:
        del self
        raise error

    target = type("Unasked", (explored.Careful,), {attribute: property(ask)})
    said = f"the {attribute} of the target Unasked must be readable; got {type(error).__name__}.*{error}"
    with pytest.raises(UsageError, match=said):
        subject_of(target)


def test_an_object_that_answers_no_question_is_a_mistake() -> None:
    """Nor does an object that looks up everything, and does not say AttributeError for what it has
    not.
    """

    class Lookup:
        def __getattr__(self, name: str) -> object:
            return {"run": print, "check": print}[name]

    with pytest.raises(UsageError, match="of the target Lookup must be readable; got KeyError"):
        subject_of(Lookup())


@pytest.mark.parametrize("answer", [False, 5])
def test_a_check_that_answers_otherwise_is_told_what_it_may(tmp_path: Path, answer: object) -> None:
    """A truth value is no list of findings: whether True is good or bad, nobody could tell."""

    class Answers(explored.Careful):
        def check(self, directory: Path, marks: object) -> Any:
            del directory, marks
            return answer

    with pytest.raises(CheckError, match=rf"must return findings or texts.*got {answer} \({type(answer).__name__}\)"):
        subject_of(Answers).examine(tmp_path, [])


@pytest.mark.parametrize("name", ["run", "check", "setup", "recover"])
def test_a_coroutine_is_refused(name: str) -> None:
    """Nobody would await it: it would do nothing, and be explored doing so."""

    async def method(self: object, *_: object) -> None:
        del self

    with pytest.raises(UsageError, match=f"{name}.. must be a plain function; got an async one.*asyncio.run"):
        subject_of(type("Later", (explored.Careful,), {name: method}))


@pytest.mark.parametrize("name", ["run", "setup", "recover"])
def test_a_generator_is_refused(name: str) -> None:
    """Nobody would ask it for anything, so none of it would run; a check may be one."""

    def method(self: object, *_: object) -> Iterator[None]:
        yield

    with pytest.raises(UsageError, match=f"{name}.. must be a plain function; got one with yield"):
        subject_of(type("Later", (explored.Careful,), {name: method}))
    subject_of(type("Finds", (explored.Careful,), {"check": method}))


def test_a_check_that_never_stops_finding_is_cut(tmp_path: Path) -> None:
    """A generator without end gives so many findings, and the exploration goes on."""

    class Endless(explored.Careful):
        def check(self, directory: Path, marks: object) -> Iterator[str]:
            while directory and not marks:
                yield "again"

    assert len(subject_of(Endless).examine(tmp_path, [])) == FINDINGS_MAX


def test_a_failed_assertion_is_a_finding_with_its_place(tmp_path: Path) -> None:
    """An assertion without a message is told by where it stands."""

    class Bare(explored.Careful):
        def check(self, directory: Path, marks: object) -> list[str]:
            if directory.exists() and not marks:
                raise AssertionError
            return []

    (finding,) = subject_of(Bare).examine(tmp_path, [])
    assert finding.signature.startswith("assertion:an assertion failed at test_target.py")


def _commands(check: str) -> CommandSubject:
    program = [sys.executable, str(EXPLORED)]
    return CommandSubject([*program, "run"], [*program, check], name="commands")


def test_a_check_command_answers_by_its_exit(tmp_path: Path) -> None:
    """Exit 0 is nothing found, exit 1 one finding a line,
    and anything else an error of the check.
    """
    marks = tmp_path / "marks"
    marks.write_text("")
    assert _commands("check").check_with_file(tmp_path, marks) == []

    marks.write_text('{"kind": "ack", "operation": "put", "key": 1}\n')
    assert [finding.text for finding in _commands("check").check_with_file(tmp_path, marks)] == ["lost 1"]
    for code, said in (("1", "exited 1 and printed no finding"), ("9", "ended with exit code 9")):
        with pytest.raises(CheckError, match=said):
            _commands(code).check_with_file(tmp_path, marks)


def test_commands_come_in_pairs() -> None:
    """A run without a check judges nothing."""
    with pytest.raises(UsageError, match="must have both --run and --check"):
        CommandSubject(["true"], [])
