"""The model of checkpoints that many write: each save gets the next number of its task.

The numbers are an order, so nothing has to be searched: in that order the model must allow every
save, and none may come before one that had ended when it began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos import Finding

from scenarios.model.states import Model, Moment, Outcome, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_chaos import History
    from pytest_chaos.model.values import Operation

NOW = Moment(0, 0)


class Checkpoints(Model):
    """The checkpoints of one task."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.saved: list[int] = []

    def save(self, _: Moment, iteration: int) -> Outcome:
        """Save the state after an iteration."""
        self.saved.append(iteration)
        return {"sequence_number": len(self.saved)}

    def tables(self) -> Tables:
        """Return the rows, by number."""
        return {"checkpoints": {number: {"iteration": each} for number, each in enumerate(self.saved, start=1)}}


def check_numbers(history: History, iterations: Mapping[int, int]) -> Iterator[Finding]:
    """Find numbers, of which these iterations are, that the model gives to no save.

    A save without an ack may have happened or not; if its row is there, it has.
    """
    model, begun = Checkpoints(), 0
    known = dict(_by_iteration(history))
    for number, iteration in sorted(iterations.items()):
        operation = known.get(str(iteration))
        outcome = model.save(NOW, iteration)
        given = outcome if operation is None or operation.ack is None else {"sequence_number": operation.ack.value}
        if given != outcome or number != outcome["sequence_number"]:
            text = f"iteration {iteration} got number {given['sequence_number']} in row {number}; the model: {outcome}"
            yield Finding(signature="model:save-sequence-number", text=text, checker="check_numbers")
        if operation is None:
            continue
        if operation.ack is not None and operation.ack.order < begun:
            text = f"iteration {iteration} has number {number}, above one that began when it had ended"
            orders = (operation.ack.order,)
            yield Finding(signature="model:numbers-not-in-order", text=text, checker="check_numbers", orders=orders)
        begun = max(begun, operation.intent.order)


def _by_iteration(history: History) -> Iterator[tuple[str, Operation]]:
    """Yield the last operation of each iteration: one that was repeated had not happened."""
    for operation in history.operations("checkpoint"):
        yield str(operation.intent.key), operation
