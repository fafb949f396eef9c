"""Sphinx: the site, made from docs/, from docstrings and from the command line.

``sphinx-build -W -b html docs build/docs`` builds it. The result works from ``file://`` and asks no
other host: the theme brings its own style and script. Sphinx and not MkDocs, because its search
works without a server, and because it has had releases since 2024.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Final

from pygments.lexers.special import TextLexer
from pytest_chaos.plugin.options import FLAGS, OPTIONS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pytest-chaos"
author = "the authors of pytest-chaos"
copyright = author  # noqa: A001 - Sphinx's name for it
release = installed("pytest-chaos")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_llm.txt",
]
exclude_patterns = ["_build"]
nitpicky = False  # annotations name types that are no part of the reference

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"pytest-chaos {release}"
html_copy_source = True
html_show_sphinx = False
toc_object_entries = False  # the sidebar has pages, and copies of it are what a build costs
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_remove_prompts = True

llms_txt_description = (
    "A pytest plugin, and a command, that proves or disproves that a program survives kills, pauses, races, power"
    " losses and lost webhooks. It uses real processes and real signals, and keeps evidence for every verdict."
)
llms_txt_full_build = True
llms_txt_nested_enabled = False
llms_txt_suffix_mode = "replace"
llms_txt_suppress_unknown_node_warnings = ["abbreviation", "meta"]  # keyword-only marks; descriptions


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _options_table() -> str:
    """Return the plugin's options as a table: one source, so the page stays true."""
    rows = [
        _row(f"`{each.flag}={each.metavar}`", f"`{each.name}`", f"`{each.variable}`", each.help) for each in OPTIONS
    ]
    for flag in FLAGS:
        metavar = flag.arguments.get("metavar")
        rows.append(_row(f"`{flag.flag}={metavar}`" if metavar else f"`{flag.flag}`", "", "", flag.help))
    return _row("option", "ini value", "environment", "meaning") + _row("---", "---", "---", "---") + "".join(rows)


myst_substitutions: Final = {"plugin_options": _options_table()}


def _read(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Show a graph in Mermaid's language as a table, since its script is 3 MB; describe the page.

    The description is the page's first sentence. ``llms.txt`` lists it.
    """
    text = re.sub(r"```mermaid\n(.*?)```", lambda graph: _table_of(graph.group(1)), source[0], flags=re.DOTALL)
    if (paragraph := re.match(r"# [^\n]*\n\n([\w`*].*?)\n\n", text, flags=re.DOTALL)) is not None:
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)|[*`]", r"\1", paragraph[1]).replace("\n", " ")
        sentence = re.split(r"(?<=[.]) ", plain)[0]
        text = f"---\nmyst:\n  html_meta:\n    description: {json.dumps(sentence)}\n---\n{text}"
    source[0] = text


def _table_of(graph: str) -> str:
    imports: dict[str, list[str]] = {}
    for importer, imported in re.findall(r"^\s*(\w+) --> (\w+)$", graph, flags=re.MULTILINE):
        imports.setdefault(importer, []).append(imported)
    rows = [_row(importer, ", ".join(sorted(all_imported))) for importer, all_imported in imports.items()]
    return _row("room", "imports") + _row("---", "---") + "".join(rows)


def _literal_patterns(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Keep ``*.log`` in the help of an option from being read as emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def _literal_tables(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Show indented blocks of a module's docstring as they stand: tables of names, and code."""
    if what != "module":
        return
    for number in range(len(lines) - 1, 0, -1):
        if lines[number].startswith("    ") and not lines[number - 1].strip():
            said = next((line for line in reversed(lines[:number]) if line.strip()), "")
            if not said.startswith("    ") and not said.endswith("::"):
                lines[number:number] = ["::", ""]


def setup(app: Sphinx) -> None:
    """Register what the pages need beyond the extensions."""
    app.connect("sphinx-click-process-options", _literal_patterns)
    app.connect("autodoc-process-docstring", _literal_tables)
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", _read)
