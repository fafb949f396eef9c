"""Masks secrets in text before it goes into a pack.

These are secrets: values registered in :data:`SECRETS` (``spawn(env=...)`` does that), values of
environment variables whose names look secret, authorisation headers and cookies, passwords in
connection strings, ``password=...`` and its kin, private keys, and tokens of well-known shapes.
Numbers are never secrets: the fencing tokens of a lease are evidence.

Existing scanners were not taken. Some, such as detect-secrets, judge by entropy, which would blank
the hashes and run ids that evidence consists of, and they return places, not text. The packages
that rewrite text are small lists of patterns like this one. A list misses unknown kinds: treat a
pack as you would treat the log.

A registered value is known to its process alone. A pack that a later session salvages is redacted
by patterns and by the environment of that session.
"""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_chaos.model.values import Json

MASK: Final = "[redacted]"
"""Stands in place of a secret."""

_REGISTERED_LENGTH_MIN: Final = 4
_ENVIRONMENT_LENGTH_MIN: Final = 8
_SECRET_PARTS: Final = {
    "secret", "secrets", "token", "password", "passwd", "pass", "pwd", "passphrase", "apikey", "key", "credential",
    "credentials", "dsn", "auth", "cookie", "private", "webhook",
}  # fmt: skip
_WORKING_DIRECTORIES: Final = {"PWD", "OLDPWD"}
# No pattern may look at a long run of letters from each of its places: that takes time by the
# square of the output.
_NAME: Final = (
    r"(?:password|passwd|passphrase|pwd(?!=/)|secret|secret[_-]?key|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|client[_-]?secret|(?:access|refresh|auth|id|api|bearer|session)[_-]?token|credentials?)"
)
_SECRET_NAME: Final = re.compile(rf"(?i).*{_NAME}|token|authorization|proxy-authorization|cookie|set-cookie|x-api-key")
_VALUE: Final = r"""[^\s"'\\,;&(){}\[\]<>]"""
_IS: Final = r"""\\?["']?\s*[=:]\s*\\?["']?"""
"""Between a name and its value, in a header, an assignment, JSON, or JSON inside of JSON."""
_UNMASKED: Final = rf"(?!{re.escape(MASK)})"
_NO_SECRET: Final = rf"(?![\d.]+\b|null\b|none\b|true\b|false\b|{re.escape(MASK)})"

_PRIVATE_KEY: Final = r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
_AUTHORIZATION: Final = (
    rf"(?i)\b((?:proxy-)?authorization{_IS}(?!\w+\s+{re.escape(MASK)})"
    rf"(?:(?:basic|bearer|digest|token|negotiate)\s+)?){_UNMASKED}{_VALUE}+"
)
_COOKIE: Final = rf"""(?i)(?<![\w-])((?:set-)?cookie{_IS})[^\r\n"'\\]+"""
_BEARER: Final = r"(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}"
_USER_IN_URL: Final = r"""(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*://[^\s:/@"'<>]*:)[^\s/"'<>]+(?=@)"""
_QUOTED: Final = rf"""(?i)({_NAME}\\?["']?\s*(?:=>|[=:])\s*(\\?["']))(?:(?!\2)[^\r\n]){{1,4096}}(?=\2)"""
_ASSIGNED: Final = rf"""(?i)({_NAME}\\?["']?\s*(?:=>|[=:])\s*){_NO_SECRET}{_VALUE}+"""
_TOKEN: Final = rf"(?i)(?<![\w-])(token{_IS})(?!\d+\b){_UNMASKED}[a-z0-9._~+/=-]{{8,}}"
_API_KEY_HEADER: Final = rf"(?i)\b(x-api-key{_IS}){_UNMASKED}{_VALUE}+"

_NAMED_PATTERNS: Final = (
    _AUTHORIZATION,
    _COOKIE,
    _BEARER,
    _USER_IN_URL,
    _QUOTED,
    _ASSIGNED,
    _TOKEN,
    _API_KEY_HEADER,
)
"""Secrets known by the words before them; the first group stays."""

_SHAPES: Final = (
    _PRIVATE_KEY,
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})",
    r"\b(?:sk|rk|pk)[-_](?:live|test|ant|proj|or)[-_][A-Za-z0-9_-]{8,}",
    r"\bsk-[A-Za-z0-9]{20,}",
    r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\bhooks\.slack\.com/services/[A-Za-z0-9/]+",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\bya29\.[A-Za-z0-9_-]{20,}",
    r"\b(?:hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{40,})",
    r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
)
"""Secrets known by their shape: private keys, and tokens with a service's prefix."""

_PATTERNS: Final = (
    *((re.compile(pattern), MASK) for pattern in _SHAPES),
    *((re.compile(pattern), rf"\1{MASK}") for pattern in _NAMED_PATTERNS),
)


class Secrets:
    """The registered secrets of this process."""

    def __init__(self) -> None:
        """Start with none."""
        self._values: set[str] = set()

    def add(self, value: str) -> None:
        """Register a value of at least four characters: a shorter one is in all texts."""
        if len(value) >= _REGISTERED_LENGTH_MIN:
            self._values.add(value)

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Register the values of an environment whose names look secret."""
        for value in secret_values(environment):
            self.add(value)

    @property
    def values(self) -> frozenset[str]:
        """The registered values."""
        return frozenset(self._values)


SECRETS: Final = Secrets()
"""The registry of this process."""


class Redactor:
    """Masks secrets in text and in JSON values.

    >>> Redactor(["hunter2!"]).text("login hunter2! with password=abc123xyz and fencing token 42")
    'login [redacted] with password=[redacted] and fencing token 42'
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Mask these values, in the forms they are written in, and all that looks secret."""
        forms = {form for secret in secrets for form in _forms(secret)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """Return the text with every secret masked."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def json(self, value: Json, name: str = "") -> Json:
        """Return the value with every secret masked; the ``name`` of its field may tell one."""
        match value:
            case str():
                return MASK if value and _SECRET_NAME.fullmatch(name) else self.text(value)
            case Mapping():
                return {self.text(str(key)): self.json(item, str(key)) for key, item in value.items()}
            case list() | tuple():
                return [self.json(item, name) for item in value]
        return value


def redactor(environment: Mapping[str, str] | None = None) -> Redactor:
    """Return the redactor of this process: its registry, and the secrets of an environment."""
    return Redactor({*SECRETS.values, *secret_values(os.environ if environment is None else environment)})


def secret_values(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the values of variables whose names look secret.

    Short values, numbers and paths of existing files are left out: ``SSH_AUTH_SOCK`` is no secret.
    """
    return frozenset(value for name, value in environment.items() if _is_secret(name, value))


def _is_secret(name: str, value: str) -> bool:
    if name in _WORKING_DIRECTORIES or _SECRET_PARTS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower())):
        return bool(re.search(r"://[^\s:/@]*:[^\s/]+@", value))
    if len(value) < _ENVIRONMENT_LENGTH_MIN or value.isdigit():
        return False
    return not (value.startswith("/") and os.path.exists(value))  # noqa: PTH110 - Path raises on what no path can be


def _forms(secret: str) -> set[str]:
    """Return the forms of a value in text: plain, in JSON, in a Python literal, in a URL."""
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], urllib.parse.quote(secret, safe="")}
