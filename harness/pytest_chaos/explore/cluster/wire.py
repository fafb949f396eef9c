"""What goes between an exploration and the workers of a cluster: values, and their bytes.

A *parcel* is what a worker has to know before it can judge: target, sources, recording. It is named
by a digest of its content. A *batch* is a number of tasks of one parcel; its *answer* has, for each
task, the state code and the judgement.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

import msgspec

from pytest_chaos.explore.judge import Judgement
from pytest_chaos.trace.source import Directive

_DIGEST_BYTES: Final = 16


class BatchTask(msgspec.Struct, frozen=True, array_like=True):
    """A state to judge, or a real run to make and judge (``directive``).

    ``code`` names the task. A worker builds the state of that code from its recording, and
    ``digest`` is what it has to come to; with ``items`` the state comes packed, since no recording
    of the worker has it.
    """

    code: str
    marks: int
    digest: bytes = b""
    items: bytes = b""
    directive: Directive | None = None
    run_timeout_s: float = 0.0
    is_compared: bool = True
    is_expected: bool = True
    family: str = ""
    """The family that the state is of."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Tasks of one parcel. ``left_s`` is the time after which those not yet judged are ended."""

    parcel: str
    tasks: tuple[BatchTask, ...]
    left_s: float
    versions: str
    """The versions of the side that asks (``own_versions``): a worker of others must not judge."""


class JudgedTask(msgspec.Struct, frozen=True, array_like=True):
    """The judgement of one task; ``kept`` is the folder that a run left, packed."""

    code: str
    judgement: Judgement
    kept: bytes = b""


class BatchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says to a batch. ``refused`` says why it judged nothing, or is empty."""

    judged: tuple[JudgedTask, ...] = ()
    took_s: float = 0.0
    refused: str = ""
    worker: str = ""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The cluster is there, with so many workers."""

    workers: int
    text: str = ""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The cluster is not there, or not any more. Nothing that is under way will come back."""

    signature: str
    text: str


class Came(msgspec.Struct, frozen=True, tag="came"):
    """A batch came back: its ``answer``, or why it was ``lost``."""

    number: int
    answer: bytes = b""
    lost: str = ""


class Workers(msgspec.Struct, frozen=True, tag="workers"):
    """The number of workers has changed."""

    workers: int


class Ship(msgspec.Struct, frozen=True, tag="ship"):
    """A parcel, to be kept for the batches that name it."""

    name: str
    content: bytes


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """A batch to be judged, under a number that no other has."""

    number: int
    parcel: str
    content: bytes


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """Batches whose answers are not wanted any more."""

    numbers: tuple[int, ...]


Said: TypeAlias = Opened | Failed | Came | Workers
"""What the cluster's process says to an exploration."""
Asked: TypeAlias = Ship | Hand | Drop
"""What an exploration says to the cluster's process."""


class BatchDone(NamedTuple):
    """A batch that came back: its ``answer``, or why it was ``lost``."""

    number: int
    answer: BatchAnswer | None
    lost: str = ""


def name_of(content: bytes) -> str:
    """Return the name of a parcel: a digest of its content."""
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
