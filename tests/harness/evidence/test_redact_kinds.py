"""200 generated secrets of 40 kinds leave the text;
a corpus of what evidence consists of stays as it is.

The secrets are drawn from a seed when the test runs, so that none is in the repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from pytest_chaos.evidence.redact import MASK, Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

_HEX: Final = "0123456789abcdef"
_ALNUM: Final = string.ascii_letters + string.digits
_UPPER: Final = string.ascii_uppercase + string.digits
_EACH: Final = 5


class Draw:
    """Draws secrets; a random one has a letter of each case and a digit, as nearly all have."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - test data, the same on every machine

    def of(self, alphabet: str, length: int) -> str:
        """Return ``length`` letters of an alphabet."""
        return "".join(self._random.choice(alphabet) for _ in range(length))

    def mixed(self, length: int = 24) -> str:
        """Return letters of both cases and digits."""
        parts = [self.of(string.ascii_lowercase, 2), self.of(string.ascii_uppercase, 2), self.of(string.digits, 2)]
        return self.of(string.ascii_lowercase, 1) + "".join(parts)[::-1] + self.of(_ALNUM, length - 7)

    def base64(self, length: int = 33) -> str:
        """Return base64 with its padding."""
        return base64.b64encode(self._random.randbytes(length)).decode()

    def password(self) -> str:
        """Return a word with digits, as people choose."""
        return self._random.choice(["hunter", "sword", "Tiger", "winter"]) + self.of(string.digits, 3) + "!"


def _jwt(draw: Draw) -> str:
    return f"eyJ{draw.mixed(20)}.eyJ{draw.mixed(30)}.{draw.mixed(43)}"


def _row(name: str, secret: str) -> str:
    return json.dumps({"id": 7, "name": "smtp", name: secret})


KINDS: Final[dict[str, tuple[Callable[[Draw], str], str]]] = {
    "aws key id": (lambda d: "AKIA" + d.of(_UPPER, 16), "using {} in eu-west-1"),
    "aws secret": (lambda d: d.base64(30), "aws_secret_access_key = {}"),
    "aws presigned": (lambda d: d.of(_HEX, 64), "GET /o?X-Amz-Date=20260101&X-Amz-Signature={}&x=1"),
    "aws session token": (lambda d: d.base64(60), "X-Amz-Security-Token: {}"),
    "azure account key": (lambda d: d.base64(64), "AccountName=x;AccountKey={};EndpointSuffix=core"),
    "azure sas": (lambda d: d.mixed(40) + "%3D", "https://x.blob/y?sv=2024&se=2026&sig={}&sp=r"),
    "azure client secret": (lambda d: "abc8Q~" + d.mixed(34), "login with {} failed"),
    "docker auth": (lambda d: d.base64(18), '{{"auths": {{"registry": {{"auth": "{}"}}}}}}'),
    "docker token": (lambda d: "dckr_pat_" + d.mixed(27), "docker login, {}"),
    "github": (lambda d: "ghp_" + d.mixed(36), "remote: {}"),
    "github pat": (lambda d: "github_pat_" + d.mixed(60), "x {} y"),
    "gitlab": (lambda d: "glpat-" + d.mixed(20), "PRIVATE: {}"),
    "slack": (lambda d: f"xoxb-{d.of(string.digits, 11)}-{d.mixed(24)}", "posting with {}"),
    "slack hook": (lambda d: f"T0{d.of(_UPPER, 8)}/B0{d.of(_UPPER, 8)}/{d.mixed(24)}", "hooks.slack.com/services/{}"),
    "stripe": (lambda d: "sk_live_" + d.mixed(24), "charge by {}"),
    "openai": (lambda d: "sk-proj-" + d.mixed(48), "model asked with {}"),
    "anthropic": (lambda d: "sk-ant-" + "api03-" + d.mixed(48), "model asked with {}"),
    "google": (lambda d: "AIza" + d.mixed(35), "maps?key={}"),
    "npm": (lambda d: "npm_" + d.mixed(36), "//registry/:_authToken={}"),
    "pypi": (lambda d: "pypi-" + d.mixed(80), "twine upload -p {}"),
    "sendgrid": (lambda d: f"SG.{d.mixed(22)}.{d.mixed(43)}", "mail {}"),
    "digitalocean": (lambda d: "dop_v1_" + d.of(_HEX, 64), "droplet {}"),
    "databricks": (lambda d: "dapi" + d.of(_HEX, 32), "cluster {}"),
    "vault": (lambda d: "hvs." + d.mixed(30), "unsealed {}"),
    "telegram": (lambda d: f"{d.of(string.digits, 9)}:AA{d.mixed(33)}", "bot{}/sendMessage"),
    "shopify": (lambda d: "shpat_" + d.of(_HEX, 32), "shop {}"),
    "jwt": (_jwt, "session {} ended"),
    "bearer": (lambda d: d.mixed(30), "Authorization: Bearer {}"),
    "basic": (lambda d: d.base64(20), "Authorization: Basic {}"),
    "cookie": (lambda d: d.mixed(32), "Set-Cookie: sid={}; HttpOnly"),
    "url": (Draw.password, "postgresql://app:{}@db:5432/app"),
    "private key": (
        lambda d: f"{d.base64(48)}\n{d.base64(48)}",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
    ),
    "token option": (lambda d: d.mixed(16), "agent --token {} --port 80"),
    "password option": (Draw.password, "agent --db-password {} --port 80"),
    "api key option": (lambda d: d.mixed(20), "agent --api-key {}"),
    "short option": (Draw.password, "mysql -u app -p{} shop"),
    "user option": (Draw.password, "curl -s -u admin:{} http://127.0.0.1/"),
    "prose": (Draw.password, "the password is {} and nobody may know"),
    "pgpassword": (Draw.password, "PGPASSWORD={} psql"),
    "authkey": (lambda d: d.mixed(20), "TS_AUTHKEY={}"),
    "signing": (lambda d: d.of(_HEX, 40), "WEBHOOK_SIGNING={}"),
    "json password": (Draw.password, '{{"user": "x", "db_password": "{}"}}'),
    "nested json": (Draw.password, r"said {{\"client_secret\": \"{}\"}}"),
    "yaml": (Draw.password, "database:\n  password: {}\n  port: 5432\n"),
    "sql": (Draw.password, "ALTER USER app WITH PASSWORD '{}'"),
    "identified by": (Draw.password, "CREATE USER app IDENTIFIED BY '{}'"),
    "netrc": (Draw.password, "machine db login app password {}"),
    "argv as a list": (lambda d: d.mixed(16), "['agent', '--api-key', '{}', '--port', '80']"),
    "xml": (Draw.password, "<server><password>{}</password></server>"),
    "password hash": (lambda d: "$2b$12$" + d.mixed(53), "row 7, {}"),
}
"""How a secret of each kind is drawn, and where it stands."""

CASES: Final = [(kind, place) for kind in KINDS for place in range(_EACH)]


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_a_generated_secret_is_masked(kind: str, place: int) -> None:
    """Every kind of secret is masked whole, and what stands around it stays."""
    draw, template = KINDS[kind]
    secret = draw(Draw(1000 * place + list(KINDS).index(kind)))
    text = "before it\n" + template.format(secret) + "\nafter it"
    masked = Redactor().text(text)
    assert MASK in masked
    assert all(part not in masked for part in secret.splitlines())
    assert masked.startswith("before it\n")
    assert masked.endswith("\nafter it")
    assert Redactor().text(masked) == masked


def test_there_are_enough_kinds_and_secrets() -> None:
    """The brief of the redactor: 200 secrets of 40 kinds, none twice."""
    secrets = {KINDS[kind][0](Draw(1000 * place + list(KINDS).index(kind))) for kind, place in CASES}
    assert len(KINDS) >= 40
    assert len(secrets) == len(CASES) >= 200


@pytest.mark.parametrize(
    "name", ["password", "api_key", "apiKey", "AUTHKEY", "client_secret", "refreshToken", "pgpassword"]
)
def test_a_row_of_a_database_is_masked_by_its_columns(name: str) -> None:
    """A column of a secret-like name is masked whatever it holds,
    as is a setting of such a name.
    """
    assert Redactor().json({"id": 7, name: "plain words"}) == {"id": 7, name: MASK}
    assert Redactor().json({"key": name, "value": "plain words"}) == {"key": name, "value": MASK}
    assert Redactor().json([name, "plain words"]) == [name, MASK]
    assert Redactor().json({name: {"blob": "00ff", "bytes": 2}}) == {name: MASK}
    assert "plain words" not in Redactor().text(_row(name, "plain words"))


def test_an_argv_is_masked_by_its_options() -> None:
    """What follows an option of a secret-like name is masked whole, spaces and all."""
    argv = ["agent", "--password", "two words", "--token", "abc", "--port", "80", "--token", "--verbose", "-pHunter22"]
    assert Redactor().words(argv) == [
        "agent", "--password", MASK, "--token", MASK, "--port", "80", "--token", "--verbose", f"-p{MASK}",
    ]  # fmt: skip


_DIGEST: Final = hashlib.sha256(b"x").hexdigest()
_UUID: Final = str(uuid.UUID(int=random.Random(7).getrandbits(128)))  # noqa: S311 - test data

HARMLESS: Final = [
    f'{{"path": "database/main.sqlite", "size_bytes": 8192, "sha256": "{_DIGEST}"}}',
    f"{_DIGEST}  chaos-results/sessions/20261129T110000-5eed5eed5eed-ab12/records.jsonl",
    f"sha1 {hashlib.sha1(b'x').hexdigest()}, md5 {hashlib.md5(b'x').hexdigest()}",  # noqa: S324 - what a text may hold
    f"request {_UUID} by {uuid.uuid5(uuid.NAMESPACE_DNS, 'x')}",
    f"idempotency_key={_UUID} cache_key={_DIGEST} fencing_token=12",
    "seed 0x5eed5eed5eed; chaos replay chaos-results/sessions/20261129T110000-5eed-ab12/evidence/test_a-0001",
    "tests/test_token.py::test_the_password_is_asked[secret-key] --chaos-seed=8f14e45fceea167a",
    '{"signature": "expectation:no acknowledged row is lost", "kind": "safety"}',
    '{"signature": "check:order-4711-create was lost", "session": "20261129T110000-8f14e45f-ab12"}',
    "SELECT id, password, token FROM users WHERE api_key IS NOT NULL AND token = ?",
    "CREATE TABLE users (id INTEGER, password TEXT NOT NULL, token TEXT, secret BLOB)",
    "INSERT INTO leases (item, lease_token, expires) VALUES (1, 2, 3)",
    "The password is never stored. The token is compared with the one in the row; the secret is not shown.",
    "A fencing token is a number that rises with every grant. Its key: none. A pass rate of 99.5 %.",
    "authentication failed: invalid signature, expected 3 parts, got 2",
    "keys: 12, tokens: 1234567890, max_tokens=4096000000, monkey=business turkey: roast",
    "def login(user: str, password: str, token: bytes | None = None) -> None:",
    "password = getpass()  token=self.token  api_key=settings.api_key",
    "docker run -p 8080:80 -p127.0.0.1:5432:5432 -u 1000:1000 postgres",
    "pytest -p no:randomly -p no:cacheprovider -k token -n 2 --token-limit 5 --max-keys 7",
    "find . -path ./secret -prune -o -print -perm 644",
    "https://example.invalid/path?page=2&key=name&sort=asc#password",
    "/home/user/project/secrets/tokens/keys.py:12: AssertionError: 3 != 4",
    "agent 'writer' (pid 4711) is in state S, with 3 ack put, 3 intent put; its last output:",
    "lease_token=7 claim_token: 12 next_token=eyJwYWdlIjoyfQ page_token=CAUQAA8f14e45f",
    "commit 05ba6a4c1d2e3f40516273849506a7b8c9d0e1f2 (HEAD -> main)",
    "power:ext4:4m2:1.w crash:57 io:write:12:ENOSPC recovery:3/9",
    "password=None token=null secret: '' api_key=${API_KEY} pwd=%s passwd={passwd} auth=<none>",
    "PWD=/work/main OLDPWD=/work SSH_AUTH_SOCK=/tmp/ssh-abc/agent.123",
    "basic tests, bearer of news, cookie jar, session 12, digest of keys",
    "kernel Linux 6.8.0-45-generic x86_64; pytest-chaos 1.0.0; sqlite 3.45.1",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    """Digests, ids, seeds, paths, SQL, code and prose about secrets are what
    evidence consists of.
    """
    assert Redactor().text(text) == text


def test_our_own_pages_stay() -> None:
    """Nothing in our own documents is a secret, however much they speak of tokens."""
    root = Path(__file__).resolve().parents[3]
    for name in ("README.md", "CHANGELOG.md", "docs/design.md", "docs/glossary.md", "docs/architecture.md"):
        text = (root / name).read_text()
        assert Redactor().text(text) == text, name
