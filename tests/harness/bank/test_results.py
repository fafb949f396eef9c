"""The outcome of an entry: shown only if the bug is found by name and the mended form holds."""

from __future__ import annotations

import pytest
from pytest_chaos.bank.entries import BankEntry
from pytest_chaos.bank.results import FormResult, judge, not_run, result_of, verdict_of
from pytest_chaos.model.values import Verdict

ENTRY = BankEntry(
    title="A note is lost", reports=("owner/repository#1",), kind="kill mid-write", promise="It is there.",
    engine="explore", expects=("lost",), allows=("damaged",), subject="own program", read="excerpt",
    reproduced="It is.", mended="It is not.", name="notes",
)  # fmt: skip
HELD = FormResult(form="mended", verdict=Verdict.HELD)


def form(*found: str, verdict: Verdict = Verdict.VIOLATED, problem: str = "", plan: str = "") -> FormResult:
    """Return what a form has found."""
    return FormResult(form="reported", verdict=verdict, found=found, text="it is gone", problem=problem, plan=plan)


@pytest.mark.parametrize(
    ("reported", "mended", "outcome", "said"),
    [
        (form("lost"), HELD, "shown", "lost was found, and the mended form held"),
        (form("damaged", "lost"), HELD, "shown", "damaged, lost was found"),
        (form("damaged"), HELD, "not shown", "must show lost; got damaged"),
        (form(verdict=Verdict.HELD), HELD, "not shown", "must show lost; got nothing"),
        (form("lost", "other"), HELD, "not shown", "shows other, too, which the entry does not expect"),
        (form("lost"), form("lost"), "not held", "the mended form must hold; got lost: it is gone"),
        (form("lost", verdict=Verdict.INCONCLUSIVE, problem="no steps"), HELD, "undecided", "be judged: no steps"),
        (form("lost"), form(verdict=Verdict.INCONCLUSIVE, problem="it hung"), "undecided", "mended form .* it hung"),
        (form("lost", plan="[1]"), HELD, "undecided", "both forms must run under the same plan"),
    ],
)
def test_the_outcome(reported: FormResult, mended: FormResult, outcome: str, said: str) -> None:
    """Whatever else comes out is said in a sentence, and is not green."""
    found, sentence = judge(ENTRY, reported, mended)
    assert found == outcome
    assert all(part in sentence for part in said.split(" .* "))


def test_only_a_bank_in_which_all_is_shown_held() -> None:
    """Skipped and undecided are INCONCLUSIVE, other findings VIOLATED, and so is nothing run."""
    shown = result_of(ENTRY, form("lost"), HELD)
    missing = result_of(ENTRY, form(verdict=Verdict.HELD), HELD)
    skipped = not_run(ENTRY, "skipped", "no network")
    assert verdict_of([shown]) is Verdict.HELD
    assert verdict_of([shown, skipped]) is Verdict.INCONCLUSIVE
    assert verdict_of([skipped, shown, missing]) is Verdict.VIOLATED
    assert verdict_of([]) is Verdict.INCONCLUSIVE
