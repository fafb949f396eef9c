"""Workers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| ForgetsProgress | begins anew after every crash | work that was checkpointed is done again |
| WritesLate | an effect is written under a lease that is over | a zombie whose output is another one's |
| TrustsNewest | goes on behind the newest iteration, and does not ask what became of its artifact | a lost artifact |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_agents import Iteration, Worker

if TYPE_CHECKING:
    from durable_agents.work.worker import HeldWork


class ForgetsProgress(Worker):
    """Starts from the beginning, whatever was done."""

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        assert task_id
        return 0, self._start, 0


class WritesLate(Worker):
    """Has a claim, and writes whenever it comes to it."""

    def _begun(self, claim: HeldWork, number: int, state: Any) -> Iteration:
        return Iteration(claim.task_id, number, state, self._artifacts)


class TrustsNewest(Worker):
    """Takes the newest iteration_end for true."""

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        ends = [saved for saved in self._checkpoints.list(task_id) if saved.type == "iteration_end"]
        if not ends:
            return 0, self._start, 0
        return ends[-1].snapshot["iteration"], ends[-1].snapshot["state"], 0
