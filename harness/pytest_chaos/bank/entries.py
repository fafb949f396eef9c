"""An entry of the bank, as its file ``entry.toml`` has it; and a folder of entries.

    title = "A checkpoint that is saved in place is cut off by a kill"
    reports = ["owner/repository#1"]
    kind = "kill mid-write"
    promise = "A saved checkpoint can be loaded, whatever kills the next save."
    engine = "explore"                      # or "scenario"
    expects = ["checkpoint-damaged"]        # signatures that the reported form shows
    subject = "own program"                 # or the library, as in "huey 3.5.4"
    read = "thread"                         # what was read of the reports: thread, excerpt or table
    reproduced = "..."                      # what of the report is shown again
    mended = "..."                          # what the mended form does instead

Optional are ``left_out`` (what of the report is not shown), ``allows`` (signatures that may come
besides), ``requirements`` (pinned: ``huey==3.5.4``), ``mended_requirements`` (other ones for the
mended form), ``commands`` (programs that must be here), and the table ``[options]`` with options of
``chaos explore``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY_FILE: Final = "entry.toml"
BANK_FILE: Final = "bank.toml"
"""In the folder of all entries: the reports that were not reproduced, and why."""
_SHIPPED: Final = Path(__file__).with_name("shipped")
"""Where a wheel has the entries."""
_CHECKOUT: Final = Path(__file__).parents[3] / "scenarios" / "bank"
"""Where a checkout of the repository has them."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_REPORT: Final = re.compile(r"[\w.-]+/[\w.-]+#\d+")
_PINNED: Final = re.compile(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[\w.!+-]+")
_EXPLORE_OPTIONS: Final = frozenset(
    {"faults", "model", "samples", "schedules", "victim", "confirmations", "recoveries", "io-runs", "ignore"}
)
_ENGINE_FILES: Final = {"explore": "program.py", "scenario": "scenario.py"}

Form: TypeAlias = Literal["reported", "mended"]
FORMS: Final[tuple[Form, ...]] = ("reported", "mended")


class BankEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of the bank. ``name`` and ``folder`` are not in its file: they are its folder's."""

    title: str
    reports: tuple[str, ...]
    kind: str
    promise: str
    engine: Literal["explore", "scenario"]
    expects: tuple[str, ...]
    subject: str
    read: Literal["thread", "excerpt", "table"]
    reproduced: str
    mended: str
    left_out: str = ""
    allows: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    mended_requirements: tuple[str, ...] | None = None
    commands: tuple[str, ...] = ()
    options: dict[str, str | int] = {}
    name: str = ""
    folder: Path = Path()

    def requirements_of(self, form: Form) -> tuple[str, ...]:
        """Return the pinned requirements of a form."""
        own = self.mended_requirements if form == "mended" else None
        return self.requirements if own is None else own

    @property
    def file(self) -> Path:
        """The file that its engine runs."""
        return self.folder / _ENGINE_FILES[self.engine]


class NotReproduced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A report that the bank does not show again, and why."""

    report: str
    kind: str
    reason: str


class Bank(msgspec.Struct, frozen=True, kw_only=True):
    """All entries of a folder, by name, and the reports that were not reproduced."""

    folder: Path
    entries: dict[str, BankEntry]
    not_reproduced: tuple[NotReproduced, ...] = ()

    def named(self, names: tuple[str, ...]) -> list[BankEntry]:
        """Return the entries of these names. Raises UsageError for a name that it has not."""
        wanted = [name.replace("-", "_") for name in names]
        if unknown := [name for name in wanted if name not in self.entries]:
            close = difflib.get_close_matches(unknown[0], self.entries, n=1)
            there = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(self.entries)}"
            msg = f"the name of an entry must be one of the bank; got {unknown[0]!r}. {there}"
            raise UsageError(msg)
        return [self.entries[name] for name in dict.fromkeys(wanted)]


def default_folder() -> Path:
    """Return the folder of the entries that came with this installation. Raises UsageError."""
    for folder in (_SHIPPED, _CHECKOUT):
        if folder.is_dir():
            return folder
    msg = "the bank must be in the wheel, or in a checkout of the repository; got neither. Give its folder with --bank"
    raise UsageError(msg)


def read_bank(folder: Path) -> Bank:
    """Read all entries of a folder. Raises UsageError that names everything that is wrong."""
    if not folder.is_dir():
        msg = f"--bank must be a folder of entries; got {folder}. Give the one that holds the entries' folders"
        raise UsageError(msg)
    files = sorted(folder.glob(f"*/{ENTRY_FILE}"))
    if not files:
        msg = f"--bank must be a folder of entries; got {folder}, where no folder has an {ENTRY_FILE}. Give another"
        raise UsageError(msg)
    entries: dict[str, BankEntry] = {}
    wrong: list[str] = []
    for file in files:
        try:
            entry = read_entry(file)
        except UsageError as error:
            wrong.append(str(error))
        else:
            entries[entry.name] = entry
    if wrong:
        raise UsageError("; ".join(wrong))
    return Bank(folder=folder, entries=entries, not_reproduced=_not_reproduced(folder / BANK_FILE))


def read_entry(file: Path) -> BankEntry:
    """Read one entry. Raises UsageError that says which field is wrong."""
    found: BankEntry = _decoded(file, BankEntry)
    entry = msgspec.structs.replace(found, name=file.parent.name, folder=file.parent.absolute())
    if problems := list(_problems(entry)):
        raise UsageError("; ".join(f"{file}: {problem}" for problem in problems))
    return entry


def _problems(entry: BankEntry) -> Iterator[str]:
    if not _NAME.fullmatch(entry.name):
        yield f"the folder must be named in small letters, digits and _; got {entry.name!r}. Rename it"
    texts = ("title", "kind", "promise", "subject", "reproduced", "mended")
    yield from (f"{name} must say something; got nothing. Write it" for name in texts if not getattr(entry, name))
    for report in entry.reports or ("",):
        if not _REPORT.fullmatch(report):
            yield f"reports must be like owner/repository#1; got {report!r}. Write the reference of the report"
    for signature in entry.expects or ("",):
        if not signature.strip():
            yield "expects must be signatures of findings; got none. Name what the reported form shows"
    for requirement in (*entry.requirements, *(entry.mended_requirements or ())):
        if not _PINNED.fullmatch(requirement):
            yield f"requirements must be pinned, like huey==3.5.4; got {requirement!r}. Give one version"
    yield from _engine_problems(entry)


def _engine_problems(entry: BankEntry) -> Iterator[str]:
    if entry.options and entry.engine != "explore":
        yield "options must come with the engine explore; got the engine scenario. Leave them out"
    for option in sorted(entry.options.keys() - _EXPLORE_OPTIONS):
        yield f"options must be some of {', '.join(sorted(_EXPLORE_OPTIONS))}; got {option!r}. Leave it out"
    if not entry.file.is_file():
        yield f"the engine {entry.engine} must have {entry.file.name}; got no such file. Add it"


def _not_reproduced(file: Path) -> tuple[NotReproduced, ...]:
    return _decoded(file, _BankFile).not_reproduced if file.is_file() else ()


class _BankFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file ``bank.toml``."""

    not_reproduced: tuple[NotReproduced, ...] = ()


def _decoded(file: Path, kind: Any) -> Any:
    try:
        found = tomllib.loads(file.read_text())
        if kind is BankEntry and (alien := found.keys() & {"name", "folder"}):
            msg = f"{file} must leave out {min(alien)}, which its folder says; got one. Remove it"
            raise UsageError(msg)
        return msgspec.convert(found, type=kind)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        text = f"{error}".replace("Object contains", "it contains").replace("Object missing", "it misses the")
        msg = f"{file} must be TOML with the fields of the bank; got: {text}. docs/bank.md lists them"
        raise UsageError(msg) from error
