"""Anything for options, plans, marks, records and check commands: no traceback, and no verdict
but the rule's.

The rule (docs/design.md) is written a second time here, as short functions of what each test draws.
Some tens of inputs a test by default. 10,000 a test, as each nightly run does:

    CHAOS_FUZZ_EXAMPLES=10000 pytest -n 2 tests/harness/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from chaos_reports.render import to_html, to_json, to_markdown
from chaos_reports.terminal import lines
from hypothesis import HealthCheck, example, given, settings, strategies as st
from pytest_chaos.errors import AgentError, ResultsError, UsageError, WaitExpired
from pytest_chaos.evidence import records
from pytest_chaos.explore.target import CheckError, CommandSubject
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model import campaign, plan, verdict
from pytest_chaos.model.history import History, MarkParser, not_marks
from pytest_chaos.model.values import (
    AfterMark,
    AtDelivery,
    AtMoment,
    AtPoint,
    AtStep,
    Fault,
    Finding,
    Mark,
    MarkKind,
    Now,
    Plan,
    PlannedRuns,
    Receipt,
    RunRecord,
    Scenario,
    SessionEnd,
    SessionHeader,
    Verdict,
)
from pytest_chaos.plugin.options import OPTIONS
from pytest_chaos.plugin.settings import collect
from pytest_chaos.runtime.journal import Journal, RunHeader
from pytest_chaos.runtime.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("CHAOS_FUZZ_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FUZZ = settings.get_profile("fuzz")

pytestmark = pytest.mark.timeout(4 * 3600)

NUMBERS = st.one_of(st.integers(), st.integers(10**19, 10**21), st.floats())
TEXTS = st.one_of(
    st.text(max_size=30), NUMBERS.map(str), st.sampled_from(["", "1", "1e20", "0.5", "md,html", "²", "\0"])
)
LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"kind":"ack","operation":"put","key":1}',
            b'{"kind":"ack","operation":"put","key":1,"order":99999999999999999999999}',
            b'{"kind":"nack"}',
            b"\xff\xfe",
            b"[" * 3000,
        ]
    ),
)
TIMES: st.SearchStrategy[Any] = st.one_of(
    st.builds(Now),
    st.builds(AtPoint, point=TEXTS, occurrence=st.integers()),
    st.builds(AtStep, step=TEXTS, path=TEXTS, occurrence=st.integers()),
    st.builds(AfterMark, kind=st.sampled_from(MarkKind), operation=TEXTS, count=st.integers(), agent=TEXTS),
    st.builds(AtMoment, delay_s=st.floats()),
    st.builds(AtDelivery, number=st.integers(), count=st.none() | st.integers(), path=TEXTS),
)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(st.integers(), max_size=2))
FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(sorted(REGISTRY)) | TEXTS,
    agent=TEXTS,
    when=TIMES,
    parameters=st.dictionaries(
        st.sampled_from(["duration_s", "share", "hold_s", "status"]) | TEXTS, VALUES, max_size=2
    ),
)
STATUS, HOLD = (int, 200, 599, None), (float, 0, 3600)
ERRORS = ("EHOSTUNREACH", "ECONNREFUSED", "ETIMEDOUT", None)
DIRECTION, NUMBER = ("both", "to-server", "to-client"), (int, 1, 10**9, None)
PARAMETERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "kill": {"tree": (bool,)},
    "terminate": {},
    "restart": {},
    "resume": {},
    "hold": {},
    "release": {},
    "pause": {"duration_s": (float, 0, 10**6, None)},
    "hold-lock": {"database": (str,), "duration_s": (float, 0, 10**6)},
    "link-latency": {"delay_s": HOLD, "jitter_s": HOLD, "direction": DIRECTION, "connection": NUMBER},
    "link-rate": {"bytes_per_s": (int, 1, 10**9), "direction": DIRECTION, "connection": NUMBER},
    "link-black-hole": {"direction": DIRECTION, "connection": NUMBER},
    "link-cut": {"after_bytes": (int, 0, 10**9), "reset": (bool,), "direction": DIRECTION, "connection": NUMBER},
    "link-reset": {"connection": NUMBER},
    "link-half-open": {"believes": ("client", "server"), "connection": NUMBER},
    "link-heal": {},
    "partition": {"cuts": ("writer | reader", "writer > *"), "error": ERRORS, "delay_s": HOLD},
    "unreachable": {"to": (str, "not blank"), "error": ERRORS, "delay_s": HOLD},
    "heal": {},
    "lose-delivery": {"status": STATUS},
    "delay-delivery": {"delay_s": HOLD},
    "duplicate-delivery": {"copies": (int, 2, 100), "at_once": (bool,)},
    "reorder-delivery": {"behind": (int, 1, 10_000), "hold_s": HOLD, "status": STATUS},
    "truncate-delivery": {"bytes_kept": (int, 0, 10**9, None)},
    "refuse-delivery": {"status": (int, 200, 599), "carried": (bool,)},
    "stall-delivery": {"hold_s": HOLD},
    "cut-delivery": {"carried": (bool,)},
    "cut-stream-delivery": {"event": NUMBER, "framed": (bool,), "reset": (bool,)},
    "trickle-delivery": {"bytes_each": (int, 1, 10**9), "pause_s": HOLD},
    "storm-delivery": {"retry_after_s": (int, 0, 86_400), "status": (int, 400, 599)},
    "malform-delivery": {"field": (str,)},
    "clock-jump": {"by_s": (float, -(2**63 // 10**9), 2**63 // 10**9), "everyone": (bool,)},
    "clock-drift": {"rate": (float, 0.001, 1000), "everyone": (bool,)},
    "clock-freeze": {"duration_s": (float, 0, 10**6, None), "everyone": (bool,)},
    "clock-heal": {"everyone": (bool,)},
    "clock-uptime": {"by_s": (int, 1, 10**9)},
    "limit-files": {"most": (int, 0, 2**50), "duration_s": (float, 0, 10**6, None)},
    "limit-processes": {"most": (int, 0, 2**50), "duration_s": (float, 0, 10**6, None)},
    "limit-file-size": {"most": (int, 0, 2**50), "duration_s": (float, 0, 10**6, None)},
    "limit-address-space": {"most": (int, 0, 2**50), "duration_s": (float, 0, 10**6, None)},
    "limit-memory": {"most": (int, 1, 2**50)},
    "limit-heal": {},
    "starve": {"duration_s": (float, 0.05, 10**6), "share": (float, 0.01, 0.9)},
    "crowd": {"duration_s": (float, 0.05, 10**6), "spinners": (int, 1, 64)},
}
"""What the documents say of each parameter: its type, its bounds, and None where it may be that."""
REQUIRED = {
    "hold-lock": {"database", "duration_s"},
    "partition": {"cuts"},
    "unreachable": {"to"},
    "clock-jump": {"by_s"},
    "clock-drift": {"rate"},
    "clock-uptime": {"by_s"},
    "limit-files": {"most"},
    "limit-processes": {"most"},
    "limit-file-size": {"most"},
    "limit-address-space": {"most"},
    "limit-memory": {"most"},
    "starve": {"duration_s"},
    "crowd": {"duration_s"},
}
WORDS = ["app.db", "both", "to-server", "client", "writer | reader", "writer > *", "*", "127.0.0.1:80"]
LIKELY_VALUES = VALUES | st.integers(0, 700) | st.floats(0, 5000) | st.sampled_from([*WORDS, *ERRORS])
LIKELY_TIMES: st.SearchStrategy[Any] = st.one_of(
    TIMES,
    st.builds(AtPoint, point=st.just("open"), occurrence=st.integers(0, 3)),
    st.builds(AtStep, step=st.sampled_from(["rename", "fsync"]), path=TEXTS, occurrence=st.integers(0, 3)),
    st.builds(AfterMark, kind=st.sampled_from(MarkKind), operation=st.just("put"), count=st.integers(0, 3)),
    st.builds(AfterMark, kind=st.just(MarkKind.ACK), operation=st.just("put"), agent=st.just("reader")),
    st.builds(AtMoment, delay_s=st.floats(-1, 10)),
    st.builds(AtDelivery, number=st.integers(0, 3), count=st.none() | st.integers(0, 3)),
)
LIKELY_FAULTS = st.sampled_from(sorted(PARAMETERS)).flatmap(
    lambda kind: st.builds(
        Fault,
        kind=st.just(kind),
        agent=st.just("writer"),
        when=LIKELY_TIMES,
        parameters=st.fixed_dictionaries({}, optional=dict.fromkeys(PARAMETERS[kind], LIKELY_VALUES)),
    )
)
COUNTS = st.integers(0, 60)
MISSING: Any = object()
FIELDS: dict[str, tuple[st.SearchStrategy[Any], list[Any]]] = {
    "kind": (st.sampled_from(["intent", "ack", "note"]), ["nack", "", 1, None, MISSING]),
    "operation": (st.text(max_size=5), [5, None, ["put"], MISSING]),
    "key": (st.none() | st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1) | st.just(MISSING), [1.5, True, [1]]),
    "value": (st.just(MISSING) | st.recursive(st.none() | st.text(max_size=3) | st.floats(-1, 1), st.lists), []),
    "agent": (st.text(max_size=5) | st.just(MISSING), [5, None]),
    "pid": (st.integers(0, 2**22) | st.just(MISSING), ["1", None, 0.5]),
    "knid": (st.just(MISSING), ["ack"]),
}
"""The fields of a mark: what each may be, and what none may be."""


class Line(NamedTuple):
    """A line of a mark file, and whether it is a mark, or one that was cut short."""

    content: bytes
    is_mark: bool
    is_cut: bool = False


@st.composite
def mark_lines(draw: st.DrawFn) -> Line:
    """Draw a mark, a line with one field that is wrong, the beginning of either, or anything."""
    if draw(st.integers(0, 5)) == 0:
        return Line(b"x" + draw(st.binary(max_size=30)).replace(b"\n", b""), is_mark=False)
    wrong = draw(st.none() | st.sampled_from([name for name, (_, values) in FIELDS.items() if values]))
    found = {name: draw(st.sampled_from(bad)) if name == wrong else draw(good) for name, (good, bad) in FIELDS.items()}
    fields = {name: value for name, value in found.items() if value is not MISSING}
    content = json.dumps(fields, ensure_ascii=draw(st.booleans())).encode()
    if draw(st.integers(0, 3)) == 0:
        return Line(content[: draw(st.integers(1, len(content) - 1))], is_mark=False, is_cut=True)
    return Line(content + draw(st.sampled_from([b"", b" ", b"\r"])), is_mark=wrong is None)


@FUZZ
@given(st.dictionaries(st.sampled_from([option.name for option in OPTIONS]), TEXTS), st.booleans())
def test_options_are_settings_or_one_sentence(given_options: dict[str, str], quick: bool) -> None:  # noqa: FBT001 - Hypothesis gives it
    """Whatever is written after an option: settings within their bounds,
    or a UsageError of one line a mistake.
    """
    try:
        found = collect(
            command_line=given_options,
            environment={},
            ini=lambda _: "",
            quick=quick,
            scenarios=(),
            replay=None,
            root=Path("/"),
        )
    except UsageError as error:
        said = str(error)
    else:
        said = ""
        assert 1 <= found.iterations <= plan.ITERATIONS_MAX
        assert 0 <= found.pass_rate_min <= 1
    wrong = {name for name, text in given_options.items() if not _is_option(name, text)}
    assert set(re.findall(r"--(chaos-[a-z-]+): must be", said)) == {name.replace("_", "-") for name in wrong}


def _is_option(name: str, text: str) -> bool:
    """Whether a text is a value of an option, as docs/reference/configuration.md says it."""
    if name in {"chaos_min_pass_rate", "chaos_prove"}:
        try:
            return 0 < float(text) < 1 or (name == "chaos_min_pass_rate" and float(text) in {0, 1})
        except ValueError:
            return False
    if name == "chaos_budget":
        found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h)?\s*", text)
        return found is not None and float(found[1]) > 0
    if name == "chaos_shard":
        found = re.fullmatch(r"\s*(\d{1,6})/(\d{1,6})\s*", text)
        return found is not None and 1 <= int(found[1]) <= int(found[2]) <= 10_000
    if name in {"chaos_iterations", "chaos_confirm"}:
        least, most = (1, 100_000) if name == "chaos_iterations" else (0, 1_000)
        return re.fullmatch(r"\s*\d{1,20}\s*", text) is not None and least <= int(text) <= most
    if name == "chaos_report":
        return set(text.replace(" ", "").split(",")) <= {"md", "html", "json", ""} or not text.strip()
    return True


def test_the_rules_know_each_fault() -> None:
    """A fault that is new has its rule here, too: the examples come to it by chance alone."""
    own = {kind for kind, each in REGISTRY.items() if type(each).__module__.startswith("pytest_chaos.")}
    assert own == PARAMETERS.keys()


@FUZZ
@given(st.lists(FAULTS | LIKELY_FAULTS, max_size=3))
def test_a_plan_is_carried_out_or_refused_in_words(faults: list[Fault]) -> None:
    """Any plan is described; it is valid, or its problems are told."""
    for fault in faults:
        assert plan.describe(fault)
    said = ""
    try:
        plan.validate(Plan(seed="s", scenario="x", faults=tuple(faults)), kinds=REGISTRY)
    except UsageError as error:
        said = str(error)
    assert ("plan" in said) == (not all(map(_is_fault, faults))), said


def _is_fault(fault: Fault) -> bool:
    """Whether a fault is documented, at a time and with parameters that it takes."""
    if fault.kind not in PARAMETERS or not (PARAMETERS[fault.kind].keys() >= fault.parameters.keys()):
        return False
    required, given = REQUIRED.get(fault.kind, set()), fault.parameters
    rules = PARAMETERS[fault.kind]
    of_another = getattr(fault.when, "agent", "") not in {"", fault.agent}
    return (
        isinstance(fault.when, _times_of(fault.kind))
        and not (fault.kind == "resume" and isinstance(fault.when, AtPoint | AtStep | AfterMark) and not of_another)
        and not (fault.kind == "hold" and of_another)
        and _is_time(fault.when)
        and required <= given.keys()
        and (fault.kind, given.get("by_s")) != ("clock-jump", 0)
        and (fault.kind, given.get("rate")) != ("clock-drift", 1)
        and not (fault.kind == "clock-freeze" and given.get("everyone") and given.get("duration_s") is not None)
        and not ("error" in rules and given.get("error", "") is None and not given.get("delay_s"))
        and all(_is_value(rules[name], value) for name, value in given.items())
    )


def _times_of(kind: str) -> tuple[type, ...]:
    if kind.endswith("-delivery"):
        return (AtDelivery,)
    if kind == "clock-uptime":
        return (Now,)
    return (AtStep,) if kind == "hold" else (Now, AtMoment, AtPoint, AtStep, AfterMark)


def _is_time(when: Any) -> bool:
    match when:
        case AtPoint(point=name, occurrence=count) | AfterMark(operation=name, count=count):
            return bool(name.strip()) and 1 <= count <= 10**9
        case AtStep(step=step, path=path, occurrence=count):
            return step == "rename" and not path.startswith("/") and 1 <= count <= 10**9
        case AtMoment(delay_s=delay_s):
            return 0 <= delay_s <= 10**6
        case AtDelivery(number=number, count=count):
            return 1 <= number <= 10**9 and (count is None or 1 <= count <= 10**9)
    return True


def _is_value(rule: tuple[Any, ...], value: Any) -> bool:
    kind, *bounds = rule
    if isinstance(kind, str):
        return value in rule
    if value is None:
        return None in bounds
    if kind in {bool, str}:
        return isinstance(value, kind) and ("not blank" not in bounds or bool(value.strip()))
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return bool(bounds[0] <= value <= bounds[1])


@FUZZ
@given(st.lists(LINES, max_size=5).map(b"\n".join), st.integers(0, 60))
def test_any_bytes_are_marks_or_torn_lines(content: bytes, cut: int) -> None:
    """Nothing in a mark file raises, and it reads the same in two parts."""
    whole, parser = History.from_lines(content), MarkParser()
    marks = [*parser.feed(content[:cut]), *parser.feed(content[cut:]), *parser.finish()]
    assert whole.marks == tuple(marks)
    assert len(whole.torn) == len(parser.torn)


@FUZZ
@given(drawn=st.lists(mark_lines(), max_size=4), killed=st.booleans())
@example(drawn=[Line(b'{"kind": "ack", "operation": "put", "key": -', is_mark=False, is_cut=True)], killed=True)
@example(drawn=[Line(b'{"kind": "ack", "operation": "put", "value": 1.', is_mark=False, is_cut=True)], killed=True)
@example(drawn=[Line(b'{"kind": "ack", "operation": "put", "value": 1e', is_mark=False, is_cut=True)], killed=True)
def test_a_line_that_is_no_mark_decides_nothing(drawn: list[Line], *, killed: bool) -> None:
    """Every mark is read, and every other line is INCONCLUSIVE, unless a kill may have cut it."""
    found = History.from_lines(b"\n\n".join(line.content for line in drawn))
    wrong = not_marks(found.torn, may_be_cut=killed)
    assert len(found.marks) == sum(line.is_mark for line in drawn)
    expected = any(not line.is_mark and not (killed and line.is_cut) for line in drawn)
    assert verdict.of_run(wrong) is (Verdict.INCONCLUSIVE if expected else Verdict.HELD), wrong


ENDS: dict[str, tuple[BaseException | None, Verdict]] = {
    "the end": (None, Verdict.HELD),
    "assert": (AssertionError("x"), Verdict.VIOLATED),
    "a wait that is owed": (WaitExpired("x", owed="y"), Verdict.VIOLATED),
    "an agent's end that is owed": (AgentError("x", owed="y"), Verdict.VIOLATED),
    "both": (ExceptionGroup("x", [ValueError("x"), AssertionError("x")]), Verdict.VIOLATED),
    "a wait": (WaitExpired("x"), Verdict.INCONCLUSIVE),
    "an agent's end by a fault": (AgentError("x", owed="y", by_fault=True), Verdict.INCONCLUSIVE),
    "a mistake": (ValueError("x\udcff"), Verdict.INCONCLUSIVE),
    "an interrupt": (KeyboardInterrupt(), Verdict.INCONCLUSIVE),
    "two mistakes": (ExceptionGroup("x", [ValueError("x"), WaitExpired("x")]), Verdict.INCONCLUSIVE),
}
NAMES = st.sampled_from(["a", "b"])
KINDS = st.sampled_from(["safety", "liveness", "harness"])


class Told(NamedTuple):
    """What a run is told: expectations, checks with the kinds of their findings, and its end."""

    expected: list[tuple[str, bool]]
    checked: list[tuple[str | None, list[Any]]]
    fired: list[bool]
    lines: list[Line]
    is_overwritten: bool
    end: str

    @property
    def verdict(self) -> Verdict:
        """The rule."""
        kinds = {kind for _, found in self.checked for kind in found}
        ended = ENDS[self.end][1]
        if not all(holds for _, holds in self.expected) or kinds - {"harness"} or ended is Verdict.VIOLATED:
            return Verdict.VIOLATED
        is_asserted = bool(self.expected) or any(name is not None for name, _ in self.checked)
        is_readable = all(line.is_mark for line in self.lines) and not self.is_overwritten
        if kinds or ended is not Verdict.HELD or not (all(self.fired) and is_asserted and is_readable):
            return Verdict.INCONCLUSIVE
        return Verdict.HELD


TOLD = st.builds(
    Told,
    st.lists(st.tuples(NAMES, st.booleans()), max_size=2),
    st.lists(st.tuples(st.none() | NAMES, st.lists(KINDS, max_size=1)), max_size=2),
    st.lists(st.booleans(), max_size=2),
    st.lists(mark_lines(), max_size=1),
    st.sampled_from([False, False, True]),
    st.sampled_from([*ENDS, *["the end"] * 10]),
)


@FUZZ
@given(TOLD)
@example(Told([("a", False)], [("a", [])], [], [], is_overwritten=False, end="the end"))
def test_a_run_has_the_verdict_of_the_rule(told: Told) -> None:
    """Whatever a run is told, and in whatever company."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        header = RunHeader(
            run_id="r", node_id="n", scenario=Scenario(id="x", title="x"), seed="s", session_folder=folder
        )
        journal = Journal(Path(folder, "run"))
        run = Run(journal, header, lambda: pytest.fail("nothing is started"))
        if told.is_overwritten:
            journal.marks_path.write_bytes(b"")
        with journal.marks_path.open("ab") as file:
            file.write(b"".join(b"\n" + line.content + b"\n" for line in told.lines))
        for name, found in told.checked:
            run.check([Finding(signature="f", text="f", kind=kind) for kind in found], expect=name)
        for name, holds in told.expected:
            run.expect(name, observed=holds, holds=holds)
        for fired in told.fired:
            run.receive(Receipt(kind="kill", agent="w", when="at once", fired=fired, evidence="signal 9"))
        record = run.conclude(ENDS[told.end][0])
    assert record.verdict is told.verdict, record.findings
    assert all(finding.text for finding in record.findings)


COMMAND = """#!/bin/sh
step=$1
[ "$step" = recover ] || [ "$(wc -l < "$CHAOS_MARKS")" -eq "$(cat marks)" ] || exit 77
cat "$step.out"
cat "$step.err" >&2
read -r how < "$step.how"
[ "$how" -ge 0 ] || kill "$how" $$
exit "$how"
"""
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PRINTED = st.one_of(
    st.just(b""), st.sampled_from([b"\n", b" \n\t", b"lost\n", b"\xff\xfe", b"\0", b"\x1b[31m"]), st.binary(max_size=20)
)
ENDINGS = st.one_of(
    st.sampled_from([0, 1]), st.integers(0, 255), st.sampled_from([-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP])
)
RECOVERIES = st.none() | st.just(0) | st.sampled_from([1, 126, 127, 255, -signal.SIGKILL])


def _judged_by(recovery: int | None, ending: int, printed: bytes) -> Verdict:
    """Return the verdict that docs/how-to/own-target.md gives of commands that end and print so."""
    if recovery in {126, 127}:
        return Verdict.INCONCLUSIVE
    if recovery:
        return Verdict.VIOLATED
    is_silent = not printed.decode(errors="replace").strip()
    if ending == 0 and is_silent:
        return Verdict.HELD
    return Verdict.VIOLATED if ending == 1 and not is_silent else Verdict.INCONCLUSIVE


@FUZZ
@given(RECOVERIES, ENDINGS, PRINTED, PRINTED, st.integers(0, 3))
def test_a_check_command_has_the_verdict_of_the_rule(
    recovery: int | None, ending: int, printed: bytes, said: bytes, marks: int
) -> None:
    """A real command that ends and prints anything: 0 in silence, 1 with findings, or undecided."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        here = Path(folder)
        for name, content in {
            "marks": b"%d" % marks,
            "check.how": b"%d\n" % ending,
            "check.out": printed,
            "check.err": said,
            "recover.how": b"%d\n" % (recovery or 0),
            "recover.out": printed,
            "recover.err": said,
        }.items():
            (here / name).write_bytes(content)
        command = ["sh", "-c", COMMAND, "sh"]
        recover = [] if recovery is None else [*command, "recover"]
        subject = CommandSubject(["true"], [*command, "check"], recover=recover, timeout_s=600)
        file = here / "marks.jsonl"
        file.write_bytes(History((Mark(kind=MarkKind.ACK, operation="put"),) * marks).to_json_lines())
        try:
            found = subject.check_with_file(here, file)
            judged = verdict.of_run(found)
        except CheckError as error:
            found = [Finding(signature="harness:x", text=str(error), kind="harness")]
            judged = Verdict.INCONCLUSIVE
    assert judged is _judged_by(recovery, ending, printed), found
    assert all(each.text.encode() and each.signature.encode() for each in found)
    if judged is Verdict.VIOLATED and said.decode(errors="replace").strip() and not recovery:
        assert all("standard error" in each.text for each in found)


@FUZZ
@given(st.lists(st.sampled_from(["safety", "liveness", "clean-run", "harness"]), max_size=4))
def test_the_worst_finding_is_the_verdict(kinds: list[Any]) -> None:
    """VIOLATED only by the target's findings, HELD only without any."""
    found = verdict.of_run([Finding(signature="x", text="x", kind=kind) for kind in kinds])
    expected = Verdict.VIOLATED if set(kinds) - {"harness"} else Verdict.INCONCLUSIVE if kinds else Verdict.HELD
    assert found is expected


@FUZZ
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 1))
def test_what_is_missing_is_never_green(held: int, violated: int, inconclusive: int, missing: int, rate: float) -> None:
    """HELD is whole; VIOLATED stays so however the missing runs would have ended."""
    found = campaign.judge(held, violated, inconclusive, rate, missing)
    if found is Verdict.HELD:
        assert not missing
        assert held or (violated and not rate)
    if found is Verdict.VIOLATED:
        assert violated
        assert campaign.judge(held + missing, violated, inconclusive, rate) is Verdict.VIOLATED


def _session(verdicts: Sequence[Verdict], planned: int, skipped: int) -> list[bytes]:
    import msgspec

    scenario = Scenario(id="x", title="x")
    header = SessionHeader(
        session="s", seed="s", started="2026", planned=(PlannedRuns(scenario=scenario, runs=planned, deselected=1),)
    )
    runs = [
        RunRecord(scenario=scenario, node_id="t", run_id=f"t-{place}", seed="s", verdict=each, iteration=place)
        for place, each in enumerate(verdicts)
    ]
    return [msgspec.json.encode(each) for each in (header, *runs, SessionEnd(skipped={"x": skipped}))]


@FUZZ
@given(st.lists(st.sampled_from(Verdict), max_size=4), COUNTS, st.integers(0, 3), st.none() | LINES, st.integers(0, 5))
def test_records_are_a_matrix_or_one_sentence(
    verdicts: list[Verdict], planned: int, skipped: int, noise: bytes | None, place: int
) -> None:
    """Any line between the others: a matrix in four formats that is green only if it is whole,
    or an error.
    """
    content = _session(verdicts, planned, skipped)
    if noise is not None:
        content.insert(place, noise)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        Path(folder, "records.jsonl").write_bytes(b"".join(line + b"\n" for line in content))
        try:
            found = records.read(Path(folder))
        except ResultsError as error:
            assert "records.jsonl" in str(error)  # noqa: PT017 - either is right
            return
    matrix = campaign.summarise(found)
    shown = [to_html(matrix), to_markdown(matrix), to_json(matrix), "\n".join(lines(matrix))]
    assert (matrix.missing > 0) == (planned - len(verdicts) - skipped > 0)
    if matrix.missing:
        assert matrix.verdict is not Verdict.HELD
        assert all("not made" in text for text in shown)
