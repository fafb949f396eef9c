"""The judgement of a run: from its findings, receipts and assertions, and the end of its test.

The rule, and the only place where it is written in code:

* **VIOLATED**: the target did something that it must not, and the evidence shows it. An assertion
  or expectation failed, a checker found something, or a wait ran out, or lost its agent, that the
  test calls *owed*.
* **INCONCLUSIVE**: the test, the harness or the machine did not get to judge. Each such finding has
  a sentence that says what to change.
* **HELD**: everything planned happened, something was asserted or checked, and all of it held.

The worst finding wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import AgentError, ChaosError, SpawnError, TooLate, UsageError, WaitExpired
from pytest_chaos.model.signatures import keys_of, without_keys
from pytest_chaos.model.values import Assertion, Finding, Receipt, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.model.values import Mark, RunRecord

REASON_CHARACTERS_MAX: Final = 400
"""Limit of a line that says why a run did not hold; the record has all of it."""
AGENT_FAILED: Final = "harness:agent-failed"
"""The signature of an agent that failed by itself, which nothing in the test expected."""

FAULT_RAISED: Final = "the code of the fault raised"
"""The beginning of the evidence in the receipt of a fault whose own code failed."""

NOT_SEEN: Final = "it was fired and not seen to happen"
"""The beginning of the evidence in the receipt of a fault that the agent has not felt."""

HINT: Final = "hint"
"""The note with sentences about what a run that held cannot have shown."""

NO_MARK: Final = (
    "no agent wrote a mark, so nothing was promised and the history that the test reads is empty: let agents call "
    "marks.ack, or append lines to $CHAOS_MARKS"
)

ONLY_MOMENTS: Final = (
    "all planned faults came at moments, which seldom hit a narrow window: name points with at_point, or let "
    "explore crash the program at every step"
)

INTERRUPTED: Final = "harness:interrupted"
"""The signature of a run whose test was interrupted."""

_SIGNATURE_CHARACTERS: Final = 66
"""Of a text that a test gave as a finding, with its prefix."""
_CHECK: Final = "check"
_EXPECTATION: Final = "expectation"
_OWED: Final = "Raise timeout_s or mend the wait; give owed='why' if the target must do it in time"
_MAY_FAIL: Final = "Mend the agent; or expect its exit_status, or spawn it with may_fail=True"


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode(errors="replace").decode()


def harmless(text: str) -> str:
    """Return text that cannot steer a terminal: texts of a target may hold escape sequences."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def given(findings: object) -> tuple[Finding, ...]:
    """Return findings that a test gave, and texts as findings.

    Raises UsageError for any other type, and for an empty text.
    """
    listed = [findings] if isinstance(findings, str | Finding) else findings
    if isinstance(listed, Iterable) and not isinstance(listed, bytes | Mapping):
        listed = list(listed)
        wrong = [each for each in listed if not isinstance(each, Finding) and not (isinstance(each, str) and each)]
        if not wrong:
            return tuple(
                Finding(signature=f"{_CHECK}:{each}"[:_SIGNATURE_CHARACTERS], text=each)
                if isinstance(each, str)
                else each
                for each in listed
            )
        listed = wrong[0]
    msg = f"chaos.check must get findings or texts, none of them empty; got {listed!r:.100}. Give [] where all is well"
    raise UsageError(msg)


def without_keys_of(marks: Iterable[Mark], findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings; the signatures of texts and expectations lose the keys of the marks.

    So what is said of each key has one cause. A finding of a checker has a name that was chosen,
    and so has an expectation that is a key and nothing else.
    """
    keys = keys_of(marks)
    if not keys:
        return list(findings)
    return [msgspec.structs.replace(each, signature=_without(each, keys)) for each in findings]


def _without(finding: Finding, keys: frozenset[str]) -> str:
    kind, _, said = finding.signature.partition(":")
    if kind == _EXPECTATION and said not in keys:
        return f"{kind}:{without_keys(said, keys)}"
    if kind == _CHECK:  # a key may be cut in the signature
        whole = finding.text if finding.text.startswith(said) else said
        return f"{kind}:{without_keys(whole, keys)}"[:_SIGNATURE_CHARACTERS]
    return finding.signature


def of_error(error: BaseException) -> Finding:
    """Return the finding that an exception of the test stands for.

    An assertion that fails speaks about the target, and so does a wait for what the target owed.
    Any other exception says only that the run came to no answer.
    """
    if isinstance(error, BaseExceptionGroup):
        found = [of_error(each) for each in error.exceptions]
        return next((each for each in found if each.verdict is Verdict.VIOLATED), found[0])
    kind = type(error).__name__
    text = encodable((str(error) or kind).strip())
    if isinstance(error, WaitExpired | AgentError):
        return _of_wait(error, text)
    if isinstance(error, AssertionError):
        return Finding(signature="assertion", text=text)
    if isinstance(error, SpawnError):
        return _undecided(kind, f"{text}. Mend the agent's target, its arguments or its imports")
    if isinstance(error, ChaosError) or kind == "Inconclusive":
        return _undecided("inconclusive" if kind == "Inconclusive" else kind, text)
    if kind == "Failed":
        return _of_failed(text)
    if isinstance(error, KeyboardInterrupt) or kind == "Exit":
        return _undecided(INTERRUPTED.partition(":")[2], f"the test was interrupted ({text}). Run it again")
    return _undecided(kind, f"the test ended with {kind}: {text}. Mend the test, or assert what the target must do")


def _of_wait(error: WaitExpired | AgentError, text: str) -> Finding:
    ending = "wait-expired" if isinstance(error, WaitExpired) else "agent-ended"
    if isinstance(error, AgentError) and error.by_fault:
        remedy = "Wait for that before the fault comes, or start the agent again first"
        return _undecided("ended-by-fault", f"{text}\n  {remedy}")
    if error.owed:
        return Finding(signature=f"liveness:{ending}", text=f"{encodable(error.owed)}: {text}", kind="liveness")
    if isinstance(error, TooLate):
        return _undecided("too-late", text)
    return _undecided(ending, f"{text}\n  {_OWED}")


def _of_failed(text: str) -> Finding:
    """Return the finding of pytest's own failure: ``pytest.fail``, a time limit, an async test."""
    if text.startswith("Timeout"):
        remedy = "Give the test more time, or its waits less"
        return _undecided("timeout", f"the test ran into its time limit: {text}\n  {remedy}")
    if text.startswith("async def functions are not natively supported"):
        text = "the test is async, and no plugin runs it, so nothing was tested"
        return _undecided(
            "async-test", f"{text}. Install pytest-asyncio or anyio and mark the test, or write it with def"
        )
    return Finding(signature="assertion", text=text)


def _undecided(ending: str, text: str) -> Finding:
    return Finding(signature=f"harness:{ending}", text=text, kind="harness")


def of_assertions(assertions: Iterable[Assertion]) -> list[Finding]:
    """Return a finding for every key assertion that does not hold."""
    return [
        Finding(signature=f"expectation:{assertion.name}", text=f"{assertion.name}: {assertion.observed}")
        for assertion in assertions
        if not assertion.holds
    ]


def of_receipts(receipts: Iterable[Receipt]) -> list[Finding]:
    """Return a finding for every planned fault that did not fire: its run proves nothing."""
    return [
        _undecided(
            f"fault-not-fired:{receipt.kind}",
            f"{receipt.kind} of {receipt.agent!r} {receipt.when} did not fire: {receipt.evidence}"
            f"{'' if receipt.evidence.endswith('?') else '.'} {_remedy(receipt)}",
        )
        for receipt in receipts
        if not receipt.fired
    ]


def _remedy(receipt: Receipt) -> str:
    if receipt.evidence.startswith(FAULT_RAISED):
        return "Mend the code of the fault, or give it other parameters"
    if receipt.evidence.startswith(NOT_SEEN):
        return "Plan it so that the agent must feel it, and let the agent live until then"
    return "Plan a time that the agent comes to, and wait for it"


def of_failed_agents(descriptions: Iterable[str]) -> list[Finding]:
    """Return a finding for every agent that failed unexpectedly: its run is INCONCLUSIVE."""
    return [Finding(signature=AGENT_FAILED, text=f"{each}\n  {_MAY_FAIL}", kind="harness") for each in descriptions]


NOTHING_ASSERTED = Finding(
    signature="harness:nothing-asserted",
    text="the run recorded no key assertion, so it proves nothing: call chaos.expect(name, observed=..., holds=...)",
    kind="harness",
)


def of_run(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict of all findings of a run; without any, it held."""
    return Verdict.worst([Verdict.HELD, *(finding.verdict for finding in findings)])


def of_watched(findings: Sequence[Finding]) -> Assertion:
    """Return the key assertion of a run in which SQLite was watched."""
    observed = ", ".join(sorted({finding.signature for finding in findings})) or "no finding"
    return Assertion(name="nothing corrupts a SQLite database", observed=observed, holds=not findings)


def reason(record: RunRecord) -> str:
    """Return in a few lines why a run did not hold, for the failure of its test."""
    lines = [f"{record.verdict}: {record.scenario.title or record.scenario.id}"]
    lines += [
        f"  [{finding.signature}] {finding.text}"
        for finding in record.findings
        if finding.verdict is record.verdict or finding.signature == AGENT_FAILED
    ][:10]
    lines += [
        f"  fault: {receipt.kind} {receipt.agent} {receipt.when}: {receipt.evidence}" for receipt in record.receipts
    ][:10]
    return "\n".join(_clipped(harmless(line)) for text in lines for line in text.splitlines())


def _clipped(line: str) -> str:
    more = len(line) - REASON_CHARACTERS_MAX
    return line if more <= 0 else f"{line[:REASON_CHARACTERS_MAX]}… ({more:,} more character{'' if more == 1 else 's'})"
