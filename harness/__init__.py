"""pytest-chaos: real processes, real faults, and evidence for every verdict.

One way, no back and forth (words as in ``design.md``):

    scenario -> plan -> run -> history -> checkers -> verdict -> record -> matrix
                seed    agents  marks     invariants    |        results
                faults  faults  faults                  +-> evidence pack

    model, history, seed, plan, deliveries, checkers, statistics,
    campaign                                                      pure: values in, values out
    agents, faults                                                real processes, and what is done to them
    steps, explore                                                every durable step of a program, and what faults there
                                                                  leave: the ``explore`` fixture, ``chaos explore``
    run                                                           one run: the ``chaos`` fixture
    journal, records, evidence                                    what is written down
    settings, scratch, plugin, hookspecs, cli, doctor             the rims: pytest, the command line, the machine

Names are imported when they are first used, so a suite without chaos tests pays next to nothing for the plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.agents.marks import Marks
    from harness.agents.process import Agent
    from harness.deliveries import at_delivery, deliver
    from harness.errors import ChaosError
    from harness.evidence import dump_failure_evidence
    from harness.history import History
    from harness.model import Fault, Finding, Mark, Plan, Receipt, RunRecord, Verdict
    from harness.plan import after_mark, at_moment, at_point, hold_lock, kill, pause, restart, resume, terminate
    from harness.run import Run

__all__ = [
    "Agent",
    "ChaosError",
    "Fault",
    "Finding",
    "History",
    "Mark",
    "Marks",
    "Plan",
    "Receipt",
    "Run",
    "RunRecord",
    "Verdict",
    "after_mark",
    "at_delivery",
    "at_moment",
    "at_point",
    "deliver",
    "dump_failure_evidence",
    "hold_lock",
    "kill",
    "pause",
    "restart",
    "resume",
    "terminate",
]

_HOME: Final = {
    "Agent": "agents.process",
    "ChaosError": "errors",
    "Fault": "model",
    "Finding": "model",
    "History": "history",
    "Mark": "model",
    "Marks": "agents.marks",
    "Plan": "model",
    "Receipt": "model",
    "Run": "run",
    "RunRecord": "model",
    "Verdict": "model",
    "after_mark": "plan",
    "at_delivery": "deliveries",
    "at_moment": "plan",
    "at_point": "plan",
    "deliver": "deliveries",
    "dump_failure_evidence": "evidence",
    "hold_lock": "plan",
    "kill": "plan",
    "pause": "plan",
    "restart": "plan",
    "resume": "plan",
    "terminate": "plan",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
