"""Logs: a line that must never be there, in the output of any agent or in any file.

The idea is Jepsen's ``log-file-pattern``: a panic, a failed assertion or a data race that the
target has noticed itself is a finding, whatever clients saw.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_chaos.checkers import Bare, findings_of
from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos.model.values import Finding


def log_pattern(pattern: str, logs: Mapping[str, str]) -> tuple[Finding, ...]:
    """Find lines of logs, by name, in which a regular expression is found: ``logs:pattern``.

    Raises UsageError for what is no regular expression, and for no log at all: it would find
    nothing whatever happened.

    >>> (finding,) = log_pattern("panic|assert", {"worker": "panic: no key"})
    >>> finding.text
    "1 lines match 'panic|assert': worker:1: panic: no key"
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        msg = f"the pattern must be a regular expression; got {pattern!r} ({error}). Escape it with re.escape"
        raise UsageError(msg) from error
    if not logs:
        msg = f"logs must name at least one log to look for {pattern!r} in; got none. Give names and texts"
        raise UsageError(msg)
    found = [
        Bare(f"{name}:{number}: {line.strip()}")
        for name, text in logs.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if wanted.search(line)
    ]
    return findings_of("logs:pattern", f"{len(found)} lines match {pattern!r}", found)
