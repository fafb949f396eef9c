"""The example of docs/writing-a-fault.md works as it stands there,
as a distribution of somebody else's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import pytest

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "writing-a-fault.md"
METADATA: Final = "Metadata-Version: 2.1\nName: chaos-few-files\nVersion: 1.0\n"


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Write the example's files, and the metadata that an installation would have left,
    into a folder on the path.
    """
    text = DOCUMENT.read_text()
    for name, source in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL):
        (pytester.path / name).write_text(source)
    toxic = re.search(r"entry point is `(.+) = \"(.+)\"`", text)
    assert toxic is not None
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    section, value = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n([^"]+"[^"]+")\n', toml).groups()  # type: ignore[union-attr]
    metadata = pytester.path / "chaos_few_files-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    (metadata / "entry_points.txt").write_text(f"[{section}]\n{value.replace(chr(34), '')}\n{toxic[1]} = {toxic[2]}\n")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    return pytester


def test_the_example_of_the_document_works(example: pytest.Pytester) -> None:
    """A fault of another distribution is planned at a point, fires,
    and has its receipt in the record.
    """
    result = example.runpytest_subprocess("-p", "no:cacheprovider", "test_few_files.py", timeout=600)
    result.assert_outcomes(passed=2)
    (records,) = example.path.glob("**/records.jsonl")
    assert '"evidence":"RLIMIT_NOFILE is 3"' in records.read_text()


def test_its_parameters_are_checked(example: pytest.Pytester) -> None:
    """The plan is refused with what the fault says of its parameters, before anything starts."""
    path = example.path / "test_few_files.py"
    path.write_text(path.read_text().replace("files_max=3", "files_max=-1"))
    result = example.runpytest_subprocess("-p", "no:cacheprovider", "test_few_files.py", timeout=600)
    result.stdout.fnmatch_lines(["*files_max must be a whole number from 0 to 1,024; got -1*"])


@pytest.mark.parametrize("line", ["resource.prlimit(firing.agent.pid, resource.RLIMIT_NOFILE, (", "soft, _ = "])
def test_a_fault_that_raises_did_not_fire(example: pytest.Pytester, line: str) -> None:
    """Its receipt says so, and the session goes on."""
    path = example.path / "few_files.py"
    path.write_text(path.read_text().replace(line, f"1 // 0; {line}"))
    result = example.runpytest_subprocess("--chaos-confirm=0", "-p", "no:cacheprovider", "test_few_files.py")
    result.stdout.fnmatch_lines(["2 scenarios, 2 runs: 1 held, 1 *"])
    (records,) = example.path.glob("**/records.jsonl")
    text = records.read_text()
    assert '"fired":false,"evidence":"the code of the fault raised ZeroDivisionError: ' in text
    assert "by zero. Mend the code of the fault, or give it other parameters" in text
    assert "Plan a time" not in text


def test_the_toxic_of_the_document_works(example: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toxic of another distribution strikes the delivery that is planned,
    in the process of the proxy.
    """
    example.makepyfile(
        test_shout="""
        import urllib.request
        from urllib.error import HTTPError

        import pytest
        from pytest_chaos import at_delivery, deliver
        from tests.harness.runtime import targets


        @pytest.mark.chaos(id="shout")
        def test_shout(chaos):
            chaos.plan(deliver("proxy", "shout", at_delivery(2)))
            server = chaos.spawn(targets.serve_http, kwargs={"log": str(chaos.directory / "log")})
            (serving,) = server.wait_for("serving", kind="note")
            proxy = chaos.proxy(f"http://127.0.0.1:{serving.value}")
            urllib.request.urlopen(proxy.url + "/a", timeout=10).close()
            with pytest.raises(HTTPError) as told:
                urllib.request.urlopen(proxy.url + "/b", timeout=10)
            told.value.close()
            chaos.wait_for_faults()
            chaos.expect("status", observed=told.value.code, holds=told.value.code == 418)
        """
    )
    path = os.pathsep.join([str(example.path), str(Path(__file__).parents[3])])
    monkeypatch.setenv("PYTHONPATH", path)
    example.runpytest_subprocess("-p", "no:cacheprovider", "test_shout.py", timeout=600).assert_outcomes(passed=1)
    (records,) = example.path.glob("**/records.jsonl")
    assert "delivery 2 (GET /b) was carried; its sender was told 418" in records.read_text()
