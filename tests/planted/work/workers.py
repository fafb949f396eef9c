"""Workers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| ForgetsProgress | begins anew after every crash | work that was checkpointed is done again |
| TrustsNewest | goes on behind the newest iteration, and does not ask what became of its artifact | a lost artifact |
"""

from __future__ import annotations

from typing import Any

from durable_agents import Worker


class ForgetsProgress(Worker):
    """Starts from the beginning, whatever was done."""

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        assert task_id
        return 0, self._start, 0


class TrustsNewest(Worker):
    """Takes the newest iteration_end for true."""

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        ends = [saved for saved in self._checkpoints.list(task_id) if saved.type == "iteration_end"]
        if not ends:
            return 0, self._start, 0
        return ends[-1].snapshot["iteration"], ends[-1].snapshot["state"], 0
