"""``chaos mark``: writes one mark from any shell, as ``marks.ack(...)`` does in Python."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final

import click
import msgspec

from pytest_chaos.cli.documents import MarkDocument
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import MarkKind
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARKS_VARIABLE, write_mark

_NUMBER: Final = re.compile(r"0|-?[1-9]\d{0,17}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("kind", type=click.Choice([*map(str, MarkKind)]))
@click.argument("operation")
@click.argument("key", required=False)
@click.option("--value", help="More to be said, as JSON: --value '{\"bytes\": 12}'.")
@click.option("--json", "as_json", is_flag=True, help="Print the mark, and whether it was written, as JSON.")
def mark(*, kind: str, operation: str, key: str | None, value: str | None, as_json: bool) -> None:
    """Write one mark to the file that CHAOS_MARKS names: chaos mark ack order 7.

    KIND is intent (before an operation), ack (after it: it must not be lost any more) or note. A
    KEY of digits is a number. Outside of a run nothing is written. Without this command it is one
    line, appended at once:

    \b
    printf '\\n{"kind": "ack", "operation": "order", "key": %d}\\n' 7 >> "$CHAOS_MARKS"

    Exits 0, or 3 for a mistake in the call.
    """  # noqa: D301 - click's mark for lines that stay as they are
    said: dict[str, Any] = {
        "kind": kind,
        "operation": operation,
        "key": int(key) if key is not None and _NUMBER.fullmatch(key) else key,
        "value": _value(value),
        "agent": os.environ.get(AGENT_VARIABLE, ""),
        "pid": os.getppid(),  # the shell's: an intent and its ack come from one process
    }
    path = os.environ.get(MARKS_VARIABLE)
    if as_json:
        click.echo(msgspec.json.encode(MarkDocument(written=bool(path), **said)))
    if not path:
        click.echo(f"chaos mark: {MARKS_VARIABLE} is not set, so this is no run; nothing was written", err=True)
        return
    try:
        write_mark(path, said)
    except (OSError, ValueError) as error:
        msg = f"{MARKS_VARIABLE} must name the mark file of a run; got {path}: {error}. Leave it as the run has set it"
        raise UsageError(msg) from error


def _value(text: str | None) -> object:
    """Return the value of a mark. Raises UsageError."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"--value must be JSON; got {text!r} ({error}). Quote a text twice: --value '\"text\"'"
        raise UsageError(msg) from error
