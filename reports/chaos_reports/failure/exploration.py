"""What the failure page of an exploration says, and what its story adds to the page of a run.

Only the comparison of states reads files.
"""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Final

from pytest_chaos.model.values import Verdict

from chaos_reports.failure.difference import Difference, compare
from chaos_reports.failure.history import crash_place, of_recording
from chaos_reports.failure.left import OUTPUT_LINES_MAX, printed
from chaos_reports.failure.values import CauseView, Compared, Fired, HeatCell, HeatRow, Page, Promise, Row, StripRow
from chaos_reports.figures import clip, duration, moment, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pytest_chaos.model.story import CauseStory, Reference, Story

    from chaos_reports.failure.source import Source, Told

CAUSES_MAX: Final = 20
LINES_MAX: Final = 40
LOST_MAX: Final = 40
STRIP_BEFORE: Final = 8
STRIP_AFTER: Final = 4
HEAT_CELLS_MAX: Final = 250
HEAT_SHARE_MIN: Final = 0.2
"""The faintest cell: one wrong step of many is still to be seen."""
UNREADABLE: Final = "INCONCLUSIVE"


def of_exploration(source: Source) -> Page:
    """Return the page of an exploration."""
    story = source.stories[0].story
    causes = list(story_causes(source.stories))
    causes += [CauseView(title=clip(text, 400), is_harness=True) for text in story.undecided[:CAUSES_MAX]]
    return Page(
        label=Verdict.VIOLATED if story.verdict == Verdict.VIOLATED else UNREADABLE,  # no other has a story
        sentence=story_sentence(story),
        title=clip(story.target, 200),
        kicker="exploration",
        facts=tuple(_story_facts(story)),
        receipts=tuple(
            Fired(
                what=each.family,
                fired=each.states > 0 or each.verdict == "not explored",
                look={"HELD": "held", "VIOLATED": "fired"}.get(each.verdict, "unfired"),
                evidence=clip(
                    f"{each.verdict}: {each.outcome}; {each.states:,} judged, {each.confirmed:,} by real processes", 400
                ),
            )
            for each in story.families
        ),
        again=clip(_again(story), 2_000),
        again_note="" if _again(story) else "The target was given as an object: run its test again.",
        causes=tuple(causes[: CAUSES_MAX * 2]),
        causes_omitted=story.causes_omitted + max(0, len(causes) - CAUSES_MAX * 2),
        agents=tuple(printed(source.stories)),
        notes=tuple(clip(note, 600) for note in story.notes),
        versions=tuple(Row(name=name, value=clip(value, 80)) for name, value in sorted(story.versions.items())),
        problems=tuple(clip(text, 600) for text in source.problems),
        has_story=True,
    )


def _again(story: Story) -> str:
    if story.causes:
        return story.causes[0].again
    return f"{story.command} --seed {shlex.quote(story.seed)}" if story.command else ""


def story_sentence(story: Story) -> str:
    """Return in one sentence where the target was struck, and what was wrong then.

    A story without causes has its first finding, or says that nothing is known.
    """
    if not story.causes:
        said = story.findings[0].text if story.findings else "no finding was recorded"
        said = said.removeprefix("without any fault: ")
        if story.findings and story.findings[0].kind == "race":
            return f"{clip(story.target, 80)} is wrong in another order of its threads or processes: {clip(said, 400)}"
        return f"{clip(story.target, 80)} is wrong without any fault: {clip(' '.join(said.split()), 400)}"
    lead = story.causes[0]
    name = clip(story.target, 80)
    where = f" at {lead.line}" if lead.line else ""
    step = f"step {lead.step:,} of {story.steps:,}"
    when = f"before {step}" if lead.step <= story.steps else "after its last step"
    what = f" ({lead.at.partition(': ')[2]})" if lead.at else ""
    text = clip(" ".join(lead.text.split()), 300)
    if lead.family == "power" and lead.lost:
        relied = lead.lost[0]
        said = f"When the power is lost {when}, {name} breaks its promise: {text}"
        if not 0 < relied.step < lead.step:
            return f"{said}."
        synced = "" if relied.is_synced else ", which nothing had synced"
        return f"{said}; it was acknowledged after {clip(relied.line or relied.text, 200)}{synced}."
    how = {
        "crash": f"Killed{where} {when}{what}, {name} breaks its promise",
        "recovery": f"Killed {when}, and again while it recovered, {name} breaks its promise",
        "power": f"When the power is lost{where} {when}{what}, {name} breaks its promise",
        "io": f"When {step} fails{where}{what}, {name} breaks its promise",
    }.get(lead.family, f"{name} breaks its promise")
    return f"{clip(how, 400)}: {text}."


def _story_facts(story: Story) -> Iterator[Row]:
    yield Row(name="Target", value=clip(story.target, 120))
    yield Row(name="Seed", value=clip(story.seed, 80), is_code=True)
    yield Row(name="Durable steps", value=f"{story.steps:,}")
    yield Row(name="Schedules", value=f"{story.schedules:,}")
    yield Row(name="Steps seen by", value=clip(story.source or "not known", 40))
    yield Row(name="Ended", value=moment(clip(story.started or "not known", 40)))
    yield Row(name="Duration", value=duration(story.duration_s))


def story_causes(stories: Iterable[Told]) -> Iterator[CauseView]:
    """Yield the causes and findings of stories."""
    for told in stories:
        for cause in told.story.causes:
            yield _story_cause(told, cause)
        for finding in told.story.findings:
            head, *also = finding.text.split("\n")
            yield CauseView(
                title=clip(head, 400),
                is_harness=False,
                facts=(Row(name="Kind", value=finding.kind), Row(name="Signature", value=clip(finding.signature, 200))),
                lines=tuple(clip(line, 400) for line in also[:LINES_MAX]),
            )


def _story_cause(told: Told, cause: CauseStory) -> CauseView:
    facts = [
        Row(name="Struck", value=clip(cause.state, 400)),
        Row(name="How sure", value=_certainty(cause)),
        Row(name="Seen in", value=_seen(cause)),
    ]
    facts += [Row(name="Program line", value=clip(cause.line, 200), is_code=True)] if cause.line else []
    facts.append(Row(name="State code", value=clip(cause.code, 200), is_code=True))
    return CauseView(
        title=clip(" ".join(cause.text.split()), 400),
        is_harness=False,
        facts=tuple(facts),
        lines=tuple(clip(line, 500) for line in cause.variants[:LINES_MAX]),
        lines_omitted=max(0, len(cause.variants) - LINES_MAX),
        again=clip(cause.again, 2_000),
        output=tuple(clip(line, 400) for line in cause.output.splitlines()[-OUTPUT_LINES_MAX:]),
        promises=tuple(
            Promise(
                item=clip(f"{item.mark.operation}{'' if item.mark.key is None else f' {item.mark.key}'}", 120),
                said="acknowledged",
                step=clip(f"{item.step}: {item.text}", 200) if item.step else "",
                line=clip(item.line, 200),
                why=clip(item.why, 300),
            )
            for item in cause.lost[:LOST_MAX]
        ),
        chart=of_recording(cause),
        strip=tuple(_strip(cause)),
        compared=tuple(_compared(told.root, cause)),
        neighbour=_neighbour(cause, told.story.steps),
        heat=tuple(_heat(cause, told.story.steps)),
        steps=told.story.steps,
        at=_thousandth(cause.step, told.story.steps),
    )


def _seen(cause: CauseStory) -> str:
    counted = "; a state counts once for each family and each model" if cause.variants else ""
    return plural(cause.states, "state") + counted


def _certainty(cause: CauseStory) -> str:
    if cause.label == "modelled":
        model = f" under the model {cause.model}" if cause.model else ""
        return f"modelled{model}: the state was built from the recording, not left by a real process"
    return cause.label


def _neighbour(cause: CauseStory, steps: int) -> str:
    before, after = cause.neighbour, cause.after
    if before is None and after is None:
        return ""
    at = f"at {cause.step:,}" if cause.step <= steps else "after the last step"
    said = []
    lost = f"lost {at}"
    if before is not None:
        if before.code in {f"crash:{cause.step}", f"crash:{cause.step}m{cause.marks}"} and cause.family == "power":
            struck = f"before step {before.step:,}" if before.step <= steps else "after the last step"
            said.append(f"survives a kill {struck}, where no write is lost")
        elif before.step == cause.step:
            said.append("survives before the last mark")
            lost = f"lost after it ({at})"
        else:
            said.append(f"survives at {before.step:,}")
    said.append(lost)
    if after is not None:
        said.append(f"survives again at {after.step:,}")
    return ", ".join(said)


def _strip(cause: CauseStory) -> Iterator[StripRow]:
    crash = crash_place(cause)
    relied = {item.step for item in cause.lost if item.step}
    near = range(max(0, crash - STRIP_BEFORE), min(len(cause.steps), crash + STRIP_AFTER))
    wanted = {place for place, step in enumerate(cause.steps) if step.mark is None and step.number in relied}
    for place in sorted({*near, *list(wanted)[:10]}):
        step = cause.steps[place]
        if step.mark is not None:
            key = "" if step.mark.key is None else f" {step.mark.key}"
            kind, number, text = "mark", "", f"it said {step.mark.kind} {step.mark.operation}{key}"
        else:
            kind, number, text = "done", f"{step.number:,}", step.text
        if place >= crash:
            kind = "not-made"
        yield StripRow(
            number=number,
            kind="next" if place == crash else kind,
            text=clip(text, 200),
            process=f"{step.process}",
            line=clip(step.line, 160),
            relied=step.mark is None and step.number in relied,
            syncs=step.syncs,
        )


def _compared(root: Path, cause: CauseStory) -> Iterator[Compared]:
    """Yield the found state against the promised one, and against the neighbour."""
    if not cause.folder:
        return
    found = f"{cause.folder}/directory"
    before: Difference | None = None
    for reference, title in (
        (cause.promised, "The state that was found, against the state that was promised"),
        (cause.neighbour, "The state that was found, against its neighbour that survives"),
    ):
        if reference is None:
            continue
        text = _reference_text(reference, is_promise=reference is cause.promised)
        if not reference.folder:
            difference = Difference(files=(), problem="that state was too large to be kept")
        else:
            difference = compare(root, found, reference.folder)
        if before is not None and difference == before and not difference.problem:
            difference = Difference(files=(), problem="it differs in the same way as the promised one")
        before = difference
        yield Compared(title=title, text=text, difference=difference)


def _reference_text(reference: Reference, *, is_promise: bool) -> str:
    if is_promise:
        return f"Promised: the folder {reference.text}. Minus was promised and is not there, plus is there and was not."
    neighbour = f"The neighbour: {reference.text} ({reference.code}), in which the check finds nothing."
    return f"{neighbour} Minus is in the neighbour alone, plus in the state that was found."


def _heat(cause: CauseStory, steps: int) -> Iterator[HeatRow]:
    places = max(1, steps + 1)
    bins = min(places, HEAT_CELLS_MAX)
    for family, struck in cause.struck.items():
        counts = Counter(min(bins - 1, max(0, step - 1) * bins // places) for step in struck)
        yield HeatRow(
            family=family,
            cells=tuple(
                HeatCell(
                    x=place * 1000 // bins,
                    width=(place + 1) * 1000 // bins - place * 1000 // bins,
                    share=round(min(1.0, max(HEAT_SHARE_MIN, count * bins / places)), 2),
                )
                for place, count in sorted(counts.items())
            ),
            title=f"{family}: wrong at {plural(len(struck), 'step')} of {steps:,}",
        )


def _thousandth(step: int, steps: int) -> int:
    return 0 if steps <= 0 else min(1000, max(0, (step - 1) * 1000 // (steps + 1)))
