"""Reads what a failure page is made of: an evidence pack, or the story of an exploration.

Both may be damaged, cut in half, or of another version. What can be read is returned, and each
thing that cannot is a sentence in ``problems``: a page says so, and never guesses.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from pytest_chaos.errors import EvidenceError, ResultsError
from pytest_chaos.evidence import manifest
from pytest_chaos.evidence.open import open_pack
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model.story import (
    CURVE_NAME,
    FILE_NAME as STORY,
    FORMAT,
    SHRUNK_NAME,
    STEPS_NAME,
    Curve,
    RunSteps,
    Shrunk,
    Story,
)

if TYPE_CHECKING:
    from pytest_chaos.evidence.manifest import Manifest
    from pytest_chaos.evidence.open import Pack

STORY_BYTES_MAX: Final = 64 << 20
STORIES_MAX: Final = 5
_FAILURE: Final = "failure.txt"
_Kept = TypeVar("_Kept", Story, RunSteps, Curve, Shrunk)
_FILES_OF_A_PACK: Final = (manifest.FILE_NAME, "evidence.sqlite", _FAILURE)
_TEXT_BYTES_MAX: Final = 64 << 10


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A story, and the folder that its paths are relative to."""

    story: Story
    root: Path
    name: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a page is made of. ``pack`` is None where it cannot be read, or for a story alone.

    ``name`` names the page. ``failure`` is the text of the failure as far as it can be read.
    """

    path: Path
    name: str
    pack: Any = None
    steps: RunSteps | None = None
    """What the steps of a run say, if they were watched."""
    curve: Curve | None = None
    shrunk: Shrunk | None = None
    stories: tuple[Told, ...] = ()
    failure: str = ""
    problems: tuple[str, ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Whether nothing but problems could be read."""
        return self.pack is None and not self.stories


def read(path: Path) -> Source:
    """Read a pack, or the folder of an exploration. Raises ResultsError for any other path."""
    if (path / STORY).is_file():
        return _exploration(path)
    if is_pack(path):
        return _pack(path)
    if not path.is_dir():
        got = "nothing there" if not path.exists() else "a file"
    else:
        got = f"neither {manifest.FILE_NAME} nor {STORY} in it"
    msg = (
        f"{path} must be an evidence pack or the states of an exploration; got {got}. Give the folder that was printed"
    )
    raise ResultsError(msg)


def is_failure(path: Path) -> bool:
    """Whether a folder has a failure page of its own: a pack, or the states of an exploration."""
    return (path / STORY).is_file() or is_pack(path)


def is_pack(path: Path) -> bool:
    """Whether a folder is, or was, an evidence pack. A path that no file can have is none."""
    try:
        return path.is_dir() and any((path / name).is_file() for name in _FILES_OF_A_PACK)
    except OSError:  # a name that is too long, say: records may hold any text
        return False


def _exploration(path: Path) -> Source:
    problems: list[str] = []
    told = _story(path, STORY, problems)
    stories = () if told is None else (Told(story=told, root=path),)
    return Source(path=path, name=path.name, stories=stories, problems=tuple(problems))


def _pack(path: Path) -> Source:
    problems: list[str] = []
    pack: Pack | None = None
    stories: list[Told] = []
    steps: RunSteps | None = None
    curve: Curve | None = None
    shrunk: Shrunk | None = None
    try:
        pack = open_pack(path, whole=True)
        problems += _changed(path, pack.manifest)
        for name in _stories_in(pack.manifest):
            told = _story(path, name, problems)
            if told is not None:
                stories.append(Told(story=told, root=path / Path(name).parent, name=Path(name).parent.name))
        listed = {entry.path for entry in pack.manifest.files}
        if (name := f"attachments/{STEPS_NAME}") in listed:
            steps = _read(path, name, RunSteps, problems, "the durable steps of the run")
        if (name := f"attachments/{CURVE_NAME}") in listed:
            curve = _read(path, name, Curve, problems, "a curve of P(violation)")
        if (name := f"attachments/{SHRUNK_NAME}") in listed:
            shrunk = _read(path, name, Shrunk, problems, "a shrunk plan")
    except EvidenceError as error:
        problems.append(str(error))
    failure = pack.failure if pack is not None else _failure(path, problems)
    return Source(
        path=path,
        name=path.name,
        pack=pack,
        steps=steps,
        curve=curve,
        shrunk=shrunk,
        stories=tuple(stories),
        failure=failure,
        problems=tuple(problems),
    )


def _stories_in(listed: Manifest) -> list[str]:
    names = [entry.path for entry in listed.files if entry.path.endswith(f"/{STORY}") and manifest.inside(entry.path)]
    return sorted(name for name in names if name.startswith("attachments/"))[:STORIES_MAX]


def _story(root: Path, name: str, problems: list[str]) -> Story | None:
    return _read(root, name, Story, problems, "the story of an exploration")


def _read(root: Path, name: str, kind: type[_Kept], problems: list[str], what: str) -> _Kept | None:
    try:
        with manifest.opened(root, name) as stream:
            content = stream.read(STORY_BYTES_MAX)
        story = msgspec.json.decode(content, type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(clean(f"{name} cannot be read as {what}: {error}"))
        return None
    if story.format > FORMAT:
        problems.append(f"{name} is of format {story.format}, newer than {FORMAT}: only what is known is shown")
    return story


def _changed(path: Path, listed: Manifest) -> list[str]:
    """Return the files of a pack that are missing or of another size; hashes are not computed."""
    found = []
    for entry in listed.files:
        if not manifest.inside(entry.path):
            found.append(f"{entry.path!r} is not a path inside a pack: the manifest was edited")
            continue
        try:
            status = (path / entry.path).lstat()
        except OSError:
            found.append(f"{entry.path!r} is missing from the pack")
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size_bytes:
            found.append(f"{entry.path!r} is not as it was written")
    return found


def _failure(path: Path, problems: list[str]) -> str:
    try:
        with manifest.opened(path, _FAILURE) as stream:
            return clean(stream.read(_TEXT_BYTES_MAX).decode(errors="replace"))
    except OSError as error:
        problems.append(f"{_FAILURE} cannot be read: {error.strerror or error}")
        return ""
