"""Secrets leave the text, evidence stays in it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.evidence.redact import MASK, Redactor, Secrets, redactor, secret_values

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('{"Authorization": "Bearer abcdef123"}', "abcdef123"),
        ("{'authorization': 'token s3cr3tvalue'}", "s3cr3tvalue"),
        ("curl -H 'X-Api-Key: k-9f8e7d'", "k-9f8e7d"),
        ("Set-Cookie: session=0af31b; HttpOnly", "0af31b"),
        ("postgresql://app:hunter2@db.internal:5432/app", "hunter2"),
        ("redis://:hunter2@cache/0", "hunter2"),
        ("amqp://user:p@ss@host/", "p@ss"),
        ("connecting with password=hunter2 host=db", "hunter2"),
        ('"client_secret": "two words"', "two words"),
        (r"a mark said {\"password\": \"hunter2\"}", "hunter2"),
        ("DB_PASSWORD=hunter2", "hunter2"),
        ('{"dbPassword": "hunter2"}', "hunter2"),
        ("Server=db;Uid=sa;Pwd=hunter2;", "hunter2"),
        ("aws_access_key => wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("https://api.example/v1?access_token=zzz-yyy&page=2", "zzz-yyy"),
        ("token: 8f14e45fceea167a", "8f14e45fceea167a"),
        ("pushed with ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
        ("key AKIA" + "ABCDEFGH12345678", "AKIA" + "ABCDEFGH12345678"),
        ("sk-ant-" + "api03-abcdefgh12345678", "api03-abcdefgh12345678"),
        ("jwt eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----", "MIIEabc"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEcut off here", "MIIEcut"),
    ],
)
def test_a_secret_is_masked(text: str, secret: str) -> None:
    """Each known way of writing a secret down loses the secret and says that
    something was there.
    """
    masked = Redactor().text(text)
    assert secret not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "fencing_token: 12 held by worker-3",
        'lease granted: {"fencing_token": 12, "lease_token": 4711}',
        "token=7",
        "idempotency_key=order-4711-create",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "tests/scenarios/test_kill.py::test_kill[at-commit] --chaos-seed 0x5eed5eed5eed",
        "tokens_saved: 1234567890, max_tokens=4096000000",
        "http://localhost:8080/path@2x.png",
        "password=None, password: null",
        "the cookie jar is empty",
        "PWD=/work/main OLDPWD=/work",
    ],
)
def test_evidence_is_left_alone(text: str) -> None:
    """Fencing tokens, hashes, keys of operations and seeds are what a pack is for."""
    assert Redactor().text(text) == text


def test_what_stands_around_a_secret_stays() -> None:
    """A masked line still says what happened where."""
    masked = Redactor().text("GET https://user:pw123@host/x failed, password='abc' tried 3 times")
    assert masked == f"GET https://user:{MASK}@host/x failed, password='{MASK}' tried 3 times"


def test_masking_twice_changes_nothing_more() -> None:
    """Text that was redacted by an agent already is not mangled."""
    once = Redactor().text('Authorization: Bearer abcdefgh1 {"password": "x"} token=abcdefghij')
    assert Redactor().text(once) == once


def test_a_registered_value_is_masked_however_it_is_written() -> None:
    """A value given to an agent is found raw, in JSON and in a URL."""
    secret = 'pä"ss w/rd'  # noqa: S105 - it is made up
    text = f"{secret} {json.dumps(secret)} p%C3%A4%22ss%20w%2Frd"
    assert Redactor([secret]).text(text) == f'{MASK} "{MASK}" {MASK}'


def test_the_longer_of_two_secrets_is_masked_whole() -> None:
    """A secret that begins with another does not leave its rest behind."""
    assert Redactor(["hunter2", "hunter2-prod"]).text("x hunter2-prod y") == f"x {MASK} y"


def test_environment_values_count_by_their_names(tmp_path: Path) -> None:
    """Names that say secret are believed; paths, short values and the working directory are not
    secrets.
    """
    socket = tmp_path / "agent.sock"
    socket.touch()
    environment = {
        "STRIPE_API_KEY": "value-one",
        "MYSQL_PWD": "value-two",
        "DATABASE_URL": "mysql://u:value-three@h/d",
        "SSH_AUTH_SOCK": str(socket),
        "PWD": "/somewhere/else",
        "AUTH_ENABLED": "true",
        "MONKEY_BUSINESS": "value-four",
    }
    assert secret_values(environment) == {"value-one", "value-two", "mysql://u:value-three@h/d"}
    assert redactor(environment).text("value-one value-four") == f"{MASK} value-four"


def test_the_registry_refuses_values_that_would_destroy_all_text() -> None:
    """A secret of one letter is not masked, since every word would go with it."""
    secrets = Secrets()
    secrets.add("a")
    secrets.add_environment({"API_TOKEN": "long-enough", "API_LEVEL": "ordinary"})
    assert secrets.values == {"long-enough"}


def test_json_is_masked_by_the_name_of_the_field() -> None:
    """In a row of a table a column named password is masked whatever it holds; numbers stay."""
    row = {"password": "x", "token": "abc", "fencing_token": 3, "list": [{"api_key": "k"}, "password=y1"], "n": None}
    assert Redactor().json(row) == {
        "password": MASK,
        "token": MASK,
        "fencing_token": 3,
        "list": [{"api_key": MASK}, f"password={MASK}"],
        "n": None,
    }


@pytest.mark.parametrize(
    "piece",
    [
        "a", "a-", "password ", "x://", "x://a:", "-----BEGIN PRIVATE KEY-----", "authorization=", "eyJaaaaaaaa.",
        "-eyJaaaaaaaa",
        "_password", '"', "password=\\\"", "token=", "cookie: ", "bearer ", "sk-", "A",
    ],
)  # fmt: skip
def test_redacting_takes_time_in_proportion_to_the_text(piece: str) -> None:
    """Ten times the text may take no hundred times as long:
    an agent's output must not stop the guardian.
    """

    def cpu_s(length: int) -> float:
        text = piece * (length // len(piece))
        started = time.process_time()
        Redactor().text(text)
        return time.process_time() - started

    small = min(cpu_s(20_000) for _ in range(3))
    assert cpu_s(200_000) < 40 * small + 0.1


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    """Whatever an agent prints is redacted without an error,
    and a registered secret never comes through.
    """
    assert "correct horse" not in Redactor(["correct horse"]).text(text + "correct horse" + text)
