"""Signatures that differ in numbers and keys alone have one cause. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pytest_chaos.model.values import MarkKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Set as AbstractSet

    from pytest_chaos.model.values import Mark

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_VALUE: Final = re.compile(r"[+-]?\w*\d\w*(?:[.:]\w*\d\w*)*|#|\b[A-Za-z]\b")
_CHECK: Final = "check:"
IN_WORDS: Final = (_CHECK, "assertion:")
"""What the signature of a check's own words begins with; any other is a name that was chosen."""
_NUMBER: Final = re.compile(r"\d+")
_WORD: Final = re.compile(r"\w+")
_KEY_WORDS_MAX: Final = 8
"""A key of more words than this is not looked for in a text."""
_TEXT_CHARACTERS_MAX: Final = 1000
"""Keys are looked for in the beginning of a text, of which a signature has less."""
_SPACE: Final = re.compile(r"\s+(?=[,.;:)\]}]|$)|\s+")


def alike(signature: str) -> str:
    """Return a signature without its numbers, quoted texts and one-letter keys.

    >>> alike("check:job a was reported # times") == alike("check:job b was reported # times")
    True
    >>> alike("check:total is , done sum to #") == alike("check:total is #, done sum to #")
    True
    >>> alike("check:order # is lost") == alike("check:order # was sent twice")
    False
    """
    bare = _VALUE.sub("", _QUOTED.sub("", signature))
    return _SPACE.sub(lambda match: "" if match.end() == len(bare) or bare[match.end()] in ",.;:)]}" else " ", bare)


def keys_of(marks: Iterable[Mark]) -> frozenset[str]:
    """Return the keys of operations that are words, as :func:`without_keys` looks for them.

    A number or a single letter is none: :func:`alike` leaves those out in any text.
    """
    return frozenset(
        key
        for mark in marks
        if isinstance(mark.key, str) and mark.kind is not MarkKind.NOTE and len(key := _bare(mark.key)) > 1
    )


def _bare(key: str) -> str:
    words = list(_WORD.finditer(key))
    return key[words[0].start() : words[-1].end()] if 0 < len(words) <= _KEY_WORDS_MAX else ""


def without_keys(text: str, keys: AbstractSet[str]) -> str:
    """Return the beginning of a text with ``#`` in place of each key that stands in it as words.

    A key may be several words; the longest is taken. A part of a word is no key.

    >>> without_keys("note one is lost", {"one", "two"})
    'note # is lost'
    >>> without_keys("users/ann-lee.json is torn, and nobodyone is not", {"ann-lee", "one"})
    'users/#.json is torn, and nobodyone is not'
    """
    text = text[:_TEXT_CHARACTERS_MAX]
    words = [match.span() for match in _WORD.finditer(text)] if keys else []
    parts: list[str] = []
    at = place = 0
    while place < len(words):
        start = words[place][0]
        ends = (last for last in range(min(len(words), place + _KEY_WORDS_MAX) - 1, place - 1, -1))
        last = next((last for last in ends if text[start : words[last][1]] in keys), None)
        if last is not None:
            parts += [text[at:start], "#"]
            at = words[last][1]
        place = place + 1 if last is None else last + 1
    return "".join(parts) + text[at:]


def cause_of(signature: str) -> str:
    """Return what findings of one cause have in common, whichever checker found them.

    The text of a target's own check loses its keys, too. Any other signature is a name that was
    chosen: it loses its numbers alone.

    >>> cause_of("expectation:order 7 is kept") == cause_of("expectation:order 8 is kept")
    True
    >>> cause_of("expectation:a") == cause_of("expectation:b")
    False
    """
    return alike(signature) if signature.startswith(_CHECK) else _NUMBER.sub("#", signature)
