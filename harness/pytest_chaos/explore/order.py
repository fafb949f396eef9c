"""The order in which states are judged where each takes long, and an estimate of what was not met.

States are alike if the same kinds of updates are missing: the same calls, at files whose names
differ in digits alone. A bug that shows in one state of a kind is likely to show in the others. So
the first state of each kind is judged first, then a few more of each, then the rest (Pathfinder:
LeBlanc et al., OOPSLA 2025, has representatives of update behaviours).

A start that was watched tells what it reads. States that differ from an earlier one only in what
was not read come last, and so do those that differ only so from the state that was watched: the
start and the check are likely to find there what they found before. Likely, not surely: a start on
another state may read other files. So every state has its turn: the order decides when something
is found, not whether.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.simulate.content import PAGE_BYTES
from pytest_chaos.explore.simulate.disk import FILE
from pytest_chaos.trace.calls.reads import END, WHOLE, WatchedReads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.state import Item, State
    from pytest_chaos.trace.calls.reads import FileRead

SLOW_CHECK_S: Final = 0.02
"""States are put in order if the check of the clean run takes longer than this."""
_FEW: Final = 8
"""The states of a kind that come before the rest."""
_FIRST, _SOON, _REST, _LAST = range(4)


class Order:
    """States in the order in which they are to be judged; a new one for each series of states.

    ``reads`` says what a start reads, if that is known, and ``looked`` are the states on which it
    was watched: their items, and their number of marks.
    """

    def __init__(
        self, reads: WatchedReads | None = None, looked: Sequence[tuple[Mapping[str, Item], int]] = ()
    ) -> None:
        self._view = View(reads) if reads is not None else None
        self._turns = bytearray()
        self._met: set[bytes] = set()
        self._kinds: Counter[object] = Counter()
        self._views = {self._view.of(items, marks) for items, marks in looked} if self._view is not None else set()
        self.unread = 0
        """The states met so far that differ from an earlier one only in what is not read."""
        self.unread_yielded = 0

    def of(
        self, states: Callable[[], Iterable[State]], *, is_over: Callable[[], bool] = lambda: False
    ) -> Iterator[State]:
        """Yield each of the states once: the first of each kind, a few of each, the rest, the last.

        ``states`` is called for each of these passes, and has to give the same ones: they are built
        again, not kept. A state that equals an earlier one comes with the rest. Once the time
        ``is_over``, the next state is yielded at once, for the caller to notice.
        """
        for turn in range(_LAST + 1):
            if turn == _LAST and not self.unread:
                return
            for place, state in enumerate(states()):
                if place == len(self._turns):
                    self._turns.append(self._turn(state))
                if self._turns[place] == turn or is_over():
                    self.unread_yielded += self._turns[place] == _LAST
                    yield state

    def _turn(self, state: State) -> int:
        if state.digest in self._met:
            return _REST
        self._met.add(state.digest)
        if self._view is not None:
            view = self._view.of(state.items, state.marks)
            if view in self._views:
                self.unread += 1
                return _LAST
            self._views.add(view)
        self._kinds[state.kind] += 1
        count = self._kinds[state.kind]
        return _FIRST if count == 1 else _SOON if count <= _FEW else _REST


class View:
    """What a start sees of a state: a digest of all that it reads.

    Of files that it was not seen to meet, all counts, and of folders and links, too.
    """

    def __init__(self, reads: WatchedReads) -> None:
        self._files = reads.files
        self._parts: dict[tuple[str, tuple[int, int]], bytes] = {}

    def of(self, items: Mapping[str, Item], marks: int) -> bytes:
        """Return the digest; marks count, for the check gets them."""
        seen = [self._seen(path, item, self._files.get(path, WHOLE)) for path, item in items.items()]
        known = repr((marks, sorted(filter(None, seen))))
        return blake2b(known.encode(errors="surrogatepass"), digest_size=16).digest()

    def _seen(self, path: str, item: Item, read: FileRead) -> tuple[object, ...]:
        content = item.content
        if item.kind != FILE or content is None or read == WHOLE:
            return (path, item.kind, item.mode, item.target, content.digest if content is not None else None)
        if not (read.is_listed or read.is_opened or read.parts):
            return ()
        is_opened = read.is_opened or bool(read.parts)
        size = content.size if read.is_sized else -1
        return (path, item.kind, item.mode if is_opened else -1, size, self._read(path, content, read.parts))

    def _read(self, path: str, content: Content, parts: tuple[tuple[int, int], ...]) -> object:
        if not parts or parts == ((0, END),):
            return content.digest if parts else b""
        key = (path, content.digest)
        if key not in self._parts:
            digest = blake2b(digest_size=16)
            for start, end in parts:
                last = content.size if end == END else min(end, content.size)
                digest.update(b"%d-%d:" % (start, last))
                for number in range(start // PAGE_BYTES, -(-last // PAGE_BYTES)):
                    at = number * PAGE_BYTES
                    digest.update(content.page(number)[max(0, start - at) : last - at])
            self._parts[key] = digest.digest()
        return self._parts[key]
