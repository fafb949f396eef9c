"""Which scenario a test belongs to, and how its runs are named.

Several tests may be runs of one scenario: they carry the same marker (``pytestmark`` of a module). A test that uses
the fixture ``chaos`` without a marker is a scenario of its own, named after its module and function.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from harness.errors import UsageError
from harness.model import Scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

ITERATION_PREFIX: Final = "run-"
_ITERATION: Final = re.compile(rf"^{ITERATION_PREFIX}\d+(?:-|$)|-{ITERATION_PREFIX}\d+(?=-|$)")
_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_SLUG_CHARACTERS_MAX: Final = 60
_ARGUMENTS: Final = {"id", "title", "why", "steps", "min_pass_rate"}


def from_marker(
    arguments: tuple[object, ...], keywords: Mapping[str, Any], *, fallback: str, docstring: str
) -> Scenario:
    """Build the scenario that a ``chaos`` marker describes.

    What the marker leaves out comes from the test's name and docstring.

    Raises UsageError for arguments that the marker does not take.
    """
    if arguments or (unknown := sorted(set(keywords) - _ARGUMENTS)):
        given = [*(repr(value) for value in arguments), *(unknown if not arguments else ())]
        msg = f"@pytest.mark.chaos takes id=, title=, why=, steps= and min_pass_rate=, and was given {', '.join(given)}"
        raise UsageError(msg)
    first_line = docstring.strip().split("\n", 1)[0]
    scenario_id = keywords.get("id") or _short(slug(fallback))
    if not isinstance(scenario_id, str) or not _ID.fullmatch(scenario_id):
        msg = f"a scenario's id is like '01-kill-9' (small letters, digits, '-', '_', '.'), and this is {scenario_id!r}"
        raise UsageError(msg)
    steps = keywords.get("steps", ())
    if isinstance(steps, str) or not all(isinstance(step, str) for step in steps):
        msg = f"the steps of scenario {scenario_id} are a list of sentences, and were given as {steps!r}"
        raise UsageError(msg)
    return Scenario(
        id=scenario_id,
        title=str(keywords.get("title") or first_line or fallback),
        why=str(keywords.get("why", "")),
        steps=tuple(steps),
        pass_rate_min=_rate(scenario_id, keywords.get("min_pass_rate")),
    )


def _rate(scenario_id: str, given: object) -> float | None:
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1):
        return given
    msg = f"the min_pass_rate of scenario {scenario_id} is a share from 0 to 1 (0.98 for 98 %), and this is {given!r}"
    raise UsageError(msg)


def _short(scenario_id: str) -> str:
    """Return an id that is no longer than ids are, and still this test's own."""
    if _ID.fullmatch(scenario_id):
        return scenario_id
    return f"{scenario_id[:_SLUG_CHARACTERS_MAX]}-{hashlib.sha256(scenario_id.encode()).hexdigest()[:8]}"


def without_iteration(node_id: str) -> str:
    """Return the node id of one iteration of a test as it is without iterations.

    That is what its randomness and its replay are keyed by. Not for a test that is run once: it may have parameters
    of its own that look like an iteration.
    """
    file, colons, name = node_id.partition("::")  # neither a folder's brackets nor a parameter's colons count
    function, bracket, parameters = name.partition("[")
    if not bracket or not parameters.endswith("]"):
        return node_id
    rest = _ITERATION.sub("", parameters[:-1], count=1)
    return f"{file}{colons}{function}" + (f"[{rest}]" if rest else "")


def run_id(base: str, iteration: int) -> str:
    """Return a run's name, unique in a session and fit for a folder: readable, then a hash, then the iteration.

    ``base`` is the test's node id without iterations.
    """
    digest = hashlib.sha256(base.encode()).hexdigest()[:8]
    return f"{slug(base.rpartition('::')[2])[:_SLUG_CHARACTERS_MAX]}-{digest}-{iteration}"


def slug(text: str) -> str:
    """Return the text in small letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "scenario"
