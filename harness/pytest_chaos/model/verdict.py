"""The judgement of a run: from its findings, receipts and assertions, and the end of its test.

The worst finding wins; an undecided run is INCONCLUSIVE, never a pass. A run whose planned fault
did not fire, or that asserted nothing, has proved nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.errors import AgentError, ChaosError, WaitExpired
from pytest_chaos.model.values import Assertion, Finding, Receipt, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode(errors="replace").decode()


def of_error(error: BaseException) -> Finding:
    """Return the finding that an exception of the test stands for.

    An assertion that fails, a bound that expires and an agent that ends by itself speak about the
    target. A timeout, an interruption or any other exception says only that the run came to no
    answer.
    """
    kind = type(error).__name__
    text = encodable((str(error) or kind).strip())
    if isinstance(error, WaitExpired):
        return Finding(signature="liveness:wait-expired", text=text, kind="liveness")
    if isinstance(error, AgentError):
        return Finding(signature="liveness:agent-ended", text=text, kind="liveness")
    if isinstance(error, AssertionError):
        return Finding(signature="assertion", text=text)
    if isinstance(error, ChaosError):
        return Finding(signature=f"harness:{kind}", text=text, kind="harness")
    if kind == "Failed" and text.startswith("Timeout"):
        return Finding(signature="harness:timeout", text=f"the test ran into its time limit: {text}", kind="harness")
    if kind == "Inconclusive":
        return Finding(signature="harness:inconclusive", text=text, kind="harness")
    if kind == "Failed":
        return Finding(signature="assertion", text=text)
    return Finding(signature=f"harness:{kind}", text=f"the test ended with {kind}: {text}", kind="harness")


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
        Finding(
            signature=f"harness:fault-not-fired:{receipt.kind}",
            text=f"{receipt.kind} of {receipt.agent!r} {receipt.when} did not fire: {receipt.evidence}",
            kind="harness",
        )
        for receipt in receipts
        if not receipt.fired
    ]


NOTHING_ASSERTED = Finding(
    signature="harness:nothing-asserted",
    text="the run recorded no key assertion, so it proves nothing: call chaos.expect(name, observed=..., holds=...)",
    kind="harness",
)


def of_run(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict of all findings of a run; without any, it held."""
    return Verdict.worst([Verdict.HELD, *(finding.verdict for finding in findings)])
