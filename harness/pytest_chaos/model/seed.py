"""One root seed for a session, and one stream of randomness derived from it for each purpose.

Nothing else in the harness draws random numbers, so a session is repeated by its seed. A stream
depends on the seed and on its purpose alone: drawing more for one purpose (a longer campaign,
another fault) never shifts what another one draws, and it does not matter which xdist worker draws
first. (TigerBeetle's simulator seeds each of its parts from one seed for the same reason.)
"""

from __future__ import annotations

import hashlib
import random
import secrets
import unicodedata
from typing import Final, TypeAlias

from pytest_chaos.errors import UsageError

Stream: TypeAlias = random.Random
"""Randomness for one purpose.

Draw with ``random()`` alone where results must stay the same across versions of Python: it is the
only method whose numbers Python promises not to change.
"""

SEED_CHARACTERS_MAX: Final = 64

_ALPHABET: Final = "23456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters that are not easily taken for another (0 and o, 1 and l and i, u and v)."""
_DRAWN_CHARACTERS: Final = 8


def draw_seed() -> str:
    """Draw a new seed from the system's entropy: eight characters (39 bits), easy to type."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_DRAWN_CHARACTERS))


def normalise_seed(text: str) -> str:
    """Return a user's seed without the blanks around it, in Unicode's composed form (NFC).

    Raises UsageError when it is empty, longer than 64 characters, or has blanks or unprintable
    characters within.
    """
    seed = unicodedata.normalize("NFC", text.strip())
    if not seed:
        msg = f"the seed must not be empty; got {text!r}. Give any word or number, or leave it out and one is drawn"
        raise UsageError(msg)
    if len(seed) > SEED_CHARACTERS_MAX:
        msg = f"the seed must have at most {SEED_CHARACTERS_MAX} characters; got {len(seed)}. Give a shorter one"
        raise UsageError(msg)
    wrong = [character for character in seed if character.isspace() or not character.isprintable()]
    if wrong:
        msg = f"the seed must be printable text without blanks; got {seed!r}. Leave out {wrong[0]!r}"
        raise UsageError(msg)
    return seed


def stream(seed: str, *purpose: str | int) -> Stream:
    """Return the stream of randomness of this seed and purpose: the same on every machine.

    Seed and purpose are hashed with their types and lengths, so ``("a", "bc")`` and ``("ab", "c")``
    are as unrelated as ``("1",)`` and ``(1,)``. Raises UsageError for a purpose that is neither
    text nor a whole number.
    """
    digest = hashlib.sha256()
    for part in (seed, *purpose):
        digest.update(_encoded(part))
    # An integer seed is used as it is, on every version; other types go through a hash that has
    # changed before.
    return random.Random(int.from_bytes(digest.digest(), "big"))  # noqa: S311 - to be repeatable is its whole purpose


def _encoded(part: str | int) -> bytes:
    if isinstance(part, bool) or not isinstance(part, str | int):
        msg = f"a purpose must be text or a whole number; got {part!r} ({type(part).__name__})"
        raise UsageError(msg)
    content = str(part).encode("utf-8", errors="surrogatepass")
    return f"{type(part).__name__}:{len(content)}:".encode() + content
