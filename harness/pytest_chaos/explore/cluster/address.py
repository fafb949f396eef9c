"""The address of a cluster: ``local:4``, ``tcp://host:8786``, or ``slurm:8``."""

from __future__ import annotations

import enum
import importlib.util
import re
import shutil
from typing import Final, NamedTuple

from pytest_chaos.errors import UsageError

WORKERS_MAX: Final = 1024
"""Upper bound on the workers that an address may ask for: a typing error must not start more."""
SLURM_WORKERS: Final = 4
"""The jobs of ``slurm`` without a number."""
RULE: Final = f"local:N or slurm:N with N from 1 to {WORKERS_MAX:,}, slurm, or tcp://HOST:PORT (tls://HOST:PORT)"
_LOCAL: Final = re.compile(r"(local|slurm):(\d{1,9})")
_REMOTE: Final = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_PORT_MAX: Final = 65_535
EXTRA: Final = "pip install 'pytest-chaos[cluster]'"


class Kind(enum.StrEnum):
    """Where the workers of a cluster come from."""

    LOCAL = "local"
    SLURM = "slurm"
    REMOTE = "remote"


class Address(NamedTuple):
    """An address that was read. ``workers`` is 0 where a scheduler that runs already has them."""

    kind: Kind
    text: str
    workers: int = 0
    host: str = ""
    port: int = 0


def read_address(text: str) -> Address:
    """Return what an address says. Raises UsageError for a malformed one.

    >>> read_address("local:4").workers, read_address("tcp://10.0.0.7:8786").port
    (4, 8786)
    >>> read_address("local:0")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    pytest_chaos.errors.UsageError: cluster must be local:N ...; got 'local:0'. Give local:2 ...
    """
    words = text.strip()
    if words == Kind.SLURM:
        return Address(Kind.SLURM, words, SLURM_WORKERS)
    if (match := _LOCAL.fullmatch(words)) and 1 <= int(match[2]) <= WORKERS_MAX:
        return Address(Kind(match[1]), words, int(match[2]))
    if (match := _REMOTE.fullmatch(words)) and 1 <= int(match[3]) <= _PORT_MAX:
        return Address(Kind.REMOTE, words, host=match[2].strip("[]"), port=int(match[3]))
    msg = f"cluster must be {RULE}; got {text[:80]!r}. Give local:2 to try it on this machine"
    raise UsageError(msg)


def require_extra(address: Address) -> None:
    """Raise UsageError if a package or a program that this address needs is not installed."""
    needed = {"distributed": EXTRA, "cloudpickle": EXTRA}
    if address.kind is Kind.SLURM:
        needed["dask_jobqueue"] = "pip install dask-jobqueue"
    for module, how in needed.items():
        if importlib.util.find_spec(module) is None:
            name = module.replace("_", "-")
            msg = f"cluster {address.text} must have the package {name}; got none of it here. Install it: {how}"
            raise UsageError(msg)
    if address.kind is Kind.SLURM and shutil.which("sbatch") is None:
        msg = f"cluster {address.text} must be used where SLURM's sbatch is on the PATH; got none. Log in there"
        raise UsageError(msg)
