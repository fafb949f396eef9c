"""Patterns of secrets: names that precede them, and shapes of their own. Data only.

A row is a fact about a service's format. To teach the redactor a new one, add a row here and its
generator to ``tests/harness/evidence/test_redact_kinds.py``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

STRONG_NAMES: Final = (
    "password", "passwd", "pass phrase", "passcode", "pwd", "secret", "secret key", "credential", "credentials",
    "authorization", "proxy authorization", "cookie", "set cookie", "auth string", "auth header", "basic auth",
    "recovery code", "recovery codes", "backup code", "backup codes", "mnemonic",
    *(f"{owner} key" for owner in (
        "api", "app", "access", "account", "auth", "authorization", "client", "consumer", "deploy", "encryption",
        "license", "master", "private", "service", "session", "shared", "shared access", "signing", "ssh", "storage",
        "subscription", "webhook", "hmac", "jwt", "aes", "root",
    )),
    *(f"{owner} token" for owner in (
        "access", "api", "app", "auth", "bearer", "bot", "ci", "csrf", "deploy", "id", "identity", "job", "oauth",
        "personal", "private", "refresh", "registry", "security", "service", "session", "user", "vault",
        "verification", "webhook", "xsrf", "npm", "github", "gitlab", "slack",
    )),
)  # fmt: skip
"""Ends of names, in lower case, whose value is a secret whatever it looks like.
A space is ``_``, ``-`` or nothing.
"""

WEAK_NAMES: Final = (
    "token", "^pass", "^auth", "^sig", "signature", "signing", "session id", "^jwt", "^salt", "^otp", "hmac", "webhook",
    "webhook url", "_key", "^pat", "^dsn",
)  # fmt: skip
"""Ends of names whose value is a secret if it looks random: a fencing token of 12 is evidence.
``^`` begins a word.
"""

EVIDENCE_NAMES: Final = (
    "fencing_token", "fencing-token", "lease_token", "claim_token", "page_token", "next_token", "continuation_token",
    "idempotency_key", "cache_key", "primary_key", "foreign_key", "public_key", "partition_key", "sort_key",
    "routing_key", "unique_key", "dedup_key", "request_key", "run_key", "row_key", "object_key", "lock_key",
)  # fmt: skip
"""Ends of names that look secret and are what evidence consists of; never masked by name."""

NAME_FIELDS: Final = frozenset({"name", "key", "setting", "option", "variable", "header", "parameter", "property"})
VALUE_FIELDS: Final = frozenset({"value", "val", "content", "data", "setting_value", "text"})
"""A row with a secret-like name in one of the first holds the secret in one of the second."""

ENVIRONMENT_PARTS: Final = frozenset({
    "secret", "secrets", "token", "tokens", "password", "passwd", "pass", "pwd", "passphrase", "apikey", "key", "keys",
    "credential", "credentials", "dsn", "auth", "cookie", "private", "webhook", "signing", "signature", "salt", "jwt",
})  # fmt: skip
"""Parts of the names of environment variables that hold secrets."""

NO_VALUES: Final = frozenset({
    "null", "none", "nil", "true", "false", "undefined", "yes", "no", "on", "off", "empty", "unset", "missing",
    "str", "bytes", "int", "bool", "float", "dict", "list", "tuple", "object", "any", "optional", "string", "text",
    "boolean", "varchar", "blob", "char", "required", "invalid", "wrong", "incorrect", "correct", "valid", "expired",
    "redacted", "hidden", "masked", "stored", "kept", "known", "unknown", "changed", "checked", "needed", "set", "not",
    "never", "always", "too", "the", "a", "an", "it", "its", "this", "that", "what", "in", "of", "to", "by", "as", "at",
    "for", "from", "with", "only", "also", "still", "used", "shown", "sent", "read", "written", "given", "asked",
    "compared", "refused", "rejected", "accepted", "encrypted", "hashed", "rotated", "revoked", "lost", "leaked",
    "removed", "registered", "safe", "short", "long", "weak", "strong", "different", "equal", "one", "two", "there",
    "here", "supposed", "expected", "about", "being", "now", "then", "and", "or", "if", "is", "was", "are", "be",
})  # fmt: skip
"""Words that are no secret where they follow a name in prose, in a type annotation or in SQL."""


class Shape(NamedTuple):
    """A secret that is known by its own form.

    ``anchors`` are in lower case, and one is in the line of every match: a line without them is not
    looked at. What the group ``keep`` matches stays.
    """

    kind: str
    anchors: tuple[str, ...]
    pattern: str


_W: Final = r"(?<![A-Za-z0-9_-])"
"""A token does not begin in the middle of a word."""

SHAPES: Final = (
    Shape("AWS access key id", ("akia", "asia", "abia", "acca"), r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    Shape("GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), rf"{_W}gh[pousr]_[A-Za-z0-9]{{20,}}"),
    Shape("GitHub fine-grained token", ("github_pat_",), rf"{_W}github_pat_[A-Za-z0-9_]{{20,}}"),
    Shape(
        "GitLab token",
        ("glpat-", "glptt-", "gldt-", "glrt-", "glcbt-", "glsoat-", "glft-", "glimt-", "glagent-", "gloas-"),
        rf"{_W}gl(?:pat|ptt|dt|rt|cbt|soat|ft|imt|agent|oas)-[A-Za-z0-9_-]{{16,}}",
    ),
    Shape(
        "Stripe key",
        ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "pk_test_", "sk_prod_", "rk_prod_"),
        rf"{_W}[srp]k_(?:live|test|prod)_[A-Za-z0-9_-]{{8,}}",
    ),
    Shape(
        "model provider key",
        ("sk-ant-", "sk-proj-", "sk-or-", "sk-svcacct-", "sk-live-", "sk-test-", "rk-live-", "pk-live-", "pk-test-"),
        rf"{_W}[srp]k-(?:ant|proj|or|svcacct|live|test)-[A-Za-z0-9_-]{{8,}}",
    ),
    Shape("OpenAI key", ("sk-",), rf"{_W}sk-[A-Za-z0-9]{{20,}}"),
    Shape("webhook secret", ("whsec_",), rf"{_W}whsec_[A-Za-z0-9+/=]{{16,}}"),
    Shape("Slack token", ("xox",), rf"{_W}xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{{10,}}"),
    Shape("Slack app token", ("xapp-",), rf"{_W}xapp-\d-[A-Za-z0-9-]{{10,}}"),
    Shape("Slack webhook", ("hooks.slack.com/",), r"\bhooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/+]+"),
    Shape("Teams webhook", (".webhook.office.com/",), r"\.webhook\.office\.com/webhookb2/[A-Za-z0-9@/-]+"),
    Shape("Discord webhook", ("discord",), r"\bdiscord(?:app)?\.com/api/webhooks/\d+/[A-Za-z0-9_-]+"),
    Shape("Google API key", ("aiza",), rf"{_W}AIza[A-Za-z0-9_-]{{35}}"),
    Shape("Google OAuth token", ("ya29.",), rf"{_W}ya29\.[A-Za-z0-9_-]{{20,}}"),
    Shape("Google client secret", ("gocspx-",), rf"{_W}GOCSPX-[A-Za-z0-9_-]{{20,}}"),
    Shape("Hugging Face token", ("hf_", "api_org_"), rf"{_W}(?:hf|api_org)_[A-Za-z0-9]{{20,}}"),
    Shape("npm token", ("npm_",), rf"{_W}npm_[A-Za-z0-9]{{30,}}"),
    Shape("PyPI token", ("pypi-",), rf"{_W}pypi-[A-Za-z0-9_-]{{40,}}"),
    Shape("RubyGems token", ("rubygems_",), rf"{_W}rubygems_[a-f0-9]{{40,}}"),
    Shape("Docker token", ("dckr_",), rf"{_W}dckr_[a-z]{{3}}_[A-Za-z0-9_-]{{20,}}"),
    Shape("SendGrid key", ("sg.",), rf"{_W}SG\.[A-Za-z0-9_-]{{16,}}\.[A-Za-z0-9_-]{{16,}}"),
    Shape("Mailgun key", ("key-",), rf"{_W}key-[a-f0-9]{{32}}\b"),
    Shape("Mailchimp key", ("-us",), r"(?<![A-Za-z0-9])[a-f0-9]{32}-us\d{1,2}\b"),
    Shape("Square token", ("sq0",), rf"{_W}sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{{22,}}"),
    Shape("Square access token", ("eaaa",), rf"{_W}EAAA[A-Za-z0-9_-]{{56,}}"),
    Shape("Shopify token", ("shpat_", "shpss_", "shpca_", "shppa_"), rf"{_W}shp(?:at|ss|ca|pa)_[a-fA-F0-9]{{32}}"),
    Shape("DigitalOcean token", ("dop_v1_", "doo_v1_", "dor_v1_"), rf"{_W}do[opr]_v1_[a-f0-9]{{64}}"),
    Shape("Databricks token", ("dapi",), rf"{_W}dapi[a-f0-9]{{32}}(?:-\d)?\b"),
    Shape("Doppler token", ("dp.",), rf"{_W}dp\.(?:pt|st|ct|scim|audit)\.[A-Za-z0-9_.-]{{40,}}"),
    Shape("Vault token", ("hvs.", "hvb.", "hvr."), rf"{_W}hv[sbr]\.[A-Za-z0-9_-]{{20,}}"),
    Shape("Terraform token", (".atlasv1.",), rf"{_W}[A-Za-z0-9]{{14}}\.atlasv1\.[A-Za-z0-9_=-]{{40,}}"),
    Shape("Linear key", ("lin_api_", "lin_oauth_"), rf"{_W}lin_(?:api|oauth)_[A-Za-z0-9]{{32,}}"),
    Shape("Notion key", ("ntn_", "secret_"), rf"{_W}(?:ntn_[A-Za-z0-9]{{40,}}|secret_[A-Za-z0-9]{{43}})\b"),
    Shape("Postman key", ("pmak-",), rf"{_W}PMAK-[a-f0-9]{{24}}-[a-f0-9]{{34}}"),
    Shape("Pulumi token", ("pul-",), rf"{_W}pul-[a-f0-9]{{40}}\b"),
    Shape("PlanetScale secret", ("pscale_",), rf"{_W}pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{{32,}}"),
    Shape("New Relic key", ("nrak-", "nrii-", "nrjs-"), rf"{_W}NR(?:AK|II|JS)-[A-Za-z0-9_-]{{19,}}"),
    Shape("Grafana token", ("glsa_",), rf"{_W}glsa_[A-Za-z0-9]{{32}}_[a-f0-9]{{8}}"),
    Shape("Grafana cloud token", ("glc_",), rf"{_W}glc_[A-Za-z0-9+/=]{{32,}}"),
    Shape("Sentry token", ("sntrys_", "sntryu_"), rf"{_W}sntry[su]_[A-Za-z0-9+/=_-]{{40,}}"),
    Shape("Telegram bot token", (":aa",), r"(?<![0-9])\d{8,10}:AA[A-Za-z0-9_-]{33}"),
    Shape("Atlassian token", ("atatt3", "atctt3"), rf"{_W}AT[AC]TT3[A-Za-z0-9_=-]{{40,}}"),
    Shape("Alibaba key id", ("ltai",), rf"{_W}LTAI[A-Za-z0-9]{{16,20}}\b"),
    Shape("Artifactory key", ("akcp",), rf"{_W}AKCp[A-Za-z0-9]{{60,}}"),
    Shape("Figma token", ("figd_",), rf"{_W}figd_[A-Za-z0-9_-]{{30,}}"),
    Shape("Fly.io token", ("fm1_", "fm2_", "fo1_"), rf"{_W}(?:fm[12]|fo1)_[A-Za-z0-9+/=_-]{{30,}}"),
    Shape("Supabase token", ("sbp_",), rf"{_W}sbp_[a-f0-9]{{40}}"),
    Shape("Tailscale key", ("tskey-",), rf"{_W}tskey-[a-z]+-[A-Za-z0-9-]{{10,}}"),
    Shape("Groq key", ("gsk_",), rf"{_W}gsk_[A-Za-z0-9]{{40,}}"),
    Shape("Replicate token", ("r8_",), rf"{_W}r8_[A-Za-z0-9]{{37}}"),
    Shape("Perplexity key", ("pplx-",), rf"{_W}pplx-[A-Za-z0-9]{{40,}}"),
    Shape("1Password token", ("ops_ey",), rf"{_W}ops_ey[A-Za-z0-9+/=_-]{{40,}}"),
    Shape("Typeform token", ("tfp_",), rf"{_W}tfp_[A-Za-z0-9_.=-]{{40,}}"),
    Shape("Azure client secret", ("~",), r"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}"),
    Shape("age key", ("age-secret-key-1",), rf"{_W}AGE-SECRET-KEY-1[0-9A-Z]{{40,}}"),
    Shape("JSON web token", ("eyj",), rf"{_W}eyJ[A-Za-z0-9_-]{{8,}}\.eyJ[A-Za-z0-9_-]{{8,}}\.[A-Za-z0-9_-]*"),
    Shape(
        "password hash",
        ("$2", "$argon2", "$5$", "$6$", "$y$"),
        r"\$(?:2[abxy]\$\d\d\$[./A-Za-z0-9]{53}|argon2(?:id|i|d)\$[^\s\"',;]{20,}|[56y]\$[^\s\"',;:]{20,})",
    ),
    Shape("bearer", ("bearer",), r"(?i)\b(?P<keep>bearer\s+)[a-z0-9._~+/=-]{8,}"),
    Shape("basic", ("basic ",), r"\b(?P<keep>[Bb]asic\s+)(?=[A-Za-z+/]*[A-Z0-9])[A-Za-z0-9+/]{11,}={0,2}"),
    Shape(
        "password in a URL",
        ("://",),
        r"""(?i)(?<![a-z0-9+.-])(?P<keep>[a-z][a-z0-9+.-]*+://[^\s:/@"'<>]*:)[^\s/"'<>]+(?=@)""",
    ),
    Shape(
        "user option",
        (" -u", "'-u", '"-u', "--user"),
        r"""(?P<keep>(?<![\w-])(?:-u|--user)[ =]?["']?[\w.@+-]+:)(?!\d+\b)[^\s"',/:]{3,}""",
    ),
    Shape(
        "password option",
        (" -p", "'-p", '"-p'),
        r"""(?P<keep>\b(?:mysql\w*|mariadb[\w-]*|sshpass|mongo\w*|sqlplus|ldap\w+|redis-cli)\b[^\r\n|;]{0,400}?\s-p)"""
        r"""(?=\S)[^\s"',]+""",
    ),
    Shape(
        "password argument",
        (" -p", "'-p", '"-p'),
        r"""(?P<keep>(?<![\w-])-p)(?=[^\s"',]*[A-Za-z])(?=[^\s"',]*\d)[^\s"',:/]{6,}(?![^\s"',])""",
    ),
    Shape("sshpass", ("sshpass",), r"""(?P<keep>\bsshpass\b[^\r\n|;]{0,400}?\s-p[ ]+)[^\s"',]+"""),
    Shape("SQL password", ("identified ",), r"(?i)(?P<keep>\bidentified\s+(?:with\s+\S+\s+)?by\s+')[^'\r\n]+"),
    Shape("netrc", ("machine ",), r"(?P<keep>\bmachine\s+\S+\s+login\s+\S+\s+password\s+)\S+"),
)  # fmt: skip
"""Secrets that are known by their form, of one line each."""

KEY_BLOCK: Final = (
    r"(?s)(?:-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|PuTTY-User-Key-File-\d:.*?(?:Private-MAC: ?[0-9a-f]+|\Z))"
)
"""Private keys, which take many lines; one that was cut off is masked to the end."""
KEY_ANCHORS: Final = ("PRIVATE KEY", "PuTTY-User-Key-File")
