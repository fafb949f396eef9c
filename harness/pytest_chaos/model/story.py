"""The story of an exploration that found something: what its failure page tells.

The exploration writes it beside the failing states; a report reads it there. A field that is not
known has its default, so that a story of another version can be told as far as it goes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pytest_chaos.model.values import Finding, Json, Mark, Plan

FORMAT: Final = 1
FILE_NAME: Final = "story.json"
STEPS_NAME: Final = "steps.json"
"""Among the attachments of a pack: :class:`RunSteps`."""
CURVE_NAME: Final = "curve.json"
"""Likewise: :class:`Curve`."""
SHRUNK_NAME: Final = "shrunk.json"
"""Likewise: :class:`Shrunk`."""


class StoryStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A durable step, or a mark among the steps.

    ``text`` is the step in words, without its number. ``syncs``: it makes earlier writes durable.
    ``line`` is the line of the user's program that makes it, where it is known. ``agent`` made it,
    in a run of several agents.
    """

    number: int
    text: str = ""
    process: int = 1
    thread: int = 1
    syncs: bool = False
    mark: Mark | None = None
    line: str = ""
    agent: str = ""


class LostItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An acknowledged operation that a finding names, and the step it relied on.

    ``step`` is the number of the step that should have made it durable, 0 if there was none;
    ``why`` says in a sentence what it did, and ``is_synced`` whether it synced the item.
    """

    mark: Mark
    why: str
    step: int = 0
    text: str = ""
    line: str = ""
    is_synced: bool = False


class Reference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another state of the same recording, to compare the failing one with.

    ``folder`` is relative to the story, or empty if the state was too large to be kept. ``step`` is
    the first durable step that did not happen.
    """

    code: str
    text: str
    step: int
    folder: str = ""


class CauseStory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One cause: its example, what surrounds it, and where else it showed.

    ``folder`` holds the failing state, relative to the story. ``promised`` is the state that the
    program had acknowledged, or had written; ``neighbour`` the nearest state in which nothing was
    found. ``output`` is the end of what a run with an I/O error printed. ``steps`` surround the
    crash. ``struck`` are the steps, by family, at which the cause showed. ``variants`` are lines:
    one for each other family and signature.
    """

    signature: str
    text: str
    kind: str = "safety"
    family: str = ""
    code: str = ""
    state: str = ""
    label: str = ""
    model: str = ""
    step: int = 0
    marks: int = 0
    states: int = 1
    at: str = ""
    line: str = ""
    again: str = ""
    folder: str = ""
    output: str = ""
    promised: Reference | None = None
    neighbour: Reference | None = None
    after: Reference | None = None
    lost: tuple[LostItem, ...] = ()
    steps: tuple[StoryStep, ...] = ()
    struck: dict[str, tuple[int, ...]] = {}
    variants: tuple[str, ...] = ()


class FamilyStory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was explored of one family. ``verdict`` as reports show it, ``outcome`` in words."""

    family: str
    verdict: str
    outcome: str = ""
    coverage: str = ""
    states: int = 0
    confirmed: int = 0


class RunSteps(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a run whose durable steps were watched.

    ``lost`` are the acknowledged operations that its findings name, each with the step it relied
    on. ``steps`` are the steps and marks around the first of them, of ``total`` steps in all.
    ``is_repeat``: they were watched in a replay of the run, with the same finding. ``problem`` is
    why no steps could be watched.
    """

    lost: tuple[LostItem, ...] = ()
    steps: tuple[StoryStep, ...] = ()
    total: int = 0
    is_repeat: bool = False
    problem: str = ""
    format: int = FORMAT


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one plan with its fault at one moment, and how many of them were violated.

    ``text`` is the moment in words, and ``line`` that of the program, where they are known.
    ``unanswered`` counts further runs that said nothing: the fault did not come, say.
    """

    at: int
    runs: int
    violated: int
    text: str = ""
    line: str = ""
    unanswered: int = 0


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """P(violation) against the moment of a ``fault``; ``unit`` is step, moment, delivery or ms.

    ``neighbours`` are sentences: where a moment that holds is followed by one that does not, or the
    other way round.
    """

    points: tuple[CurvePoint, ...]
    unit: str = "step"
    fault: str = ""
    neighbours: tuple[str, ...] = ()
    runs: int = 0
    format: int = FORMAT


class Shrunk(msgspec.Struct, frozen=True, kw_only=True):
    """A smaller plan that is violated by the same finding.

    ``faults`` are those that are left, a line each, of ``faults_before``; ``necessary`` says of
    each what came without it. ``runs`` counts the runs that were made. ``test`` is a test to paste.
    ``plan`` has the faults as data. ``sizes`` and ``drawn`` are those of the workload by name, as
    they were and as they are now. ``repeated`` says how many of ``replays`` in processes of their
    own were violated by the finding. ``is_whole``: nothing smaller is left to try.
    """

    faults: tuple[str, ...]
    faults_before: int
    necessary: tuple[str, ...] = ()
    runs: int = 0
    test: str = ""
    plan: Plan | None = None
    sizes: dict[str, tuple[int, int]] = {}
    drawn: dict[str, tuple[Json, Json]] = {}
    repeated: int = 0
    replays: int = 0
    is_whole: bool = True
    format: int = FORMAT


class Story(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exploration with at least one violation. ``steps`` counts the durable steps of its run.

    ``findings`` are those of no family, such as races; ``undecided`` those about the exploration
    itself, in words. ``started`` is UTC in ISO 8601. ``output`` is the end of what the program
    printed in the recorded run, which had no fault.
    """

    target: str
    seed: str = ""
    verdict: str = ""
    coverage: str = ""
    steps: int = 0
    schedules: int = 1
    source: str = ""
    started: str = ""
    duration_s: float = 0.0
    command: str = ""
    families: tuple[FamilyStory, ...] = ()
    causes: tuple[CauseStory, ...] = ()
    causes_omitted: int = 0
    findings: tuple[Finding, ...] = ()
    undecided: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    output: str = ""
    versions: dict[str, str] = {}
    format: int = FORMAT
