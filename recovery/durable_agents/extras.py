"""Optional packages: an import that fails names the extra to install."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from durable_agents.errors import MissingPackage

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def optional_import(extra: str) -> Iterator[None]:
    """Turn a failed import in this block into MissingPackage, which names the extra.

    >>> with optional_import("server"):  # doctest: +ELLIPSIS
    ...     import no_such_package
    Traceback (most recent call last):
    durable_agents.errors.MissingPackage: no_such_package must be installed; got none. ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        message = f"{package} must be installed; got none. Run pip install 'durable-agents[{extra}]'."
        raise MissingPackage(message) from error
