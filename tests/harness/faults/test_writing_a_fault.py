"""The example of docs/writing-a-fault.md works as it stands there, as a distribution of somebody else's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "writing-a-fault.md"
METADATA: Final = "Metadata-Version: 2.1\nName: chaos-limit-files\nVersion: 1.0\n"


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Write the example's files, and the metadata that an installation would have left, into a folder on the path."""
    text = DOCUMENT.read_text()
    for name, source in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL):
        (pytester.path / name).write_text(source)
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    section, value = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n([^"]+"[^"]+")\n', toml).groups()  # type: ignore[union-attr]
    metadata = pytester.path / "chaos_limit_files-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    (metadata / "entry_points.txt").write_text(f"[{section}]\n{value.replace(chr(34), '')}\n")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    return pytester


def test_the_example_of_the_document_works(example: pytest.Pytester) -> None:
    """A fault of another distribution is planned at a point, fires, and has its receipt in the record."""
    result = example.runpytest_subprocess("-p", "no:cacheprovider", "test_limit_files.py", timeout=60)
    result.assert_outcomes(passed=2)
    (records,) = example.path.glob("**/records.jsonl")
    assert '"evidence":"RLIMIT_NOFILE is 3"' in records.read_text()


def test_its_parameters_are_checked(example: pytest.Pytester) -> None:
    """The plan is refused with what the fault says of its parameters, before anything starts."""
    path = example.path / "test_limit_files.py"
    path.write_text(path.read_text().replace("files_max=3", "files_max=-1"))
    result = example.runpytest_subprocess("-p", "no:cacheprovider", "test_limit_files.py", timeout=60)
    result.stdout.fnmatch_lines(["*files_max must be a whole number from 0 to 1024; got -1*"])
