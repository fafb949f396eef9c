"""The command ``python -m durable_agents``: serve a pipeline that is driven by webhooks.

Exit codes: 0 after a signal to end; 3 for a user's mistake, told in one sentence.

Secrets are taken from the environment only: everybody on the machine can read a command line.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, TypeVar

import msgspec

from durable_agents.errors import InvalidSetting, MissingPackage, RecoveryError
from durable_agents.extras import optional_import
from durable_agents.jobs.reaper import ReaperSettings
from durable_agents.jobs.stages import DEFAULT_PIPELINE, Pipeline
from durable_agents.pipeline.reconciler import ReconcilerSettings
from durable_agents.pipeline.tracker import HttpTracker
from durable_agents.store import open_store
from durable_agents.webhooks.signatures import SignatureScheme, StandardWebhooks, gitea, github

MISTAKE: Final = 3
try:
    with optional_import("server"):
        import click
    from durable_agents.pipeline.application import Application
    from durable_agents.pipeline.serving import listen, serve
except MissingPackage as missing:
    sys.stderr.write(f"{missing}\n")
    sys.exit(MISTAKE)

PREFIX: Final = "CORE_"
"""The prefix of each environment variable; the rest is the name of the setting, in capitals."""

_SCHEMES: Final[Mapping[str, Callable[[str], SignatureScheme]]] = {
    "tracker": StandardWebhooks,
    "github": github,
    "gitea": gitea,
}
SettingsType = TypeVar("SettingsType", bound=msgspec.Struct)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run parts of the recovery core."""


@main.command("serve")
@click.option(
    "--db", "database", required=True, type=click.Path(dir_okay=False), help="The database; created if it is missing."
)
@click.option("--gates", required=True, help="MODULE:NAME of a mapping from gates' names to functions of a task.")
@click.option(
    "--pipeline", default="", help="MODULE:NAME of a Pipeline; by default that of durable_agents.jobs.stages."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; anything else is open to others."
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is a free one.")
@click.option("--tracker-url", default="", help="The tracker's API, which the reconciler polls.")
@click.option("--project", "projects", multiple=True, help="A project of the tracker; may be given several times.")
@click.option("--ci-gate", default="ci_green", show_default=True, help="The gate of the stage that a CI status leaves.")
def serve_command(**options: Any) -> None:
    """Receive deliveries, handle them, reap jobs, and make up for lost webhooks.

    Secrets of sources: CORE_TRACKER_SECRET, CORE_GITHUB_SECRET, CORE_GITEA_SECRET (one or more);
    the token for the tracker's API: CORE_TRACKER_TOKEN. Settings: CORE_RECONCILE_ENABLED,
    CORE_RECONCILE_PLANE_ENABLED, CORE_RECONCILE_GRACE_DEFAULT_S and all others of
    ReconcilerSettings and ReaperSettings.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with open_store(options["database"]) as store:
        application = Application(
            store,
            gates=_loaded(options["gates"], "gates", Mapping),
            pipeline=_loaded(options["pipeline"], "pipeline", Pipeline) if options["pipeline"] else DEFAULT_PIPELINE,
            ci_gate=options["ci_gate"],
            schemes=schemes(os.environ),
            tracker=_tracker(options["tracker_url"]),
            projects=options["projects"],
            reaper=settings_from(os.environ, ReaperSettings),
            reconciler=settings_from(os.environ, ReconcilerSettings),
        )
        with closing(listen(options["host"], options["port"])) as listener:
            host, port, *_ = listener.getsockname()
            click.echo(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
            sys.stdout.flush()
            serve(application, listener)


def schemes(environment: Mapping[str, str]) -> dict[str, SignatureScheme]:
    """Return the signatures of each source whose secret is set. Raises InvalidSetting."""
    found: dict[str, SignatureScheme] = {}
    for source, scheme in _SCHEMES.items():
        name = f"{PREFIX}{source.upper()}_SECRET"
        if environment.get(name):
            try:
                found[source] = scheme(environment[name])
            except InvalidSetting as error:
                message = f"{name}: {error}"
                raise InvalidSetting(message) from error
    if not found:
        names = ", ".join(f"{PREFIX}{source.upper()}_SECRET" for source in _SCHEMES)
        message = f"The environment must have the secret of a source; got none of {names}. Set one or more."
        raise InvalidSetting(message)
    return found


def settings_from(environment: Mapping[str, str], kind: type[SettingsType]) -> SettingsType:
    """Return the environment's settings, with defaults for the others. Raises InvalidSetting."""
    given = {field.name: environment.get(f"{PREFIX}{field.name.upper()}", "") for field in msgspec.structs.fields(kind)}
    try:
        return msgspec.convert({name: text for name, text in given.items() if text}, kind, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidSetting):
            message = f"{PREFIX}... in the environment: {error.__cause__}"
        else:
            message = f"{PREFIX}... in the environment must be valid {kind.__name__}; got {error}. Correct these."
        raise InvalidSetting(message) from error


def _tracker(url: str) -> HttpTracker | None:
    return HttpTracker(url, token=os.environ.get(f"{PREFIX}TRACKER_TOKEN", "")) if url else None


def _loaded(place: str, what: str, kind: type) -> Any:
    """Import ``MODULE:NAME``. Raises InvalidSetting."""
    try:
        found = pkgutil.resolve_name(place)
    except Exception as error:
        message = (
            f"--{what} must be MODULE:NAME; got {place!r}, which raises {type(error).__name__}: {error}. Correct it, "
            "or put its folder on PYTHONPATH."
        )
        raise InvalidSetting(message) from error
    if not isinstance(found, kind):
        kinds = kind.__name__, type(found).__name__
        message = f"--{what} must be MODULE:NAME of a {kinds[0]}; got {place!r}, a {kinds[1]}. Name one."
        raise InvalidSetting(message)
    return found


def run() -> None:
    """Run the command, and end with its exit code."""
    try:
        main.main(standalone_mode=False, prog_name="python -m durable_agents")
    except click.ClickException as error:
        error.show()
        sys.exit(MISTAKE)
    except click.Abort:
        sys.exit(0)
    except RecoveryError as error:
        click.echo(str(error), err=True)
        sys.exit(MISTAKE)


if __name__ == "__main__":
    run()
