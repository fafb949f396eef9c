"""Shrinking and explaining a pack: the pytest processes for it, and what is said in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.evidence.open import open_pack
from pytest_chaos.narrow import add, session
from pytest_chaos.narrow.explain import faults_to_move
from pytest_chaos.narrow.shrink import faults_of
from pytest_chaos.narrow.variant import Narrowed, NarrowOrder, RunVariant, cause, of_pack, violations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.story import Curve
    from pytest_chaos.narrow.variant import Heard

REPLAYS: Final = 2
"""Runs of what was found in a process of its own, where the violation always comes."""
FLAKY_REPLAYS: Final = 10
SESSION_TRIES: Final = 150
SESSION_S: Final = 60.0
"""Bounds of what is done in the session that found a violation; the commands have options."""
SESSION_MOMENTS: Final = 60
SESSION_EACH: Final = 3


def finding_of(pack: Pack, signature: str) -> str:
    """Return the cause of the finding that counts. Raises UsageError for one it has not."""
    found = violations(pack.findings)
    if not found:
        msg = f"{pack.path} must have a finding; got none, for its run was violated by its record alone. Replay it"
        raise UsageError(msg)
    if not signature:
        return cause(found[0])
    wanted = [each for each in found if each.signature == signature]
    if not wanted:
        known = ", ".join(dict.fromkeys(each.signature for each in found))
        msg = f"--finding must be one of the pack's; got {signature!r}. There are: {known}"
        raise UsageError(msg)
    return cause(wanted[0])


def start_of(pack: Pack, *, whole: bool) -> RunVariant:
    """Return the run in which a fault is to be moved: the shrunk one, if the pack has one."""
    start = of_pack(pack)
    shrunk = None if whole else add.shrunk_of(pack.path)
    if shrunk is None or shrunk.plan is None or not shrunk.plan.faults:
        return start
    sizes = {name: now for name, (before, now) in shrunk.sizes.items() if now != before}
    values = {name: now for name, (_, now) in shrunk.drawn.items()}
    return RunVariant(plan=shrunk.plan, sizes=sizes, drawn={**start.drawn, **values})


def shrink(
    pack: Pack,
    finding: str,
    *,
    root: Path,
    tries: int,
    seconds: float,
    arguments: Sequence[str] = (),
    on_line: Callable[[Heard], object] = bool,
) -> Narrowed:
    """Return the smallest variant of a pack's run, replayed in a process of its own."""
    order = NarrowOrder(kind="shrink", tries=tries, seconds=seconds, finding=finding)
    with session.folder() as work:
        answer = session.ask(order, pack.path, pack.node_id, root=root, work=work, arguments=arguments, on_line=on_line)
        if answer.problem or answer.shrunk is None:
            return msgspec.structs.replace(answer, problem=_did_not_come(answer))
        each = REPLAYS if answer.repeated == answer.repeats else FLAKY_REPLAYS
        order = NarrowOrder(
            kind="repeat", tries=each, seconds=max(seconds, 30.0), finding=finding, each=each, start=answer.variant
        )
        again = session.ask(order, pack.path, pack.node_id, root=root, work=work, arguments=arguments)
    if not again.repeated:
        why = again.problem or "it held"
        problem = f"the shrunk plan was violated while it was shrunk, and not in a process of its own ({why})"
        return msgspec.structs.replace(answer, shrunk=None, problem=problem)
    shrunk = msgspec.structs.replace(
        answer.shrunk, repeated=again.repeated, replays=again.repeats, runs=answer.runs + again.runs,
        is_whole=answer.is_whole,
    )  # fmt: skip
    return msgspec.structs.replace(answer, shrunk=shrunk)


def explain(
    pack: Pack,
    finding: str,
    start: RunVariant,
    *,
    root: Path,
    fault: int | None,
    each: int,
    moments: int,
    tries: int,
    seconds: float,
    arguments: Sequence[str] = (),
    on_line: Callable[[Heard], object] = bool,
) -> Narrowed:
    """Return the curve of a fault of a pack. Raises UsageError for a plan without faults."""
    faults_to_move(faults_of(start), fault)
    order = NarrowOrder(
        kind="explain", tries=tries, seconds=seconds, finding=finding, fault=fault, each=each, moments=moments,
        start=start,
    )  # fmt: skip
    with session.folder() as work:
        answer = session.ask(order, pack.path, pack.node_id, root=root, work=work, arguments=arguments, on_line=on_line)
    return answer if answer.curve is not None else msgspec.structs.replace(answer, problem=_did_not_come(answer))


def shrink_in_session(path: Path, *, root: Path, arguments: Sequence[str]) -> list[str]:
    """Shrink a pack of this session, add the result to it, and return sentences about it."""
    try:
        pack = open_pack(path)
        answer = shrink(
            pack, finding_of(pack, ""), root=root, tries=SESSION_TRIES, seconds=SESSION_S, arguments=arguments
        )
    except ChaosError as error:
        return [f"not shrunk: {error}"]
    shrunk = answer.shrunk
    if shrunk is None or answer.problem:
        return [f"not shrunk: {answer.problem}"]
    problem = add.add_shrunk(path, shrunk)
    faults = "; ".join(shrunk.faults) or "without any fault"
    sizes = "".join(f"; {name}: {before} -> {now}" for name, (before, now) in shrunk.sizes.items())
    count = len(shrunk.faults)
    head = f"shrunk to {count} fault{'' if count == 1 else 's'} of {shrunk.faults_before}, in {shrunk.runs} runs"
    return [f"{head}: {faults}{sizes}", *[problem] * bool(problem)]


def explain_in_session(path: Path, *, root: Path, arguments: Sequence[str]) -> list[str]:
    """Explain a pack of this session, add the curve to it, and return sentences about it."""
    try:
        pack = open_pack(path)
        answer = explain(
            pack, finding_of(pack, ""), start_of(pack, whole=False), root=root, fault=None, each=SESSION_EACH,
            moments=SESSION_MOMENTS, tries=SESSION_TRIES, seconds=SESSION_S, arguments=arguments,
        )  # fmt: skip
    except ChaosError as error:
        return [f"not explained: {error}"]
    if answer.curve is None:
        return [f"not explained: {answer.problem}"]
    problem = add.add_curve(path, answer.curve)
    return [*answer.curve.neighbours, *[problem] * bool(problem)] or [flat(answer.curve)]


def flat(curve: Curve) -> str:
    """Return what a curve says in which no moment differs from its neighbour."""
    if any(point.violated for point in curve.points):
        return f"it is violated at every {curve.unit}: the moment of the fault does not matter"
    return f"it is violated at no {curve.unit} that was tried: it depends on more than the moment"


def told(answer: Narrowed, pack: Path) -> list[str]:
    """Return in lines what a shrinking found."""
    shrunk = answer.shrunk
    assert shrunk is not None  # noqa: S101 - the caller has looked
    count = len(shrunk.faults)
    head = f"{count} fault{'' if count == 1 else 's'} of {shrunk.faults_before}"
    lines = [f"shrunk to {head}, in {shrunk.runs} runs ({answer.seconds:.1f} s):"]
    lines += [f"  {fault}" for fault in shrunk.faults] or ["  no fault is needed: it is violated without one"]
    lines += [f"  {name}: {before} -> {now}" for name, (before, now) in shrunk.sizes.items()]
    lines += [f"  {name}: {_short(now)}" for name, (_, now) in shrunk.drawn.items()]
    lines += shrunk.necessary
    lines.append(f"again in a process of its own: {shrunk.repeated} of {shrunk.replays} runs violated")
    if not shrunk.is_whole:
        lines.append("the budget was used up: a smaller one may be there (--tries, --seconds)")
    lines += [f"another finding came up on the way: {text}" for text in answer.others]
    lines += answer.notes
    if shrunk.test:
        lines += ["", *shrunk.test.splitlines(), ""]
    return [*lines, command_of_page(pack)]


def command_of_page(pack: Path) -> str:
    """Return the line that says where all of it is shown."""
    return f"chaos report {pack} --open shows it on the failure page"


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


def _did_not_come(answer: Narrowed) -> str:
    if answer.runs and not answer.repeated and not answer.problem.startswith("the budget"):
        hint = "The code may have changed since, or it depends on luck: chaos replay shows one run"
        return f"the violation did not come back: {answer.problem}. {hint}"
    return answer.problem
