"""Whether two runs make the same steps when the program draws the names of its temporary files.

``mkstemp``, ``tempfile``, git and ``sed -i`` draw a name, give it to a file, and rename or remove
that soon after. Two runs of such a program do the same to files of other names. So a step is taken
for the expected one when it is so after a renaming, which grows with the steps and must stay one to
one; a name that the first run has used itself is no drawn one, or two threads that changed places
would pass for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.trace.step import Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_chaos.trace.step import Step

_CHARACTERS_MIN: Final = 4
"""A shorter name was not drawn: a process number has so many digits, and ``mkstemp`` draws six letters."""
_MAKES_A_NAME: Final = frozenset({Action.CREATE, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK})
_GIVES_A_NAME: Final = _MAKES_A_NAME | {Action.RENAME}


class Likeness:
    """Compares the steps of a run, in their order, with the steps ``expected``, durable ones of an earlier run."""

    def __init__(self, expected: Sequence[Step]) -> None:
        self._expected = expected
        self._drawn: dict[str, str] = {}
        self._known: frozenset[str] | None = None

    @property
    def drawn(self) -> Mapping[str, str]:
        """The names that this run has drawn so far, each with the one that the earlier run drew in its place."""
        return self._drawn

    def follows(self, step: Step) -> bool:
        """Tell whether a step is the expected one of its number, but for drawn names."""
        if not 0 < step.number <= len(self._expected):
            return False
        before = self._expected[step.number - 1]
        if step.does_as(before):
            return True
        if (step.action, step.offset, step.length) != (before.action, before.offset, before.length):
            return False
        return self._names(step, before)

    def _names(self, step: Step, before: Step) -> bool:
        """Take in the names that a step gives. Only a step that gives one may bring a new one."""
        if len(parts := _parts(step)) != len(others := _parts(before)):
            return False
        fresh = self._without(step, before) if step.action in _MAKES_A_NAME else dict(self._drawn)
        for name, other in zip(parts, others, strict=True):
            if fresh.get(name, name) == other:
                continue
            if name in fresh or step.action not in _GIVES_A_NAME or not self._may_be_drawn(name, other, fresh):
                return False
            fresh[name] = other
        self._drawn = fresh
        return True

    def _without(self, step: Step, before: Step) -> dict[str, str]:
        """Return the renaming without the two names that are made here: whatever had one of them before is gone."""
        gone, gone_before = step.path.rpartition("/")[2], before.path.rpartition("/")[2]
        return {name: other for name, other in self._drawn.items() if name != gone and other != gone_before}

    def _may_be_drawn(self, name: str, other: str, drawn: Mapping[str, str]) -> bool:
        return _look_drawn(name, other) and name not in self._names_before() and other not in drawn.values()

    def _names_before(self) -> frozenset[str]:
        if self._known is None:
            self._known = frozenset(name for step in self._expected for name in _parts(step))
        return self._known


def drawn_names(steps: Sequence[Step], expected: Sequence[Step]) -> Mapping[str, str]:
    """Return the names that a run has drawn, with those of the earlier run, up to where the two part."""
    likeness = Likeness([step for step in expected if not step.is_mark])
    for step in steps:
        if not step.is_mark and not likeness.follows(step):
            break
    return likeness.drawn


def numbered(drawn: Iterable[str], steps: Sequence[Step]) -> Mapping[str, str]:
    """Return drawn names in the order in which steps use them, each with what may stand for it in any run like this."""
    unnamed, numbers = frozenset(drawn), dict[str, str]()
    for step in steps if unnamed else ():
        for name in _parts(step):
            if name in unnamed:
                numbers.setdefault(name, f"\0{len(numbers)}")  # which is no name that a file can have
    return numbers


def traces_but(numbers: Mapping[str, str], steps: Sequence[Step]) -> list[tuple[Action, str, str, int, int]]:
    """Return the traces of steps with the numbers of drawn names in place of these.

    They are equal for two runs that differ in these names alone, and tell still which is which.
    """

    def without(path: str) -> str:
        return "/".join(numbers.get(name, name) for name in path.split("/")) if numbers else path

    return [
        (action, without(path), without(target), offset, length)
        for action, path, target, offset, length in (step.trace for step in steps)
    ]


def _look_drawn(name: str, other: str) -> bool:
    """Tell whether two names may be two draws: of as many letters, or with a number, which has not always as many."""
    if min(len(name), len(other)) < _CHARACTERS_MIN:
        return False
    return len(name) == len(other) or all(any(map(str.isdigit, each)) for each in (name, other))


def _parts(step: Step) -> list[str]:
    """Return the names in a step's paths, with what stands between the two paths."""
    return [*step.path.split("/"), "/", *step.target.split("/")]
