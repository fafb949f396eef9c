"""Where the descriptors of a program's first thread lead, kept in mind where every call is heard of that changes it.

To ask the kernel of each write where it goes costs as much as all the rest of a look at it. A descriptor leads to one
file until it is closed, or another is put in its place (dup2, dup3), or an exec closes it; a filter that traps these
makes the question unnecessary. It pays for a program that writes more often than it closes.

Only the first thread's are kept: its number is not given away while the program runs, so no later process can be taken
for it. A close by any thread counts, whosever files it closes: at worst it is asked once more.
"""

from __future__ import annotations

from typing import Final

ALL: Final = -1
"""Stands for all descriptors."""


class Descriptors:
    """What the descriptors of one thread lead to, by a number that is not 0. ``is_on``: all closes are heard of."""

    def __init__(self, thread: int, *, is_on: bool) -> None:
        self._thread = thread
        self._is_on = is_on
        self._known: dict[int, int] = {}
        self._changing: dict[int, int] = {}
        self.closes = 0

    def leads_to(self, thread: int, descriptor: int) -> int:
        """Return where a descriptor leads, 0 where that is not known."""
        return self._known.get(descriptor, 0) if thread == self._thread else 0

    def learn(self, thread: int, descriptor: int, target: int) -> None:
        """Keep in mind where a descriptor leads, unless another thread is just closing it."""
        if self._is_on and thread == self._thread:
            changing = self._changing.values()
            if descriptor not in changing and ALL not in changing:
                self._known[descriptor] = target

    def change(self, thread: int, descriptor: int) -> None:
        """Forget a descriptor, or all: this thread is about to have it lead elsewhere."""
        self.closes += 1
        if descriptor == ALL:
            self._known.clear()
        else:
            self._known.pop(descriptor, None)
        self._changing[thread] = descriptor

    def has_changed(self, thread: int) -> None:
        """Note that what a thread was about to do is done: it is making its next call."""
        if self._changing:
            self._changing.pop(thread, None)
