"""An exploration that was stopped is found again without its seed,
and nothing that it found is deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.cli.explore import options_for
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.session import Saved, set_aside
from pytest_chaos.explore.target import CommandSubject

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.options import Options

SUBJECT = CommandSubject(["true"], ["true"], name="mine")


def _stopped(results: Path, seed: str) -> Options:
    options = options_for(SUBJECT, "", results, seed)
    assert options.progress is not None
    options.progress.parent.mkdir(parents=True, exist_ok=True)
    options.progress.write_bytes(msgspec.json.encode(Saved(fingerprint="f", seed=seed, choice=options.choice)))
    return options


def test_the_stopped_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its seed and its files are taken, and that is said."""
    stopped = _stopped(tmp_path, "earlier")

    again = options_for(SUBJECT, "", tmp_path, None)
    assert (again.seed, again.progress, again.kept) == ("earlier", stopped.progress, stopped.kept)
    assert "was stopped (seed earlier); --fresh begins anew" in capsys.readouterr().err


@pytest.mark.parametrize(("fresh", "families"), [(True, tuple(Family)), (False, (Family.IO,))])
def test_another_one_has_a_file_of_its_own(tmp_path: Path, *, fresh: bool, families: tuple[Family, ...]) -> None:
    """With --fresh, and with other options, a seed is drawn,
    and the file of the stopped one stays.
    """
    stopped = _stopped(tmp_path, "earlier")
    other = options_for(SUBJECT, "", tmp_path, None, fresh=fresh, families=families)

    assert other.seed != "earlier"
    assert other.progress != stopped.progress
    assert stopped.progress is not None
    assert stopped.progress.exists()


def test_a_file_that_is_not_gone_on_from_is_kept(tmp_path: Path) -> None:
    """Twice the same name: two files, with what was in them."""
    path = tmp_path / "progress-a-b.json"
    for text in ("one", "two"):
        path.write_text(text)
        set_aside(path)

    assert sorted(each.read_text() for each in tmp_path.iterdir()) == ["one", "two"]
    assert not path.exists()
