"""Write the table of docs/bank.md from the entries themselves.

``python -m tests.bank_page`` does; a test compares the page with the entries.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.bank.entries import default_folder, read_bank

if TYPE_CHECKING:
    from pytest_chaos.bank.entries import Bank

DOCUMENT: Final = Path(__file__).resolve().parents[1] / "docs" / "bank.md"
BEGIN: Final = "<!-- entries: made from the bank by python -m tests.bank_page -->"
END: Final = "<!-- end of entries -->"


def table(bank: Bank) -> str:
    """Return the entries by kind, and the reports that were not reproduced, as Markdown."""
    lines = [
        "| kind | entry, subject | report | what is shown, and by which finding | mended |",
        "|---|---|---|---|---|",
    ]
    for entry in sorted(bank.entries.values(), key=lambda each: (each.kind, each.name)):
        shown = f"{entry.title}: `{'`, `'.join(entry.expects)}`"
        if entry.left_out:
            shown += f". Left out: {entry.left_out}"
        cells = (entry.kind, f"`{entry.name}`, {entry.subject}", ", ".join(entry.reports), shown, entry.mended)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    if bank.not_reproduced:
        lines += ["", "Not reproduced:", ""]
        lines += [f"- {each.report} ({each.kind}): {each.reason}" for each in bank.not_reproduced]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(read_bank(default_folder()))}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
