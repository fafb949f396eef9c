"""What the failure page of a run says: from its sentence to its plan. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.model.plan import describe_when
from pytest_chaos.model.promises import named_by
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.values import Finding, MarkKind, Receipt, Verdict

from chaos_reports.failure.curve import drawn
from chaos_reports.failure.exploration import CAUSES_MAX, LINES_MAX, UNREADABLE, story_causes, story_sentence
from chaos_reports.failure.history import of_run
from chaos_reports.failure.left import agents_of, files_of, printed
from chaos_reports.failure.values import CauseView, Fired, Page, Promise, Row, StripRow
from chaos_reports.figures import clip, duration, moment, plural, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.story import RunSteps, Shrunk
    from pytest_chaos.model.values import Mark

    from chaos_reports.failure.source import Source, Told

ACKS_MAX: Final = 40
STRIP_MAX: Final = 40
AGENTS_MAX: Final = 30
FILES_MAX: Final = 40
HEADLINE_CHARACTERS: Final = 120
"""Of a finding in the page's first sentence; the finding has all of it below."""
_FAULT_NOTE: Final = "chaos.fault"
"""The note of an agent that came to the time of a fault; its key is the place of the fault."""
_OWN_NOTES: Final = "chaos."
_ALSO: Final = "\n  also "


def page_of_run(source: Source) -> Page:
    """Return the page of a pack."""
    pack: Pack = source.pack
    causes = [*story_causes(source.stories), *_run_causes(pack, source.stories)]
    agents = tuple(agents_of(pack))
    lines = _lines_struck(pack)
    files = tuple(files_of(pack))
    named = _named(pack)
    shrunk = source.shrunk
    return Page(
        label=UNREADABLE if source.problems and pack.verdict is Verdict.HELD else str(pack.verdict),
        sentence=_sentence(pack, source.stories),
        title=clip(pack.scenario.title or pack.scenario.id or pack.node_id, 200),
        kicker="failure of one run",
        facts=tuple(_run_facts(pack)),
        receipts=tuple(_fired(each, lines) for each in pack.receipts),
        again=clip(pack.reproduce, 2_000),
        again_note="" if pack.reproduce else "No line was recorded that runs it again.",
        causes=tuple(causes[:CAUSES_MAX]),
        causes_omitted=max(0, len(causes) - CAUSES_MAX),
        chart=of_run(pack, {mark.order for mark in named} | {order for each in pack.findings for order in each.orders}),
        promised=tuple(_promised(pack, named, source.steps)),
        strip=tuple(_strip(source.steps)),
        watched=_watched(source.steps),
        find_out=_find_out(pack, named, source.steps),
        promised_counts=tuple(_acknowledged(pack)),
        found=files[:FILES_MAX],
        found_omitted=max(0, len(files) - FILES_MAX),
        agents=(*agents[:AGENTS_MAX], *printed(source.stories)),
        agents_omitted=max(0, len(agents) - AGENTS_MAX),
        failure=clip(pack.failure, 12_000),
        plan=tuple(_plan(pack)),
        curve=drawn(source.curve),
        shrunk=tuple(clip(line, 400) for line in shrunk.faults[:LINES_MAX]) if shrunk is not None else (),
        necessary=tuple(clip(line, 400) for line in shrunk.necessary[:LINES_MAX]) if shrunk is not None else (),
        shrunk_text=_shrunk(shrunk),
        shrunk_test=clip(shrunk.test, 8_000) if shrunk is not None else "",
        steps=tuple(clip(step, 300) for step in pack.scenario.steps),
        notes=tuple(clip(note, 600) for told in source.stories for note in told.story.notes),
        versions=tuple(Row(name=name, value=clip(value, 80)) for name, value in sorted(pack.versions.items())),
        problems=tuple(clip(text, 600) for text in source.problems),
        left_out=tuple(clip(f"{row['part']}: {row['text']}", 400) for row in pack.problems[:50]),
        has_story=bool(source.stories),
    )


def _sentence(pack: Pack, stories: Sequence[Told]) -> str:
    """Return in one sentence what happened, under which fault, and what was wrong then."""
    violations = [each for each in pack.findings if each.verdict is Verdict.VIOLATED]
    undecided = [each for each in pack.findings if each.verdict is Verdict.INCONCLUSIVE]
    told = [story_sentence(each.story) for each in stories if each.story.causes]
    if told and pack.verdict is Verdict.VIOLATED:
        return told[0]
    struck = [each for each in pack.receipts if each.fired and not each.kind.startswith("explore:")]
    unfired = ", and no fault fired" if pack.receipts else ", without any fault"
    under = f", after {_listed([_struck(each) for each in struck])}" if struck else unfired
    first = _plain(violations or undecided, pack.failure)
    if pack.verdict is Verdict.VIOLATED:
        return f"{_what(pack)} did not hold{under}: {first}"
    if pack.verdict is Verdict.INCONCLUSIVE:
        return f"This run of {_what(pack)} decided nothing{under}: {first}"
    return f"{_what(pack)} held in this run{under}."


def _what(pack: Pack) -> str:
    return f"“{clip(pack.scenario.title or pack.scenario.id or 'the scenario', 160)}”"


def _plain(findings: Sequence[Finding], failure: str) -> str:
    if findings:
        text = " ".join(findings[0].text.split(_ALSO)[0].split())
        more = len({cause_of(each.signature) for each in findings}) - 1
        return short(text, HEADLINE_CHARACTERS) + (f" (and {plural(more, 'more finding')})" if more else "")
    lines = [line for line in failure.splitlines() if line.strip()]
    return clip(lines[-1], 300) if lines else "no reason was recorded"


def _struck(receipt: Receipt) -> str:
    return f"{receipt.kind} of {clip(receipt.agent, 60)}" if receipt.agent else receipt.kind


def _listed(words: Sequence[str]) -> str:
    unique = list(dict.fromkeys(words))
    shown = unique[:3]
    more = len(unique) - len(shown)
    return ", ".join(shown) + (f" and {plural(more, 'more fault')}" if more else "")


def _run_facts(pack: Pack) -> Iterator[Row]:
    yield Row(name="Scenario", value=clip(pack.scenario.id, 120))
    yield Row(name="Test", value=clip(pack.node_id, 300), is_code=True)
    yield Row(
        name="Seed", value=clip(pack.seed, 80) + (f", run {pack.iteration + 1}" if pack.iteration else ""), is_code=True
    )
    yield Row(name="Started", value=moment(clip(pack.started, 40)))
    if pack.duration_s is not None:
        yield Row(name="Duration", value=duration(pack.duration_s))


def _lines_struck(pack: Pack) -> dict[object, str]:
    """Return the program line at which each planned fault struck, where an agent has told it."""
    notes = (mark for mark in pack.marks if mark.operation == _FAULT_NOTE and isinstance(mark.value, dict))
    return {mark.key: clip(str(mark.value["line"]), 200) for mark in notes if mark.value.get("line")}


def _fired(receipt: Receipt, lines: Mapping[object, str]) -> Fired:
    what = f"{receipt.kind} {receipt.agent} {receipt.when}"
    return Fired(
        what=clip(what, 200),
        fired=receipt.fired,
        evidence=clip(receipt.evidence, 400),
        line=lines.get(receipt.fault, ""),
    )


def _run_causes(pack: Pack, stories: Sequence[Told]) -> Iterator[CauseView]:
    """Yield the findings of a run by cause; those that a story tells are left out."""
    told = {cause.signature for each in stories for cause in each.story.causes}
    groups: defaultdict[tuple[bool, str], list[Finding]] = defaultdict(list)
    for finding in pack.findings:
        if finding.signature not in told:
            groups[finding.verdict is Verdict.INCONCLUSIVE, cause_of(finding.signature)].append(finding)
    for (is_harness, _), found in sorted(groups.items(), key=lambda group: group[0][0]):
        first = found[0]
        head, *also = first.text.split("\n")
        lines = [*also, *(each.text for each in found[1:])]
        facts = [Row(name="Signature", value=clip(first.signature, 200), is_code=True)]
        facts += [Row(name="Seen by", value=clip(first.checker, 80))] if first.checker else []
        orders = sorted({order for each in found for order in each.orders})
        if orders:
            shown = ", ".join(f"{order + 1:,}" for order in orders[:20])
            facts.append(Row(name="Marks", value=shown + (" …" if len(orders) > 20 else "")))
        yield CauseView(
            title=clip(head, 400),
            is_harness=is_harness,
            facts=tuple(facts),
            lines=tuple(clip(line.strip(), 400) for line in lines[:LINES_MAX]),
            lines_omitted=max(0, len(lines) - LINES_MAX),
        )
    if not pack.findings:
        for each in pack.assertions:
            if not each.holds:
                yield CauseView(title=clip(f"{each.name}: {each.observed}", 400), is_harness=False)


def _named(pack: Pack) -> list[Mark]:
    """Return the marks that the findings of a run are about."""
    wrong = [each for each in pack.findings if each.verdict is Verdict.VIOLATED] or pack.findings
    orders = {order for finding in wrong for order in finding.orders}
    acks = named_by(wrong, [mark for mark in pack.marks if mark.kind is MarkKind.ACK])
    named = {mark.order: mark for mark in [*acks, *(mark for mark in pack.marks if mark.order in orders)]}
    return [named[order] for order in sorted(named)]


def _promised(pack: Pack, named: Sequence[Mark], steps: RunSteps | None) -> Iterator[Promise]:
    """Yield the marks that the findings name, each with the step it relied on, or later faults."""
    lost = {(item.mark.operation, item.mark.key): item for item in (steps.lost if steps is not None else ())}
    fired = [each for each in pack.receipts if each.fired and each.order is not None]
    for mark in named[:ACKS_MAX]:
        later = [_struck(each) for each in fired if each.order is not None and each.order > mark.order]
        said = {MarkKind.ACK: "acknowledged", MarkKind.INTENT: "begun, and not acknowledged"}.get(mark.kind, "noted")
        who = f" by {mark.agent}" if mark.agent else ""
        key = "" if mark.key is None else f" {mark.key}"
        then = f"then came {_listed(later)}" if later else "no fault came after it"
        item = lost.get((mark.operation, mark.key)) if mark.kind is MarkKind.ACK else None
        yield Promise(
            item=clip(f"{mark.operation}{key}", 120),
            said=clip(f"{said}{who} as mark {mark.order + 1:,}", 200),
            step=clip(f"{item.step}: {item.text}", 200) if item is not None and item.step else "",
            line=clip(item.line, 200) if item is not None else "",
            why=clip(f"{item.why}; {then}", 400) if item is not None else then,
        )


def _strip(steps: RunSteps | None) -> Iterator[StripRow]:
    relied = {item.step for item in steps.lost if item.step} if steps is not None else set()
    for step in (steps.steps if steps is not None else ())[:STRIP_MAX]:
        mark = step.mark
        key = "" if mark is None or mark.key is None else f" {mark.key}"
        if mark is not None and mark.operation.startswith(_OWN_NOTES):
            if mark.operation == _FAULT_NOTE:
                yield StripRow(number="", kind="crash", text="it came to the time of the fault", process=mark.agent)
            continue
        yield StripRow(
            number="" if mark is not None else f"{step.number:,}",
            kind="mark" if mark is not None else "done",
            text=clip(step.text if mark is None else f"it said {mark.kind} {mark.operation}{key}", 200),
            process=clip(step.agent, 60),
            line=clip(step.line, 160),
            relied=mark is None and step.number in relied,
            syncs=step.syncs,
        )


def _watched(steps: RunSteps | None) -> str:
    if steps is None:
        return ""
    if steps.problem:
        return clip(f"The durable steps could not be watched: {steps.problem}", 400)
    of_which = "a replay with the same finding" if steps.is_repeat else "this run"
    return f"The steps are those of {of_which}, {steps.total:,} in all."


def _find_out(pack: Pack, named: Sequence[Mark], steps: RunSteps | None) -> str:
    """Return the command that joins what was lost with a step, where that is not done yet."""
    is_lost = any(mark.kind is MarkKind.ACK for mark in named)
    is_known = steps is not None and any(step.line for step in steps.steps)
    if is_known or pack.verdict is not Verdict.VIOLATED or not is_lost or (steps is not None and steps.problem):
        return ""
    command, dashes, own = pack.reproduce.partition(" -- ")
    return clip(f"{command} --steps{dashes}{own}", 2_000) if command.startswith("chaos replay ") else ""


def _acknowledged(pack: Pack) -> Iterator[str]:
    counts: defaultdict[str, int] = defaultdict(int)
    for mark in pack.marks:
        if mark.kind is MarkKind.ACK:
            counts[mark.operation] += 1
    for operation, count in list(counts.items())[:20]:
        yield clip(operation, 80) + (f" ({count:,} times)" if count > 1 else "")


def _shrunk(shrunk: Shrunk | None) -> str:
    if shrunk is None:
        return ""
    runs = f", found in {plural(shrunk.runs, 'run')}" if shrunk.runs else ""
    are = "is" if len(shrunk.faults) == 1 else "are"
    smaller = [f"{clip(name, 60)} {before} → {now}" for name, (before, now) in list(shrunk.sizes.items())[:20]]
    smaller += [f"{clip(name, 60)} = {clip(str(now), 200)}" for name, (_, now) in list(shrunk.drawn.items())[:20]]
    more = [f" Workload: {', '.join(smaller)}."] * bool(smaller)
    more += [f" Again in a process of its own: {shrunk.repeated} of {shrunk.replays} runs."] * bool(shrunk.replays)
    if not shrunk.is_whole:
        more.append(" The budget was used up: a smaller one may be there.")
    if not shrunk.faults:
        return f"No fault of {shrunk.faults_before:,} is needed for the same finding{runs}.{''.join(more)}"
    of = f"{plural(len(shrunk.faults), 'fault')} of {shrunk.faults_before:,} {are} enough"
    return f"{of} for the same finding{runs}.{''.join(more)}"


def _plan(pack: Pack) -> Iterator[str]:
    for fault in pack.plan.faults if pack.plan is not None else ():
        parameters = f" {msgspec.json.encode(fault.parameters).decode()}" if fault.parameters else ""
        yield clip(f"{fault.kind} {fault.agent} {describe_when(fault.when)}{parameters}", 400)
