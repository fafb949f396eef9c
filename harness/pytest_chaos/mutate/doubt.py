"""Patches of the target against the chaos tests, each until one of them notices it."""

from __future__ import annotations

import marshal
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.mutate.campaign import PATIENCE_S, MutantWatch
from pytest_chaos.mutate.mutants import Mutant
from pytest_chaos.mutate.runner import PreloadedPytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.mutate.clean import CleanRun, CleanTest
    from pytest_chaos.mutate.patches import TargetPatch
    from pytest_chaos.mutate.runner import Event, PytestCommand

OPERATOR = "patch"
OUTCOMES: Final = {
    "caught": "noticed",
    "caught by time": "noticed by time",
    "caught by crash": "noticed by crash",
    "survived": "let pass",
}
"""The outcomes of mutants in the words for patches; others are the same."""


class PatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one patch.

    ``outcome`` is noticed, noticed by time, noticed by crash, let pass, not reached, inconclusive
    or error. ``scenario`` and ``test`` noticed it, by the finding ``signature`` with ``text``.
    ``tests`` is how many tests were begun.
    """

    patch: str
    outcome: str
    scenario: str = ""
    test: str = ""
    signature: str = ""
    text: str = ""
    tests: int = 0
    duration_s: float = 0.0
    diff: str = ""

    @property
    def is_noticed(self) -> bool:
        """Whether a test noticed it."""
        return self.outcome.startswith("noticed")

    @property
    def is_judged(self) -> bool:
        """Whether its tests came to an answer."""
        return self.outcome not in {"inconclusive", "error"}


class DoubtDocument(msgspec.Struct, frozen=True, kw_only=True):
    """All patches, in the order in which they were named; ``noticed`` is how many were."""

    seed: str
    noticed: int
    results: list[PatchResult]
    format: int = 1


def doubt(
    patches: Sequence[TargetPatch],
    clean: CleanRun,
    command: PytestCommand,
    on_result: Callable[[PatchResult], None],
    *,
    seed: str,
    jobs: int = 1,
    patience_s: float = PATIENCE_S,
) -> None:
    """Run the tests of a clean run against each patch, the quickest first, until one notices it.

    Each patch has a pytest of its own, whose processes find the patched modules by an import hook.
    ``on_result`` gets each result.
    """
    waiting, lock = deque(patches), threading.Lock()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                if not waiting:
                    return
                patch = waiting.popleft()
            result = _run(patch, clean, command, seed=seed, patience_s=patience_s)
            with lock:
                on_result(result)

    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(work) for _ in range(jobs)]
        try:
            for task in tasks:
                task.result()
        finally:
            stop.set()


def _run(patch: TargetPatch, clean: CleanRun, command: PytestCommand, *, seed: str, patience_s: float) -> PatchResult:
    begun = time.monotonic()
    tests = sorted(clean.tests, key=lambda test: test.whole_s)
    watch = _ReachWatch(tests, patience_s)
    packages = {each.before.name.partition(".")[0] for each in patch.modules}
    preload = [name for name in clean.preload if name.partition(".")[0] not in packages]
    given = [*clean.arguments, *dict.fromkeys(test.path for test in tests)]
    names = {test.name: [place.place for place in test.places] for test in tests}
    with tempfile.TemporaryDirectory(prefix="chaos-doubt-") as name:
        folder = Path(name)
        for each in patch.modules:
            (folder / f"{each.before.name}.code").write_bytes(marshal.dumps(each.compiled()))
        (folder / "reach.map").write_bytes(b"\0")
        with PreloadedPytest(command, sorted(packages)[0], preload, seed=seed) as pytest:
            end = pytest.run(folder, given, watch.bound_s, watch.take, only=names)
    result = watch.judged(_as_mutant(patch), end)
    outcome = OUTCOMES.get(result.outcome, result.outcome)
    if result.outcome == "survived" and patch.is_counted and not watch.is_reached:
        outcome = "not reached"
    return PatchResult(
        patch=patch.name,
        outcome=outcome,
        scenario=result.scenario,
        test=result.test,
        signature=result.signature,
        text=result.text,
        tests=watch.begun,
        duration_s=round(time.monotonic() - begun, 3),
        diff=patch.diff,
    )


def _as_mutant(patch: TargetPatch) -> Mutant:
    """Return the patch as what results are of."""
    first = patch.modules[0]
    return Mutant(
        id=patch.id,
        operator=OPERATOR,
        module=", ".join(each.before.name for each in patch.modules),
        function=", ".join(sorted(name for each in patch.modules for name in each.functions)),
        line=first.line,
        diff=patch.diff,
        number=0,
        probe=0,
    )


class _ReachWatch(MutantWatch):
    """What is known of a patch while the tests run, and whether any test came to it."""

    def __init__(self, tests: Sequence[CleanTest], patience_s: float) -> None:
        super().__init__(tests, patience_s)
        self.is_reached = False

    def take(self, event: Event) -> bool:
        """Take note of an event; return whether there is more to see."""
        if event["event"] == "finished":
            self.is_reached = self.is_reached or bool(event["reached"])
        return super().take(event)
