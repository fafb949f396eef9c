"""Crashes for the state machines: an exception out of a named crash point,
and a process that does nothing after it.
"""

from __future__ import annotations

import sys

from hypothesis import strategies as st


def rarely(points: tuple[str, ...]) -> st.SearchStrategy[str | None]:
    """Draw a point to crash at, mostly none."""
    return st.sampled_from([*[None] * 2 * len(points), *points])


class CrashError(BaseException):
    """The process dies here."""


class Crashes:
    """An audit hook that raises once at the armed point.
    Hooks stay for ever, so there is one for all machines.
    """

    armed: str | None = None
    error: type[BaseException] = CrashError
    is_dead = False
    installed = False

    @classmethod
    def install(cls) -> None:
        """Install the hook, unless it is."""
        if not cls.installed:
            cls.installed = True
            sys.addaudithook(cls._hook)

    @classmethod
    def _hook(cls, event: str, _: object) -> None:
        if event == cls.armed:
            cls.armed = None
            cls.is_dead = cls.error is CrashError  # who is interrupted lives, and cleans up
            raise cls.error

    @classmethod
    def refuse_the_dead(cls) -> None:
        """Raise where a process that has crashed would go on:
        what cleans up after an exception is dead, too.
        """
        if cls.is_dead:
            raise CrashError
