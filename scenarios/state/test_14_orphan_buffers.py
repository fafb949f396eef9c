"""Scenario 14: cycles die at every point; the history has whole cycles only.

The buffer of a living cycle is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import Roots, StateCrashPoint
from pytest_chaos import Finding, after_mark, at_every_point, at_point, kill, pause

from scenarios.state.state_checks import check_cycles, check_cycles_by_model, read_cycles
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive, waits_or_has_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

pytestmark = pytest.mark.chaos(
    id="14-orphan-buffers",
    title="A cycle is in the history whole, or not at all",
    why="Half a round of findings, compared with a whole one, looks as if the other half had been fixed.",
    steps=[
        "Cycles are killed at each named point, under names that come again; another instance has one under way.",
        "One buffer cannot be read any more.",
        "An agent starts and recovers the orphans; it is killed at each point of that and starts again.",
        "Whole cycles are in the history, the dead have left nothing, the unreadable is set aside with all its files.",
        "The living one is untouched, and commits.",
    ],
)

CYCLE = "scenarios.state.state_agents:run_cycle"
START = "scenarios.state.state_agents:start_up"
RECOVER = "scenarios.state.state_agents:recover"
ENTRIES = 40
NAME = "nightly"


@pytest.fixture
def root(chaos: Run) -> Path:
    """Return an agent's folder."""
    root = chaos.directory / "root"
    Roots(str(root)).make()
    return root


def cycle(chaos: Run, root: Path, parts: dict[str, str], agent: str, name: str = NAME) -> Agent:
    """Start an instance that does one cycle."""
    kwargs = {"root": str(root), "name": name, "entries": ENTRIES, "parts": parts}
    return chaos.spawn(CYCLE, kwargs=kwargs, name=agent)


def start(chaos: Run, root: Path, parts: dict[str, str], name: str = "agent") -> None:
    """Start an agent on the folder, which recovers orphans, and wait for its end."""
    chaos.spawn(START, kwargs={"root": str(root), "parts": parts}, name=name).wait_exit()


def buffers_in(root: Path) -> dict[str, bytes]:
    """Return the files in the folder of buffers, those in quarantine under their path."""
    folder = root / ".core" / "state"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_left(root: Path, but: set[str]) -> Iterator[Finding]:
    """Find files of dead cycles in the folder."""
    for name in sorted(set(buffers_in(root)) - but):
        kind = "left" if name.endswith(".buffer") else "sidecar-left"
        yield Finding(signature=f"orphans:{kind}", text=f"{name} is still there", checker="check_nothing_left")


def judge(chaos: Run, root: Path, *, cycles: int | None = None, but: set[str] | None = None, beside: str = "") -> None:
    """Expect whole cycles, all acknowledged ones, and no trace of the others."""
    chaos.check(check_cycles(chaos.history, root), expect="whole cycles, and all that were acknowledged")
    chaos.check(
        check_cycles_by_model(chaos.history, root, beside), expect="the history and the ends that the model has"
    )
    chaos.check(check_nothing_left(root, but or set()), expect="nothing is left of dead cycles")
    found = len(read_cycles(root))
    if cycles is not None:
        chaos.expect("cycles in the history", observed=found, holds=found == cycles)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_cycles_killed_at_every_point(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """Instances of one name die at every point; the history has the committed ones, whole."""
    victims = {f"victim-{number}": point for number, point in enumerate(StateCrashPoint.of("cycle"))}
    chaos.plan(*(kill(name, at_point(point)) for name, point in victims.items()))
    chaos.note("crash_points", list(StateCrashPoint.of("cycle")))
    for name in victims:
        cycle(chaos, root, parts, name).wait_exit()
    left = [name for name in buffers_in(root) if name.endswith(".buffer")]
    chaos.expect("orphans before the start", observed=len(left), holds=len(left) == len(victims) - 2)
    start(chaos, root, parts)
    judge(chaos, root, cycles=2)


def test_a_second_instance_is_at_work(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """A living cycle keeps its files byte for byte while an agent starts, and commits."""
    chaos.plan(
        pause("living", after_mark("half")),
        kill("dying", at_point("recovery.cycle.before_commit")),
    )
    living = cycle(chaos, root, parts, "living")
    living.wait_state("T")
    before = buffers_in(root)
    chaos.expect("files of the living cycle", observed=sorted(before), holds=len(before) >= 2)
    cycle(chaos, root, parts, "dying").wait_exit()
    start(chaos, root, parts)
    after = buffers_in(root)
    chaos.check(check_untouched(before, after), expect="the living cycle's files are untouched")
    living.resume()
    living.wait_exit()
    done = [mark.agent for mark in chaos.history.acknowledged("cycle")]
    chaos.expect("cycles that were committed", observed=done, holds=done == ["living"])
    judge(chaos, root, cycles=1)


def check_untouched(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[Finding]:
    """Find files of a living cycle that are gone or changed."""
    for name, content in before.items():
        if after.get(name) != content:
            what = "changed" if name in after else "gone"
            yield Finding(signature="orphans:live-touched", text=f"{name} is {what}", checker="check_untouched")


def test_a_name_comes_again(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """Two committed cycles of one name are both in the history, a killed one is not."""
    chaos.plan(kill("second", at_point("recovery.cycle.in_commit")))
    for name in ("first", "second", "third"):
        cycle(chaos, root, parts, name).wait_exit()
        start(chaos, root, parts, f"after-{name}")
    judge(chaos, root, cycles=2)


def test_a_buffer_cannot_be_read(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """An unreadable buffer is quarantined with its sidecar files, and never committed."""
    chaos.plan(kill("victim", at_point("recovery.cycle.before_commit")))
    cycle(chaos, root, parts, "victim", name="damaged").wait_exit()
    damage(root)
    before = buffers_in(root)
    chaos.expect("files of the dead cycle", observed=sorted(before), holds=len(before) == 3)
    start(chaos, root, parts)
    moved = {f"quarantine/{name}" for name in before}
    after = buffers_in(root)
    chaos.expect("files set aside", observed=sorted(after), holds=set(after) == moved)
    (file,) = (name for name in before if name.endswith(".buffer"))
    kept = after.get(f"quarantine/{file}")
    chaos.expect("the unreadable file is as it was", observed=len(kept or b""), holds=kept == before[file])
    judge(chaos, root, cycles=0, but=moved)


def damage(root: Path) -> None:
    """Overwrite the header of an SQLite file."""
    (path,) = (root / ".core" / "state").glob("*.buffer")
    content = path.read_bytes()
    path.write_bytes(b"\x5a" * min(len(content), 4096) + content[4096:])


def killed_and_repeated(chaos: Run, root: Path, parts: dict[str, str], points: tuple[str, ...]) -> None:
    """Kill a start at each point, over an orphan and an unreadable buffer; start again."""
    victims = {f"start-{number}": point for number, point in enumerate(points)}
    dying = {f"{kind}-{name}" for name in victims for kind in ("orphan", "damaged")}
    chaos.plan(
        *(kill(name, at_point(point)) for name, point in victims.items()),
        *(kill(name, at_point("recovery.cycle.before_commit")) for name in sorted(dying)),
    )
    chaos.note("crash_points", list(points))
    aside: set[str] = set()
    for name in victims:
        cycle(chaos, root, parts, f"damaged-{name}", name="damaged").wait_exit()
        damage(root)
        aside |= {f"quarantine/{file}" for file in buffers_in(root) if file.startswith("damaged")}
        cycle(chaos, root, parts, f"orphan-{name}").wait_exit()
        start(chaos, root, parts, name)
        start(chaos, root, parts, f"after-{name}")
        found = set(buffers_in(root))
        chaos.expect(f"{victims[name]}: what is left is set aside", observed=len(found), holds=found == aside)
    judge(chaos, root, cycles=0, but=aside)


def test_a_recovery_killed_at_points_drawn_from_the_seed(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """The quick form: three of the named points."""
    drawn = chaos.random("points")
    points = tuple(sorted(StateCrashPoint.of("orphans"), key=lambda _: drawn.random())[:3])
    killed_and_repeated(chaos, root, parts, points)


@pytest.mark.chaos_deep
def test_a_recovery_killed_at_every_point(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """All of them, one after another, in one folder."""
    killed_and_repeated(chaos, root, parts, StateCrashPoint.of("orphans"))


@pytest.mark.parametrize("fault", [pause, kill])
@pytest.mark.parametrize(
    ("points", "steps"), [("recovery.cycle.*", ""), ("", "root/.core/db.sqlite*")], ids=["points", "steps"]
)
def test_a_cycle_stops_at_every_point(
    chaos: Run, root: Path, parts: dict[str, str], fault: Callable[..., Fault], points: str, steps: str
) -> None:
    """Wherever a cycle stands still, a start leaves it alone; where it died, nothing is left."""
    chaos.plan(at_every_point("victim", fault, points=points, steps=steps, sample=SAMPLE))
    stood = outlive(
        chaos,
        cycle(chaos, root, parts, "victim"),
        lambda: [chaos.spawn(START, kwargs={"root": str(root), "parts": parts}, name="between")],
        database=Roots(str(root)).database,
    )
    start(chaos, root, parts, "last")
    judge(chaos, root, cycles=1 if stood else None, beside="between" if stood else "")


def test_a_recovery_stands_still_at_every_point(chaos: Run, root: Path, parts: dict[str, str]) -> None:
    """Wherever a recovery stands still, the next one waits, and nothing is put away twice."""
    dying = ("damaged", "orphan")
    chaos.plan(
        *(kill(name, at_point("recovery.cycle.before_commit")) for name in dying),
        at_every_point("zombie", pause, points="recovery.orphans.*_[dq]*", sample=SAMPLE),  # behind the look
    )
    for name in dying:
        cycle(chaos, root, parts, name, name=name).wait_exit()
        if name == "damaged":
            damage(root)
    aside = {f"quarantine/{file}" for file in buffers_in(root) if file.startswith("damaged")}

    def recovering(name: str) -> Agent:
        return chaos.spawn(RECOVER, kwargs={"root": str(root), "parts": parts}, name=name)

    database = Roots(str(root)).database
    outlive(chaos, recovering("zombie"), lambda: [recovering("next")], database=database, waits=waits_or_has_ended)
    chaos.agent("next").wait_exit()
    put_away = [file for mark in chaos.history.acknowledged("start-up") for file, _ in mark.value["orphans"]]
    chaos.expect("buffers that were put away", observed=len(put_away), holds=len(set(put_away)) == len(put_away) == 2)
    judge(chaos, root, cycles=0, but=aside)
