"""One form of an entry, run by its engine in a process of its own.

What it says comes back as a :class:`~pytest_chaos.bank.results.FormResult`: the verdict and the
signatures of its findings. A form that cannot be judged is INCONCLUSIVE, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.bank.results import FormResult
from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence import records
from pytest_chaos.explore.document import ExplorationDocument
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.bank.entries import BankEntry, Form
    from pytest_chaos.evidence.records import Records

FORM_TIMEOUT_S: Final = 300.0
_CHAOS: Final = ("-c", "from pytest_chaos.cli.main import main; main()")
_DOCUMENT: Final = "explored.json"
_OUTPUT: Final = "output.txt"
_SETTINGS: Final = "[pytest]\n"
"""pytest's configuration: nothing of the project in which the command happens to be called."""
_REASON_CHARACTERS_MAX: Final = 300


class Runner:
    """Runs forms; ``interrupt`` ends those that are under way."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._running: set[subprocess.Popen[bytes]] = set()

    def interrupt(self) -> None:
        """End what is running; guardians end what it has started."""
        for process in tuple(self._running):
            process.terminate()

    def run(self, entry: BankEntry, form: Form, python: Path, folder: Path) -> FormResult:
        """Run a form with an interpreter; it writes its results and evidence to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        begun_s = time.monotonic()
        explores = entry.engine == "explore"
        command = _explore(entry, form, folder, self._seed) if explores else _pytest(entry, form, folder, self._seed)
        problem = self._call([str(python), *command], folder)
        if problem:
            found = FormResult(form=form, verdict=Verdict.INCONCLUSIVE, problem=problem)
        else:
            found = _explored(form, folder) if explores else _tested(form, folder)
        return msgspec.structs.replace(found, duration_s=round(time.monotonic() - begun_s, 3), folder=str(folder))

    def _call(self, command: list[str], folder: Path) -> str:
        """Run a command to its end; return what kept it from that, or nothing."""
        unwanted = ("PYTEST_", "CHAOS_", "PYTHONPATH", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with (folder / _OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            self._running.add(process)
            try:
                process.wait(FORM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return f"it took more than {FORM_TIMEOUT_S:g} s, and was ended"
            finally:
                process.kill()  # a guardian ends what it has started
                process.wait()
                self._running.discard(process)
        return ""


def _explore(entry: BankEntry, form: Form, folder: Path, seed: str) -> list[str]:
    target = f"{entry.file}:{form.capitalize()}"
    chosen = [word for name, value in entry.options.items() for word in (f"--{name}", str(value))]
    return [
        *_CHAOS,
        "explore",
        target,
        "--seed",
        seed,
        "--json",
        str(folder / _DOCUMENT),
        "--results",
        str(folder),
        *chosen,
    ]


def _pytest(entry: BankEntry, form: Form, folder: Path, seed: str) -> list[str]:
    settings = folder / "pytest.ini"
    settings.write_text(_SETTINGS)
    test = f"{entry.file}::test_entry[{form}]"
    plain = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:randomly", "--import-mode=importlib"]
    chaos = [f"--chaos-results={folder}", "--chaos-report=json", "--chaos-confirm=0", f"--chaos-seed={seed}"]
    return ["-m", "pytest", test, f"--config-file={settings}", f"--rootdir={entry.folder}", *plain, *chaos]


def _explored(form: Form, folder: Path) -> FormResult:
    try:
        found = msgspec.json.decode((folder / _DOCUMENT).read_bytes(), type=ExplorationDocument)
    except (OSError, msgspec.DecodeError):
        return FormResult(form=form, verdict=Verdict.INCONCLUSIVE, problem=_last_words(folder))
    families = found.families.values()
    free = [each for each in found.findings if each.kind != "harness"]
    signatures = {each.signature for family in families for each in family.findings} | {each.signature for each in free}
    problems = [each.text for each in found.findings if each.kind == "harness"]
    problems += [each.text for family in families for each in family.problems]
    verdict = Verdict(found.verdict)
    problem = next(iter(problems), "") if verdict is Verdict.INCONCLUSIVE else ""
    texts = [each.text for family in families for each in family.findings] + [each.text for each in free]
    return FormResult(
        form=form, verdict=verdict, found=tuple(sorted(signatures)), text=next(iter(texts), ""), problem=problem,
        coverage=found.coverage,
    )  # fmt: skip


def _tested(form: Form, folder: Path) -> FormResult:
    read = _records(folder)
    if read is None or len(read.runs) != 1:
        return FormResult(form=form, verdict=Verdict.INCONCLUSIVE, problem=_last_words(folder))
    (run,) = read.runs
    safe = [each for each in run.findings if each.kind != "harness"]
    problems = [each.text for each in run.findings if each.kind == "harness"]
    problem = next(iter(problems), "") if run.verdict is Verdict.INCONCLUSIVE else ""
    receipts = "; ".join(each.evidence for each in run.receipts if each.fired)
    return FormResult(
        form=form, verdict=run.verdict, found=tuple(sorted({each.signature for each in safe})),
        text=next((each.text for each in safe), ""), problem=problem, coverage=receipts,
        plan=msgspec.json.encode(run.plan.faults if run.plan else ()).decode(),
    )  # fmt: skip


def _records(folder: Path) -> Records | None:
    try:
        return records.read(folder / "latest")
    except (ResultsError, OSError):
        return None


def _last_words(folder: Path) -> str:
    """Return the last line that a form printed: it ended without a result."""
    if not shutil.disk_usage(folder).free:
        return f"it ended without a result: the disk of {folder} is full. Make room, or give another --results"
    lines = [line for line in (folder / _OUTPUT).read_text(errors="replace").splitlines() if line.strip(" =")]
    errors = [line for line in lines if line.startswith(("chaos: ", "E  ", "ERROR"))] or lines or ["it said nothing"]
    return f"it ended without a result: {errors[-1].strip()[:_REASON_CHARACTERS_MAX]}"
