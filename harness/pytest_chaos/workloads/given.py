"""The workload that a test asks its run for: sizes, and values drawn from Hypothesis strategies.

A size is what the test says, and a value is drawn from the seed. When a violation is shrunk, both
are replaced by smaller ones: the test asks again, and gets those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Json

WORKLOAD: Final = "workload"
"""The note of a record with what its test has asked for: ``sizes`` and ``drawn``, by name."""
_EXAMPLES_MAX: Final = 100
_NTH: Final = 15
"""The example that is drawn: Hypothesis begins with the smallest ones."""


class Given:
    """The sizes and values of one run. ``stream`` makes randomness for a purpose."""

    def __init__(self, stream: Callable[..., Stream]) -> None:
        self._stream = stream
        self._drawn_before: Mapping[str, Json] = {}
        self._sizes_before: Mapping[str, int] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        """By name, the number that the test got, and its least."""
        self.drawn: dict[str, Json] = {}
        self.strategies: dict[str, Any] = {}

    @property
    def notes(self) -> dict[str, Json]:
        """What the record of the run says of its workload, if the test has asked."""
        if not self.sizes and not self.drawn:
            return {}
        return {WORKLOAD: {"sizes": {name: list(each) for name, each in self.sizes.items()}, "drawn": self.drawn}}

    def fix(self, sizes: Mapping[str, int], drawn: Mapping[str, Json]) -> None:
        """Give these from now on, in place of what the test asks for."""
        self._sizes_before, self._drawn_before = sizes, drawn

    def size(self, name: str, number: int, least: int) -> int:
        """Return a size. Raises UsageError unless ``0 <= least <= number``, whole numbers."""
        is_whole = all(isinstance(each, int) and not isinstance(each, bool) for each in (number, least))
        if not is_whole or not 0 <= least <= number:
            msg = (
                f"the size {name!r} must be a whole number, with 0 <= least <= number; got {number!r:.50}, "
                f"least={least!r:.50}. Give such numbers"
            )
            raise UsageError(msg)
        got = max(least, min(number, self._sizes_before.get(name, number)))
        self.sizes[name] = got, least
        return got

    def draw(self, strategy: Any, name: str) -> Any:
        """Return a value. Raises UsageError for no strategy, and for a value that is not JSON."""
        if name in self.strategies:
            msg = f"a value must have a name of its own; got {name!r} twice. Give draw(..., name=...)"
            raise UsageError(msg)
        self.strategies[name] = strategy
        value = self._drawn_before[name] if name in self._drawn_before else drawn(strategy, self._stream("draw", name))
        try:
            self.drawn[name] = msgspec.json.decode(msgspec.json.encode(value))
        except (TypeError, ValueError) as error:
            got = f"{value!r:.200} ({error})"
            msg = f"the value {name!r} must be one that JSON can hold; got {got}. Draw lists, texts and numbers"
            raise UsageError(msg) from None
        return self.drawn[name]


def drawn(strategy: Any, randomness: Stream) -> Any:
    """Return a value of a Hypothesis strategy, always the same for the same randomness."""
    count = 0
    last: Any = None

    def is_it(value: Any) -> bool:
        nonlocal count, last
        count, last = count + 1, value
        return count >= _NTH

    _find(strategy, is_it, randomness, shrink=False)
    if not count:
        msg = f"the strategy must have a value; got {strategy!r:.200}, which gave none. Filter less"
        raise UsageError(msg)
    return last


def smallest(strategy: Any, is_wrong: Callable[[Any], bool], known: Any, randomness: Stream) -> Any:
    """Return the simplest value that is wrong, as Hypothesis shrinks it; ``known`` is wrong.

    ``is_wrong`` is asked once for each value.
    """
    answers: dict[bytes, bool] = {msgspec.json.encode(known): True}
    best = known

    def is_wrong_once(value: Any) -> bool:
        nonlocal best
        try:
            key = msgspec.json.encode(value)
        except (TypeError, ValueError):
            return False
        if key not in answers:
            answers[key] = is_wrong(value)
        if answers[key]:
            best = value
        return answers[key]

    _find(strategy, is_wrong_once, randomness, shrink=True)
    return best


def _find(strategy: Any, condition: Callable[[Any], bool], randomness: Stream, *, shrink: bool) -> None:
    try:
        from hypothesis import HealthCheck, Phase, errors, find, settings  # only for those who draw
    except ImportError:
        msg = "chaos.draw must have Hypothesis; got no such package. Install it: pip install hypothesis"
        raise UsageError(msg) from None
    phases = [Phase.generate, *[Phase.shrink] * shrink]
    how = settings(
        max_examples=_EXAMPLES_MAX, database=None, phases=phases, suppress_health_check=list(HealthCheck), deadline=None
    )
    try:
        find(strategy, condition, settings=how, random=randomness)
    except errors.NoSuchExample:
        return
    except errors.InvalidArgument as error:
        msg = f"chaos.draw must get a Hypothesis strategy; got {strategy!r:.100} ({error}). Give st.lists(...), say"
        raise UsageError(msg) from None
