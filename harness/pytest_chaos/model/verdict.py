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

from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import AgentError, ChaosError, SpawnError, TooLate, WaitExpired
from pytest_chaos.model.values import Assertion, Finding, Receipt, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AGENT_FAILED: Final = "harness:agent-failed"
"""The signature of an agent that failed by itself, which nothing in the test expected."""

FAULT_RAISED: Final = "the code of the fault raised"
"""The beginning of the evidence in the receipt of a fault whose own code failed."""

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

_OWED: Final = "Raise timeout_s or mend the wait; give owed='why' if the target must do it in time"
_MAY_FAIL: Final = "Mend the agent; or expect its exit_status, or spawn it with may_fail=True"


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode(errors="replace").decode()


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
        return _undecided("interrupted", f"the test was interrupted ({text}). Run it again")
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
