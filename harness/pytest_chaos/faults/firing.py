"""One fault being fired: which, at whom, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.model.values import Fault, Json
    from pytest_chaos.runtime.agent import Agent


class Stage(Protocol):
    """What a fault may ask of the run that it happens in."""

    @property
    def directory(self) -> Path:
        """The folder of the run: what paths in a plan are relative to, so that a plan is the same in every run."""
        ...

    def start_again(self, agent: Agent) -> Agent:
        """Start the next incarnation of an agent, as it was started first."""
        ...

    def start_helper(self, name: str, target: str, kwargs: Mapping[str, Json]) -> Agent:
        """Start a process that is part of the fault; it is watched and ended like any agent."""
        ...


@dataclass
class Firing:
    """A fault with the incarnation of the agent that it hits.

    ``place`` is its place in the plan, negative for one fired by hand; ``helper`` a process that it
    consists of.
    """

    fault: Fault
    agent: Agent
    stage: Stage
    place: int = -1
    helper: Agent | None = None
