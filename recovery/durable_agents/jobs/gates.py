"""Gates: questions to the world whose answer is green or red, and nothing else.

A gate is a function of a task. It reads, and changes nothing, so anybody may evaluate it at any
time, any number of times. It is evaluated outside of every transaction and for a bounded time: one
that takes longer, that raises, or that answers with something that is no answer, counts as red,
with one warning until it answers properly again.

Python cannot end a thread, so one that hangs is left behind, and its task is not asked about again
before it comes back: one task that makes a gate hang is no news about the others. ``HUNG_MAX``
bounds for how many tasks of one gate that may be so; from then on that gate is red at once for all,
until one of them comes back. A gate on an unreliable network should have a timeout of its own,
shorter than this one.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.store.rows import Task

TIMEOUT_S: Final = 10.0
"""How long one evaluation may take, in seconds, unless told otherwise."""

TIMEOUT_S_MAX: Final = 3600.0
HUNG_MAX: Final = 3
_WARNED_MAX: Final = 10_000
_LOGGER: Final = logging.getLogger(__name__)


class GateResult(msgspec.Struct, frozen=True):
    """The answer of a gate; ``reason`` says why, for people."""

    is_green: bool
    reason: str = ""


class Gate(Protocol):
    """Anything that answers for a task. True and a green GateResult are green."""

    def __call__(self, task: Task, /) -> bool | GateResult:
        """Answer, without changing anything."""
        ...


class Gates:
    """Gates by name. ``timeout_s`` bounds one evaluation. Raises InvalidSetting. May be shared by threads."""

    def __init__(self, gates: Mapping[str, Gate], *, timeout_s: float = TIMEOUT_S) -> None:
        """Keep the gates; none is evaluated yet."""
        if not (math.isfinite(timeout_s) and 0 < timeout_s <= TIMEOUT_S_MAX):
            message = f"Expected a gate timeout of more than 0 and at most {TIMEOUT_S_MAX:g} s but got {timeout_s!r}."
            raise InvalidSetting(message)
        self._gates = dict(gates)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._hung: dict[str, dict[str, _Evaluation]] = {}
        self._warned: set[tuple[str, str]] = set()

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a gate of this name."""
        return name in self._gates

    def evaluate(self, name: str, task: Task) -> GateResult:
        """Return the answer of a gate; never raises, and takes little longer than the timeout."""
        result, trouble = self._answer(name, task)
        key = (name, task.task_id)
        with self._lock:
            if not trouble:
                self._warned.discard(key)
                return result
            is_new = key not in self._warned
            if len(self._warned) >= _WARNED_MAX:
                self._warned.clear()  # rather a second warning than a set without bound
            self._warned.add(key)
        if is_new:
            _LOGGER.warning("gate %s of task %s counts as red: %s", name, task.task_id, trouble)
        return GateResult(is_green=False, reason=trouble)

    def _answer(self, name: str, task: Task) -> tuple[GateResult, str]:
        """Return the answer, and what was wrong with it, if anything."""
        red = GateResult(is_green=False)
        if name not in self._gates:
            return red, "there is no gate of this name"
        hanging = self._hanging(name)
        if task.task_id in hanging:
            return red, "an earlier evaluation of it has not come back"
        if len(hanging) >= HUNG_MAX:
            return red, f"{len(hanging)} earlier evaluations of it, for other tasks, have not come back"
        evaluation = _Evaluation(self._gates[name], task, name)
        if not evaluation.wait(self._timeout_s):
            with self._lock:
                self._hung.setdefault(name, {})[task.task_id] = evaluation
            return red, f"it did not answer within {self._timeout_s:g} s"
        return evaluation.result or red, evaluation.trouble

    def _hanging(self, name: str) -> frozenset[str]:
        """Return the tasks for which an evaluation of a gate was given up and has not come back."""
        with self._lock:
            found = self._hung.get(name, {})
            self._hung[name] = {task_id: each for task_id, each in found.items() if each.is_under_way()}
            return frozenset(self._hung[name])


class _Evaluation:
    """One evaluation, in a thread that nobody has to wait for."""

    def __init__(self, gate: Gate, task: Task, name: str) -> None:
        self._gate = gate
        self._task = task
        self.result: GateResult | None = None
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name=f"gate {name}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Return whether it answered in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_under_way(self) -> bool:
        """Tell whether it has not come back."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            answer: object = self._gate(self._task)
        except BaseException as error:  # noqa: BLE001 - whatever a gate does, it is no answer, and no news for a thread
            self.trouble = f"it raised {type(error).__name__}: {error}"
            return
        if isinstance(answer, bool):
            answer = GateResult(answer)
        if isinstance(answer, GateResult):
            self.result = answer
        else:
            self.trouble = f"it answered {answer!r}, which is neither a bool nor a GateResult"
