"""What becomes of a trapped call, and what its words of 64 bits mean."""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from harness.steps.step import BlindSpot, Step

FOREVER: Final = 1 << 63
"""The first place that no file reaches; as a signed word it is negative."""
LOW_HALF: Final = 0xFFFFFFFF
"""The half of a word that holds a descriptor; one that is negative is then none that can be open."""


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a call. With ``error`` it is denied; ``mark`` is no step and has no number of its own.

    ``stray`` is a path outside of the folder that it changes; ``printed_bytes`` is what the run will then have printed.
    """

    steps: tuple[Step, ...] = ()
    error: int = 0
    blind_spot: BlindSpot | None = None
    mark: Step | None = None
    stray: str = ""
    printed_bytes: int = 0
    is_step: bool = False
    """Whether it is one step and nothing else, as nearly all are."""


NOTHING: Final = Decoded()
"""The call is nobody's business: it reads, or writes to a pipe, or fails."""


def denied(what: str, text: str) -> Decoded:
    """Return the answer to a call that is refused, as by a kernel that has none such."""
    return Decoded(error=errno.ENOSYS, blind_spot=BlindSpot(what=what, text=text, is_denied=True))


def descriptor_in(word: int) -> int:
    """Return a descriptor, which is a signed 32-bit number in a 64-bit word."""
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def signed_word(word: int) -> int:
    """Return a word as a signed number of 64 bits."""
    return word - (1 << 64) if word >= FOREVER else word
