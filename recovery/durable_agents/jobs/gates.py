"""Gates: questions about a task whose answer is green or red.

A gate is a function of a task that reads and changes nothing, so it may be evaluated at any time,
any number of times. It is evaluated outside of every transaction, in a thread of its own, for a
bounded time. If it takes longer, raises, or returns neither a bool nor a GateResult, it counts as
red, with one warning until it answers properly again.

Python cannot end a thread, so a gate that hangs leaves its thread behind. Until that thread
returns, the gate is red for this task and is not asked about it again; other tasks are still
evaluated. With ``HUNG_MAX`` such threads the gate is red for all tasks until one returns. A gate
that uses a network should have a timeout of its own, shorter than this one.
"""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.store.rows import Task

TIMEOUT_S: Final = 10.0
"""Default bound on one evaluation, in seconds."""

TIMEOUT_S_MAX: Final = 3600.0
HUNG_MAX: Final = 3
_WARNED_MAX: Final = 10_000
_LOGGER: Final = logging.getLogger(__name__)


class GateResult(msgspec.Struct, frozen=True):
    """The answer of a gate; ``reason`` says why, for people."""

    is_green: bool
    reason: str = ""


_RED: Final = GateResult(is_green=False)


class Gate(Protocol):
    """A function of a task. True and a green GateResult are green."""

    def __call__(self, task: Task, /) -> bool | GateResult:
        """Answer, without changing anything."""
        ...


class Gates:
    """Gates by name, each evaluation bounded by ``timeout_s``. May be shared by threads.

    Raises InvalidSetting.
    """

    def __init__(self, gates: Mapping[str, Gate], *, timeout_s: float = TIMEOUT_S) -> None:
        if not (math.isfinite(timeout_s) and 0 < timeout_s <= TIMEOUT_S_MAX):
            message = (
                f"the gate timeout must be above 0 and at most {TIMEOUT_S_MAX:g} s; got {timeout_s!r}. Give seconds."
            )
            raise InvalidSetting(message)
        self._gates = dict(gates)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._hung: dict[str, dict[str, Future[object]]] = {}
        self._warned: set[tuple[str, str]] = set()

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a gate of this name."""
        return name in self._gates

    def evaluate(self, name: str, task: Task) -> GateResult:
        """Return the answer of a gate. Never raises, and takes little longer than the timeout."""
        result, problem = self._answer(name, task)
        key = (name, task.task_id)
        with self._lock:
            if not problem:
                self._warned.discard(key)
                return result
            is_new = key not in self._warned
            if len(self._warned) >= _WARNED_MAX:
                self._warned.clear()  # a repeated warning is better than a set without bound
            self._warned.add(key)
        if is_new:
            _LOGGER.warning("gate %s of task %s counts as red: %s", name, task.task_id, problem)
        return GateResult(is_green=False, reason=problem)

    def _answer(self, name: str, task: Task) -> tuple[GateResult, str]:
        """Return the answer, and what was wrong with it: empty for a proper answer."""
        if name not in self._gates:
            return _RED, "there is no gate of this name"
        hanging = self._hanging(name)
        if task.task_id in hanging:
            return _RED, "an earlier evaluation of it has not come back"
        if len(hanging) >= HUNG_MAX:
            return _RED, f"{len(hanging)} earlier evaluations of it, for other tasks, have not come back"
        evaluation = self._begin(name, task)
        try:
            error = evaluation.exception(self._timeout_s)
        except TimeoutError:
            with self._lock:
                self._hung.setdefault(name, {})[task.task_id] = evaluation
            return _RED, f"it did not answer within {self._timeout_s:g} s"
        if error is not None:
            return _RED, f"it raised {type(error).__name__}: {error}"
        answer = evaluation.result()
        if isinstance(answer, bool):
            answer = GateResult(answer)
        if isinstance(answer, GateResult):
            return answer, ""
        return _RED, f"it answered {answer!r}, which is neither a bool nor a GateResult"

    def _begin(self, name: str, task: Task) -> Future[object]:
        """Evaluate a gate in a daemon thread: an executor of threads would wait for it at exit."""
        evaluation: Future[object] = Future()

        def run() -> None:
            try:
                evaluation.set_result(self._gates[name](task))
            except BaseException as error:  # noqa: BLE001 - a gate that raises SystemExit is red, too
                evaluation.set_exception(error)

        threading.Thread(target=run, name=f"gate {name}", daemon=True).start()
        return evaluation

    def _hanging(self, name: str) -> frozenset[str]:
        """Return the tasks with an evaluation of this gate that timed out and has not returned."""
        with self._lock:
            found = self._hung.get(name, {})
            self._hung[name] = {task_id: each for task_id, each in found.items() if not each.done()}
            return frozenset(self._hung[name])
