"""Signatures: what a sender signs is taken, what anybody else made is not,
and a replay is known.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from durable_agents.errors import InvalidSetting, InvalidSignature, StaleDelivery
from durable_agents.webhooks.signatures import BodyHmac, StandardWebhooks, gitea, github
from hypothesis import given, strategies as st
from standardwebhooks import Webhook

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_700_000_000 * 1_000_000
BODY = b'{"type": "issue.state_changed"}'


def signed(body: bytes = BODY, *, delivery_id: str = "msg_1", at_s: int = 1_700_000_000) -> dict[str, str]:
    """Sign as a sender does, with the library."""
    signature = Webhook(KEY).sign(delivery_id, datetime.fromtimestamp(at_s, tz=UTC), body.decode())
    return {"webhook-id": delivery_id, "webhook-timestamp": str(at_s), "webhook-signature": signature}


def digest(body: bytes = BODY, key: bytes = KEY) -> str:
    """Return the digest that GitHub and Gitea send."""
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def test_what_the_library_signs_is_taken() -> None:
    """Id and identity are the signed id; the secret may be written with its prefix or without."""
    for secret in (SECRET, SECRET.removeprefix("whsec_"), SECRET.rstrip("=")):
        sender = StandardWebhooks(secret).verify(signed(), BODY, NOW)
        assert (sender.delivery_id, sender.identity) == ("msg_1", "id:msg_1")


def test_one_of_several_signatures_is_enough() -> None:
    """A sender that exchanges its secret signs with both;
    versions that are unknown, and rubbish, are passed over.
    """
    headers = signed()
    headers["webhook-signature"] = (
        f"v1a,xyz rubbish v1,{base64.b64encode(b'x' * 32).decode()} " + headers["webhook-signature"]
    )
    assert StandardWebhooks(SECRET).verify(headers, BODY, NOW).delivery_id == "msg_1"


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_header_is_needed(missing: str) -> None:
    """Without it the delivery is nobody's."""
    headers = {name: value for name, value in signed().items() if name != missing}
    with pytest.raises(InvalidSignature):
        StandardWebhooks(SECRET).verify(headers, BODY, NOW)


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body", "secret"])
def test_everything_that_is_signed_counts(changed: str) -> None:
    """Another id, time, body or secret does not match, and no secret is in the message."""
    headers, body, secret = signed(), BODY, SECRET
    if changed == "body":
        body = BODY.replace(b"issue", b"issux")
    elif changed == "secret":
        secret = base64.b64encode(b"another secret, long enough").decode()
    else:
        headers[changed] = {"webhook-id": "msg_2", "webhook-timestamp": "1700000001"}[changed]
    with pytest.raises(InvalidSignature, match="match the body") as refused:
        StandardWebhooks(secret).verify(headers, body, NOW)
    assert secret not in str(refused.value)


@pytest.mark.parametrize(("away_s", "is_taken"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)])
def test_a_signature_is_good_for_five_minutes(away_s: int, *, is_taken: bool) -> None:
    """In both directions; what is older is a replay, or a clock that goes wrong."""
    scheme, headers = StandardWebhooks(SECRET), signed(at_s=1_700_000_000 + away_s)
    if is_taken:
        assert scheme.verify(headers, BODY, NOW).delivery_id == "msg_1"
    else:
        with pytest.raises(StaleDelivery, match="301 s away"):
            scheme.verify(headers, BODY, NOW)


@pytest.mark.parametrize("time", ["", "soon", "1e9", "99999999999999999999", "-1", "1700000000.5"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    """Whatever stands there: a sentence, never another exception."""
    with pytest.raises(InvalidSignature):
        StandardWebhooks(SECRET).verify(signed() | {"webhook-timestamp": time}, BODY, NOW)


@pytest.mark.parametrize(
    ("scheme", "headers"),
    [
        (
            github(KEY.decode()),
            {"x-hub-signature-256": f"sha256={digest()}", "x-github-delivery": "d-1", "x-github-event": "push"},
        ),
        (gitea(KEY.decode()), {"x-gitea-signature": digest(), "x-gitea-delivery": "d-1", "x-gitea-event": "push"}),
    ],
)
def test_forges_sign_the_body(scheme: BodyHmac, headers: dict[str, str]) -> None:
    """GitHub and Gitea: id and event come from headers that nobody signed,
    so the body is what it is known by.
    """
    sender = scheme.verify(headers, BODY, NOW)
    assert (sender.delivery_id, sender.event) == ("d-1", "push")
    again = scheme.verify({**headers, **{name: "d-2" for name in headers if "delivery" in name}}, BODY, NOW)
    assert (again.delivery_id, again.identity) == ("d-2", sender.identity)
    with pytest.raises(InvalidSignature, match="match the body"):
        scheme.verify(headers, BODY + b" ", NOW)


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()), st.binary()
)
def test_no_header_and_no_body_breaks_it(headers: dict[str, str], body: bytes) -> None:
    """Anything at all is refused with the error that is documented."""
    with pytest.raises(InvalidSignature):
        StandardWebhooks(SECRET).verify(headers, body, NOW)
    with pytest.raises(InvalidSignature):
        github(KEY.decode()).verify(headers, body, NOW)


@pytest.mark.parametrize(
    "secret", ["no base64 at all, though it is long!", SECRET + "!", SECRET[:-9] + "-" + SECRET[-8:], "ü" * 40]
)
def test_a_secret_that_is_not_base64_is_refused(secret: str) -> None:
    """With a character that is left out it would be another one,
    and every delivery would be refused, later.
    """
    with pytest.raises(InvalidSetting, match="base64") as refused:
        StandardWebhooks(secret)
    assert secret not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "whsec_", "short", "whsec_c2hvcnQ="])
def test_a_secret_is_long_enough(secret: str) -> None:
    """A short one is refused at the start, not found out later by somebody else."""
    with pytest.raises(InvalidSetting, match="secret"):
        StandardWebhooks(secret)
    with pytest.raises(InvalidSetting, match="secret"):
        github("short")


@pytest.mark.parametrize("tolerance_s", [0, -1, float("inf"), float("nan")])
def test_a_tolerance_is_a_length_of_time(tolerance_s: float) -> None:
    """None at all, or one without an end, is a mistake."""
    with pytest.raises(InvalidSetting, match="tolerance"):
        StandardWebhooks(SECRET, tolerance_s=tolerance_s)
