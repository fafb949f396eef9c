"""The ten lines that let somebody see a finding again: what was done, what is on the disk, what the check says."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.explore.result import Discovery
    from harness.explore.session import Session
    from harness.model import Mark

_BEFORE: Final = 3
_MARKS: Final = 2


def reproduction(session: Session, found: Discovery, *, command: str = "", folder: str = "") -> str:
    """Return the text; ``command`` is the beginning of the command line that explores this target, if there is one."""
    steps = session.recorded.recording.durable()
    marks = session.recorded.marks[: found.marks]
    lines = [f"{session.subject.name}: {found.text}", f"  {found.label}: {found.state}"]
    lines += [f"  it had made step {step}" for step in steps[max(0, found.step - 1 - _BEFORE) : found.step - 1]]
    if found.step <= len(steps):
        lines.append(f"  and was about to make {steps[found.step - 1]}")
    lines += [f"  it had said {_said(mark)}" for mark in marks[-_MARKS:]]
    count = "1 state" if found.states <= 1 else f"{found.states:,} states"
    lines.append(f"  seen in {count}{f' under the model {found.model}' if found.model else ''}")
    if folder:
        lines.append(f"  the state: {folder}")
    again = f"{command} --seed {shlex.quote(session.options.seed)} --state '{found.code}'"
    lines.append(f"  again: {again if command else 'chaos replay, with the evidence pack that this is in'}")
    return "\n".join(lines) + "\n"


def _said(mark: Mark) -> str:
    key = "" if mark.key is None else f" {mark.key}"
    return f"{mark.kind} {mark.operation}{key}"
