"""Draw the rooms and who imports whom, from the code's own imports:
the picture of docs/architecture.md.

``python -m tests.rooms`` writes it there; a test compares it with the code.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = {"pytest_chaos": "harness", "chaos_reports": "reports", "durable_agents": "recovery"}
DOCUMENT: Final = ROOT / "docs" / "architecture.md"
BEGIN: Final = "<!-- rooms: made from the code by python -m tests.rooms -->"
END: Final = "<!-- end of rooms -->"


def room_of(module: str) -> str:
    """Return the room of a module: ``pytest_chaos/trace`` for a folder,
    the package itself for a module at its root.
    """
    parts = module.split(".")
    folder = ROOT / PACKAGES[parts[0]] / parts[0] / parts[1] if len(parts) > 1 else None
    return f"{parts[0]}/{parts[1]}" if folder is not None and folder.is_dir() else parts[0]


def imports_at_runtime(tree: ast.Module) -> set[str]:
    """Return the modules of ours that a source imports when it runs;
    imports for types alone are left out.
    """
    found: set[str] = set()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES}
    return found


def edges() -> dict[str, set[str]]:
    """Return, per room, the rooms that it imports."""
    graph: dict[str, set[str]] = defaultdict(set)
    for package, root in PACKAGES.items():
        for path in sorted((ROOT / root / package).rglob("*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            here = room_of(module)
            graph[here] |= {room_of(name) for name in imports_at_runtime(ast.parse(path.read_text()))} - {here}
    return graph


def picture() -> str:
    """Return the rooms as a Mermaid flow chart, without the modules at the root of a package:
    all use them.
    """
    graph = edges()
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        lines += [
            f"    {_name(room)}[{room.partition('/')[2]}]" for room in sorted(graph) if room.startswith(f"{package}/")
        ]
        if package == "chaos_reports":
            lines.append(f"    {_name(package)}[reports]")
        lines.append("  end")
    for room, others in sorted(graph.items()):
        if room in {"pytest_chaos", "durable_agents"}:
            continue
        lines += [f"  {_name(room)} --> {_name(other)}" for other in sorted(others) if "/" in other]
    return "\n".join([*lines, "```"])


def _name(room: str) -> str:
    return room.replace("/", "_")


def with_picture(text: str) -> str:
    """Return the document with the picture between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_picture(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
