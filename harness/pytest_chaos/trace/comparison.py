"""Trace comparison: whether two runs make the same steps, but for randomly drawn names. Pure.

``mkstemp``, git and ``sed -i`` draw a name, give it to a file, and rename or remove that soon
after. Two runs of such a program do the same to files of other names. So a step counts as the
expected one when it is equal after a renaming. The renaming grows with the steps and stays one to
one. A name that the first run used itself is not a drawn one; otherwise two threads that changed
places would pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.trace.step import KNOWN_FILES, Action, FileKinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_chaos.trace.step import Step

_CHARACTERS_MIN: Final = 4
"""A shorter name is not drawn: a pid has so many digits, and ``mkstemp`` draws six letters."""
_MAKES_A_NAME: Final = frozenset({Action.CREATE, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK})
_GIVES_A_NAME: Final = _MAKES_A_NAME | {Action.RENAME}


class TraceComparison:
    """Compares the steps of a run, in order, with ``expected``, those of an earlier run.

    Writes to a volatile file may be of another length.
    """

    def __init__(self, expected: Sequence[Step], files: FileKinds = KNOWN_FILES) -> None:
        self._expected = expected
        self._files = files
        self._drawn: dict[str, str] = {}
        self._known: frozenset[str] | None = None

    @property
    def drawn(self) -> Mapping[str, str]:
        """The names that this run has drawn so far, each with that of the earlier run."""
        return self._drawn

    def follows(self, step: Step) -> bool:
        """Whether a step is the expected one of its number, but for drawn names."""
        if not 0 < step.number <= len(self._expected):
            return False
        before = self._expected[step.number - 1]
        if step.has_effect_of(before):
            return True
        if step.action is not before.action:
            return False
        is_volatile = self._files.is_volatile(step.path)  # a pid has four digits in one run, and five in the next
        if not is_volatile and (step.offset, step.length) != (before.offset, before.length):
            return False
        return self._names(step, before)

    def _names(self, step: Step, before: Step) -> bool:
        """Match the names of two steps. Only a step that gives a name may bring a new one."""
        if len(parts := _parts(step)) != len(others := _parts(before)):
            return False
        # A name that is made is a new file, also when an earlier one had the name: a name that is
        # made of the time is the same twice in a fast run, and not in a slow one.
        fresh = self._without(step, before) if step.action in _MAKES_A_NAME else dict(self._drawn)
        for name, other in zip(parts, others, strict=True):
            if fresh.get(name, name) == other:
                continue
            # Only a step that gives a name may draw one; afterwards the pair must stay together.
            if name in fresh or step.action not in _GIVES_A_NAME or not self._may_be_drawn(name, other, fresh):
                return False
            fresh[name] = other
        self._drawn = fresh
        return True

    def _without(self, step: Step, before: Step) -> dict[str, str]:
        """Return the renaming without the two names made here; earlier bearers are gone."""
        gone, gone_before = step.path.rpartition("/")[2], before.path.rpartition("/")[2]
        return {name: other for name, other in self._drawn.items() if name != gone and other != gone_before}

    def _may_be_drawn(self, name: str, other: str, drawn: Mapping[str, str]) -> bool:
        return _look_drawn(name, other) and name not in self._names_before() and other not in drawn.values()

    def _names_before(self) -> frozenset[str]:
        if self._known is None:
            self._known = frozenset(name for step in self._expected for name in _parts(step))
        return self._known


def drawn_names(steps: Sequence[Step], expected: Sequence[Step], files: FileKinds = KNOWN_FILES) -> Mapping[str, str]:
    """Return the names that a run drew, each with the earlier run's, up to the first difference."""
    comparison = TraceComparison([step for step in expected if not step.is_mark], files)
    for step in steps:
        if not step.is_mark and not comparison.follows(step):
            break
    return comparison.drawn


def placeholders(drawn: Iterable[str], steps: Sequence[Step]) -> Mapping[str, str]:
    """Return a placeholder for each drawn name, numbered in the order in which steps use them."""
    unnamed, numbers = frozenset(drawn), dict[str, str]()
    for step in steps if unnamed else ():
        for name in _parts(step):
            if name in unnamed:
                numbers.setdefault(name, f"\0{len(numbers)}")  # no file name has a NUL
    return numbers


def effects_with(numbers: Mapping[str, str], steps: Sequence[Step]) -> list[tuple[Action, str, str, int, int]]:
    """Return the effects of steps, equal for runs that differ in drawn names alone."""

    def without(path: str) -> str:
        return "/".join(numbers.get(name, name) for name in path.split("/")) if numbers else path

    return [
        (action, without(path), without(target), offset, length)
        for action, path, target, offset, length in (step.effect for step in steps)
    ]


def _look_drawn(name: str, other: str) -> bool:
    """Whether two names may be draws: equally long, or each with a number, which may be longer."""
    if min(len(name), len(other)) < _CHARACTERS_MIN:
        return False
    return len(name) == len(other) or all(any(map(str.isdigit, each)) for each in (name, other))


def _parts(step: Step) -> list[str]:
    """Return the names in a step's two paths, with a separator between the paths."""
    return [*step.path.split("/"), "/", *step.target.split("/")]
