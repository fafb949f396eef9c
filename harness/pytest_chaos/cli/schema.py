"""The command ``chaos schema``: what the JSON of each command looks like, as JSON Schema.

Each document is a type; its schema is made from the type, and tests decode what the commands really
print with it. A command of another distribution names its documents in ``DOCUMENTS`` of its module.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP: Final = "chaos.commands"
DOCUMENTS: Final = {
    "bank list": "pytest_chaos.bank.results:BankListDocument",
    "bank run": "pytest_chaos.bank.results:BankDocument",
    "bisect": "pytest_chaos.cli.documents:BisectDocument",
    "check": "pytest_chaos.cli.documents:CheckDocument",
    "clean": "pytest_chaos.cli.documents:CleanDocument",
    "doctor": "pytest_chaos.cli.documents:DoctorDocument",
    "doubt": "pytest_chaos.mutate.doubt:DoubtDocument",
    "evidence show": "pytest_chaos.evidence.open:Pack",
    "evidence verify": "pytest_chaos.cli.documents:VerifyDocument",
    "explain": "pytest_chaos.cli.documents:ExplainDocument",
    "explore": "pytest_chaos.explore.document:ExplorationDocument",
    "explore --state": "pytest_chaos.explore.inspection:StateDocument",
    "init": "pytest_chaos.cli.documents:InitDocument",
    "inspect": "pytest_chaos.explore.inspection:StateDocument",
    "list": "pytest_chaos.cli.documents:ListDocument",
    "mark": "pytest_chaos.cli.documents:MarkDocument",
    "mutate": "pytest_chaos.mutate.results:PowerDocument",
    "mutate --list": "pytest_chaos.cli.documents:MutantsDocument",
    "points": "pytest_chaos.cli.documents:PointsDocument",
    "replay": "pytest_chaos.cli.documents:ReplayDocument",
    "shrink": "pytest_chaos.cli.documents:ShrinkDocument",
}
"""What each command prints with ``--json``: the words of the command, and the type."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def schema(*, command: tuple[str, ...]) -> None:
    """Print the JSON Schema of what COMMAND prints with --json; without one, list them.

    For example: chaos schema report --diff. A new key may come within a format; none changes its
    meaning, and a consumer should pass over the keys that it does not know.

    Exits 0, or 3 for a command without such a document.
    """
    known = documents()
    if not command:
        for name in sorted(known):
            click.echo(f"chaos {name}")
        return
    if (name := " ".join(command)) not in known:
        msg = f"schema must get a command that has --json; got {name!r}. There are: {', '.join(sorted(known))}"
        raise UsageError(msg)
    click.echo(msgspec.json.format(msgspec.json.encode(schema_of(name)), indent=1))


def documents() -> dict[str, str]:
    """Return the type of each document, as ``module:name``, by the words of its command."""
    found: dict[str, str] = dict(DOCUMENTS)
    for entry in entry_points(group=GROUP):
        try:
            named: Mapping[str, str] = getattr(importlib.import_module(entry.module), "DOCUMENTS", {})
            found |= named
        except Exception:  # noqa: BLE001, S112 - the group itself tells which command cannot be loaded
            continue
    return found


def type_of(name: str) -> Any:
    """Return the type of a document."""
    module, _, attribute = documents()[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document."""
    made = msgspec.json.schema(type_of(name), schema_hook=_text)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"chaos {name} --json", **made}


def _text(kind: type) -> dict[str, str]:
    if issubclass(kind, Path):
        return {"type": "string"}
    raise NotImplementedError
