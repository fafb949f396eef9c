"""The commit that brought a violation, found by ``git bisect`` in a clone of our own.

The clone shares the objects of the user's repository and is removed with its folder, so neither the
checkout nor the repository is written to: no worktree is registered, no reference is made. Each
commit is judged by replays of the pack in a pytest process. Modules must come from the clone: what
an editable installation imports from the checkout would make every commit look alike.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.narrow import session
from pytest_chaos.narrow.trial import MISSED
from pytest_chaos.narrow.variant import NarrowOrder, TrialOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.narrow.variant import Narrowed

BAD, GOOD, SKIPPED = "bad", "good", "skipped"
RUNS_SURE: Final = 3
"""Runs of a commit where the violation always comes at the bad end."""
_FIRST_BAD: Final = re.compile(r"^([0-9a-f]{40,64}) is the first bad commit", re.MULTILINE)
SWEPT_MAX: Final = 60
"""Moments of a fault at a commit that does not come to the planned one."""
_STEPS_MAX: Final = 200
_GIT_S: Final = 300.0
_INSTALLED: Final = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class CommitVerdict:
    """A commit, its verdict (good, bad or skipped), and why."""

    commit: str
    subject: str
    verdict: str
    why: str


@dataclass
class Bisected:
    """What a bisection found. ``problem`` is why it did not find the commit, in one sentence."""

    first_bad: str = ""
    subject: str = ""
    author: str = ""
    date: str = ""
    candidates: tuple[str, ...] = ()
    judged: list[CommitVerdict] = field(default_factory=list)
    problem: str = ""


def bisect(
    pack: Pack,
    finding: str,
    *,
    root: Path,
    good: str,
    bad: str,
    overlay: Sequence[Path],
    runs: int,
    seconds: float,
    arguments: Sequence[str],
    say: Callable[[str], None],
) -> Bisected:
    """Find the first commit between ``good`` and ``bad`` with the finding of this cause.

    ``root`` is the folder of the project in the checkout. Raises UsageError for ends that are none:
    no repository, no such commit, a good one that is bad, a bad one that is good.
    """
    if shutil.which("git") is None:
        msg = "chaos bisect must have git; got no such program. Install it"
        raise UsageError(msg)
    top = _repository(root)
    ends = {name: _commit(top, name) for name in (good, bad)}
    if ends[good] == ends[bad]:
        msg = f"--between must be two commits; got {ends[good][:12]} twice. Give an older good one"
        raise UsageError(msg)
    if _git(top, "merge-base", "--is-ancestor", ends[good], ends[bad], check=False).returncode:
        msg = f"the good commit must be an ancestor of the bad one; got {good} and {bad}. Swap them, or give others"
        raise UsageError(msg)
    for path in overlay:
        if not path.resolve().is_relative_to(top) or not path.is_file():
            msg = f"--with must be a file of the checkout {top}; got {path}. Give such a file"
            raise UsageError(msg)
    if _git(top, "status", "--porcelain", "--untracked-files=no").stdout.strip():
        say("the checkout has changes that are in no commit: they are not judged, and not touched")
    with session.folder() as work:
        clone = work / "clone"
        _git(top, "clone", "--shared", "--no-checkout", "--quiet", str(top), str(clone))
        judge = _Judge(pack, finding, root, top, clone, work, overlay, runs, seconds, arguments, say)
        return _between(judge, ends[good], ends[bad])


def _between(judge: _Judge, good: str, bad: str) -> Bisected:
    """Judge both ends, and then what git bisect asks for."""
    worst = judge.at(bad)
    found = Bisected(judged=judge.judged)
    if worst.verdict == GOOD:
        fix = "Give a bad one: is the bug in changes that are not committed?"
        msg = f"the bad commit must have the violation; got {bad[:12]}, where {worst.why}. {fix}"
        raise UsageError(msg)
    if worst.verdict == SKIPPED:
        found.problem = f"the bad commit {bad[:12]} cannot be judged: {worst.why}"
        return found
    best = judge.at(good)
    if best.verdict == BAD:
        msg = f"the good commit must not have the violation; got {good[:12]}, where {best.why}. Give an older one"
        raise UsageError(msg)
    if best.verdict == SKIPPED:
        found.problem = f"the good commit {good[:12]} cannot be judged: {best.why}"
        return found
    said = judge.git("bisect", "start", bad, good).stdout
    for _ in range(_STEPS_MAX):
        if match := _FIRST_BAD.search(said):
            found.first_bad = match[1]
            found.subject, found.author, found.date = judge.git(
                "show", "--no-patch", "--format=%s%x00%an%x00%as", match[1]
            ).stdout.strip().split("\0")  # fmt: skip
            return found
        if "only 'skip'ped commits left" in said:
            found.candidates = tuple(re.findall(r"^([0-9a-f]{40,64})$", said, re.MULTILINE))
            short = ", ".join(each[:12] for each in found.candidates[:10])
            found.problem = f"only skipped commits are left: the violation came with one of {short}"
            return found
        here = judge.git("rev-parse", "HEAD").stdout.strip()
        word = {BAD: "bad", GOOD: "good", SKIPPED: "skip"}[judge.at(here).verdict]
        judge.clear()
        done = judge.git("bisect", word, check=False)
        said = done.stdout + done.stderr
        if done.returncode and "only 'skip'ped commits left" not in said:
            found.problem = f"git bisect {word} failed: {' '.join(said.split())[:300]}"
            return found
    found.problem = f"no commit was found in {_STEPS_MAX} steps"
    return found


class _Judge:
    """Judges commits in a clone, by replays of a pack."""

    def __init__(
        self,
        pack: Pack,
        finding: str,
        root: Path,
        top: Path,
        clone: Path,
        work: Path,
        overlay: Sequence[Path],
        runs: int,
        seconds: float,
        arguments: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._pack = pack
        self._finding = finding
        self._top = top
        self._clone = clone
        self._work = work
        self._root = clone / root.resolve().relative_to(top)
        self._test = root.resolve() / pack.node_id.partition("::")[0]
        self._overlay = [path.resolve() for path in overlay]
        self._runs_max = runs
        self._runs = 0
        self._seconds = seconds
        self._arguments = arguments
        self._say = say
        self.judged: list[CommitVerdict] = []

    def git(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run git in the clone."""
        return _git(self._clone, *words, check=check)

    def clear(self) -> None:
        """Take back what was laid over a commit."""
        self.git("reset", "--hard", "--quiet")
        self.git("clean", "-fdxq")

    def at(self, commit: str) -> CommitVerdict:
        """Judge a commit, and say it."""
        self.clear() if (self._clone / ".git" / "index").exists() else None
        self.git("checkout", "--detach", "--force", "--quiet", commit)
        subject = self.git("show", "--no-patch", "--format=%s", commit).stdout.strip()
        laid = self._lay_over()
        verdict, why = self._verdict(self._ask())
        judged = CommitVerdict(commit, subject, verdict, f"{why}{f' (with {laid} of today)' if laid else ''}")
        self.judged.append(judged)
        self._say(f"{commit[:12]} {verdict:<7} {judged.why}: {subject}")
        return judged

    def _lay_over(self) -> str:
        """Lay today's files over a commit; return their names."""
        files = list(dict.fromkeys([*self._overlay, *[self._test] * (not self._is_there(self._test))]))
        for path in files:
            target = self._clone / path.relative_to(self._top)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return ", ".join(path.name for path in files)

    def _is_there(self, path: Path) -> bool:
        return (self._clone / path.relative_to(self._top)).exists() or not path.is_relative_to(self._top)

    def _ask(self) -> Narrowed:
        """Replay the pack: first to see how often it is violated, then as often as that needs."""
        first = not self._runs
        each = RUNS_SURE * 2 if first else self._runs
        each = min(each, self._runs_max)
        order = NarrowOrder(
            kind="repeat", tries=each, seconds=self._seconds, finding=self._finding, each=each,
            checkout=str(self._top), stop_at_first=not first,
        )  # fmt: skip
        answer = self._answer(order)
        if first:
            share = answer.repeated / answer.repeats if answer.repeats else 0.0
            needed = RUNS_SURE if share in {0.0, 1.0} else math.ceil(math.log(MISSED) / math.log(1 - share))
            self._runs = min(self._runs_max, max(RUNS_SURE, needed))
            if 0 < share < 1:
                self._say(
                    f"the violation comes in {answer.repeated} of {answer.repeats} runs: {self._runs} of each commit"
                )
        return answer

    def _verdict(self, answer: Narrowed) -> tuple[str, str]:
        if answer.repeated:
            return BAD, f"violated in {answer.repeated} of {answer.repeats} runs"
        held = answer.outcomes.get(TrialOutcome.HELD, 0)
        if held and held == answer.repeats:
            return GOOD, f"held in {held} of {held} runs"
        if answer.unfired and not held:
            return self._swept(answer)
        return SKIPPED, answer.problem or "no run was made"

    def _swept(self, before: Narrowed) -> tuple[str, str]:
        """Judge a commit whose program never comes to the fault: try it at each other moment."""
        order = NarrowOrder(
            kind="sweep", tries=SWEPT_MAX + 2, seconds=self._seconds, finding=self._finding, moments=SWEPT_MAX,
            checkout=str(self._top),
        )  # fmt: skip
        answer = self._answer(order)
        if answer.repeated:
            return BAD, f"violated {answer.where} (it does not come to the planned one)"
        held = answer.repeats
        if answer.problem or not answer.is_whole or not held or answer.outcomes.get(TrialOutcome.OTHER):
            return SKIPPED, before.problem
        return GOOD, f"held with the fault at each of {held} moments (it does not come to the planned one)"

    def _answer(self, order: NarrowOrder) -> Narrowed:
        return session.ask(
            order,
            self._pack.path,
            self._pack.node_id,
            root=self._root,
            work=self._work,
            arguments=self._arguments,
            environment=self._environment(),
        )

    def _environment(self) -> Mapping[str, str]:
        """Return what makes Python find the modules of the clone, and not those of the checkout."""
        inside = [Path(place).resolve() for place in sys.path if place]
        own = [place for place in inside if place.is_relative_to(self._top) and not _INSTALLED & set(place.parts)]
        given = [Path(place).resolve() for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        places = [self._clone / place.relative_to(self._top) for place in own]
        rest = [place for place in given if not place.is_relative_to(self._top)]
        return {
            "PYTHONPATH": os.pathsep.join(map(str, [*places, *rest])),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def _repository(root: Path) -> Path:
    done = _git(root, "rev-parse", "--show-toplevel", check=False)
    if done.returncode:
        msg = f"chaos bisect must have the project in a git repository; got {root}, which is in none. Run it in a clone"
        raise UsageError(msg)
    return Path(done.stdout.strip()).resolve()


def _commit(top: Path, name: str) -> str:
    done = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False)
    if done.returncode:
        msg = f"--between must name two commits of {top}; got {name!r}. git log shows them"
        raise UsageError(msg)
    return done.stdout.strip()


def _git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in a folder. Raises UsageError with what it says, where it may not fail."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    quiet = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "advice.detachedHead=false")
    done = subprocess.run(
        ["git", *quiet, *words], cwd=folder, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=_GIT_S, check=False,
    )  # fmt: skip
    if check and done.returncode:
        msg = f"git {words[0]} must work in {folder}; got: {' '.join(done.stderr.split())[:300]}. Mend it first"
        raise UsageError(msg)
    return done
