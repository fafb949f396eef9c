"""The failure page of a run and of an exploration: what it says, and what it says of bad input."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos_reports.failure.difference import compare, compared
from chaos_reports.failure.page import page_of
from chaos_reports.failure.source import read
from chaos_reports.failure.write import write_one, write_pages
from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence import manifest
from pytest_chaos.model.story import (
    CURVE_NAME,
    SHRUNK_NAME,
    STEPS_NAME,
    Curve,
    CurvePoint,
    LostItem,
    Reference,
    RunSteps,
    Shrunk,
    Story,
    StoryStep,
)
from pytest_chaos.model.values import Finding, Mark, MarkKind, Receipt, Verdict

from tests.reports.failure.packs import HOSTILE, LOST, pack, states

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES_MAX = 1_000_000


def text_of(page: Path) -> str:
    """Return the page without the parts that no reader sees."""
    return re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(), flags=re.DOTALL)


def test_a_run_begins_with_one_sentence_and_the_line_that_runs_it_again(tmp_path: Path) -> None:
    """The sentence names promise, fault and violation; then come receipts and the command."""
    page, label = write_one(pack(tmp_path))
    html = text_of(page)
    order = [
        html.index(text) for text in ("did not hold, after kill of worker", "signal 9", "chaos replay evidence/run-1")
    ]
    assert label == "VIOLATED"
    assert page == tmp_path / "failures/run-1.html"
    assert order == sorted(order)
    assert "ValueError: no" in html


def test_a_run_shows_its_restart_and_its_open_operation(tmp_path: Path) -> None:
    """Each process is a bar of its own; an operation without an ack has an open end."""
    chart = page_of(read(pack(tmp_path))).chart
    assert chart is not None
    kinds = [box.kind for box in chart.boxes]
    assert kinds.count("process-died") == 1
    assert kinds.count("process") == 1
    assert [box.is_open for box in chart.boxes if box.kind == "unknown"] == [True]
    assert kinds.count("lost") == 1


def test_findings_of_one_cause_are_one_finding(tmp_path: Path) -> None:
    """Twelve findings that differ in their key alone are one, with a line for each."""
    findings = tuple(Finding(signature=f"check:job {number} lost", text=f"job {number} lost") for number in range(12))
    causes = page_of(read(pack(tmp_path, findings=findings))).causes
    assert [cause.title for cause in causes] == ["job 0 lost"]
    assert len(causes[0].lines) == 11


def test_expectations_of_different_names_stay_apart(tmp_path: Path) -> None:
    """A name that was chosen is a cause, however short; its numbers are none."""
    names = ("a", "b", "order 1 kept", "order 2 kept")
    findings = tuple(Finding(signature=f"expectation:{name}", text=name) for name in names)
    titles = [cause.title for cause in page_of(read(pack(tmp_path, findings=findings))).causes]
    assert titles == ["a", "b", "order 1 kept"]


def test_ten_thousand_operations_fit_into_a_megabyte(tmp_path: Path) -> None:
    """A long history is drawn around what matters; the rest is counted."""
    page, _ = write_one(pack(tmp_path, operations=10_000))
    assert page.stat().st_size < PAGE_BYTES_MAX
    assert "not drawn" in page.read_text()


def test_hostile_texts_and_long_names_are_text(tmp_path: Path) -> None:
    """Neither markup of a target nor a name of 10,000 characters gets into the page as it is."""
    long = "x" * 10_000
    finding = Finding(signature=HOSTILE, text=f"{HOSTILE}{long}")
    page, _ = write_one(
        pack(
            tmp_path,
            findings=(finding,),
            title=f"{HOSTILE}{long}",
            output=f"{HOSTILE}\x1b[31m{long}\n",
            key=HOSTILE + long,
        )
    )
    html = page.read_text()
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert long not in html
    assert "\x1b" not in html


@pytest.mark.parametrize("lost", ["evidence.sqlite", "manifest.json", "marks.jsonl"])
def test_half_a_pack_says_so(tmp_path: Path, lost: str) -> None:
    """Whatever part is missing, there is a page that names it, and no green one."""
    evidence = pack(tmp_path)
    (evidence / lost).unlink()
    page, label = write_one(evidence)
    assert label != "HELD"
    assert lost in text_of(page)


def test_a_damaged_pack_is_never_green(tmp_path: Path) -> None:
    """A pack whose index was changed shows nothing, even if its manifest says that it held."""
    evidence = pack(tmp_path)
    (evidence / "evidence.sqlite").write_bytes(b"not a database")
    manifest = evidence / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"verdict": "HELD"}))
    page, label = write_one(evidence)
    assert label == "INCONCLUSIVE"
    assert "cannot be read" in text_of(page)


def test_a_pack_of_a_newer_version_says_so(tmp_path: Path) -> None:
    """The page names the format, and does not guess."""
    evidence = pack(tmp_path)
    manifest = evidence / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    page, label = write_one(evidence)
    assert label == "INCONCLUSIVE"
    assert "newer format" in text_of(page)


def test_a_run_without_marks_agents_and_findings_has_a_page(tmp_path: Path) -> None:
    """A run that left nothing is a page, too."""
    page, label = write_one(pack(tmp_path, operations=0, findings=(), verdict=Verdict.INCONCLUSIVE))
    assert label == "INCONCLUSIVE"
    assert "decided nothing" in text_of(page)


def test_orders_that_make_no_sense_are_borne(tmp_path: Path) -> None:
    """Findings and receipts may point behind the end, or before the beginning."""
    finding = msgspec.structs.replace(LOST, orders=(-5, 7, 10**9))
    page, _ = write_one(pack(tmp_path, operations=3, findings=(finding,)))
    assert page.exists()


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    """A folder that is neither pack nor exploration is an error with a remedy."""
    with pytest.raises(ResultsError, match="must be an evidence pack or the states of an exploration; got neither"):
        write_one(tmp_path)


def test_a_session_writes_a_page_for_each_pack_that_is_there(tmp_path: Path) -> None:
    """Packs that are gone, or elsewhere, get none."""
    pack(tmp_path)
    assert list(write_pages(tmp_path, ["evidence/run-1", "evidence/gone", str(tmp_path / "evidence/run-1")])) == [
        "evidence/run-1"
    ]


def test_an_exploration_joins_a_lost_item_to_the_line_it_relied_on(tmp_path: Path) -> None:
    """The sentence, the strip and the table name the program line that nothing synced."""
    page, label = write_one(states(tmp_path))
    html = text_of(page)
    assert label == "VIOLATED"
    assert "order 2 is lost; it was acknowledged after shop.py:12 in place, which nothing had synced." in html
    assert "should have made it durable" in html
    assert re.findall(r'<li class="(\w+)"><b>(\w+)', html) == [("held", "crash"), ("fired", "power")]
    assert "survives a kill before step 3, where no write is lost, lost at 3" in html


def test_a_power_loss_after_the_last_step_is_not_told_as_before_it(tmp_path: Path) -> None:
    """The place after the last step has no number; a column without a program line is left out."""
    steps = (StoryStep(number=1, text="create orders.txt"), StoryStep(number=2, text="write orders.txt"))
    kept = states(tmp_path, lost=(), steps=steps, neighbour=Reference(code="crash:3m1", text="a kill", step=3))
    story = json.loads((kept / "story.json").read_text()) | {"steps": 2}
    (kept / "story.json").write_text(json.dumps(story))
    html = text_of(write_one(kept)[0])
    assert "When the power is lost after its last step (sync orders.txt), " in html
    assert "survives before the last mark, lost after it (after the last step)" in html
    assert "Program line" not in html
    assert "4 states; a state counts once for each family and each model" in html


def test_a_planned_fault_that_did_not_fire_is_not_told_as_none(tmp_path: Path) -> None:
    """Nothing was planned, or it did not fire: the sentence says which."""
    receipt = Receipt(fault=0, kind="kill", agent="worker", when="at x", fired=False, evidence="it ended before")
    assert ", and no fault fired: " in page_of(read(pack(tmp_path, receipts=(receipt,)))).sentence
    assert ", without any fault: " in page_of(read(pack(tmp_path / "none", receipts=()))).sentence


def test_the_state_is_compared_with_the_promised_one_file_by_file(tmp_path: Path) -> None:
    """A lost line is a line of a text diff; a page with old and new sectors is torn, in hex."""
    kept = states(tmp_path)
    files = {file.path: file for file in compare(kept, "power-3/directory", "power-3/promised").files}
    assert [line.text for line in files["orders.txt"].lines if line.kind == "gone"] == ["2"]
    assert "torn (page 0)" in files["page.bin"].summary
    assert files["page.bin"].lines[1].text.startswith("00000000  ff ff")


def test_a_path_that_leads_out_of_the_evidence_is_not_followed(tmp_path: Path) -> None:
    """Neither a path with .. in it nor a symbolic link shows a file of this machine."""
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "key").write_text("secret-of-the-machine\n")
    kept = states(tmp_path, folder="../outside/../outside")
    assert "secret-of-the-machine" not in write_one(kept)[0].read_text()
    linked = states(tmp_path / "second")
    (linked / "power-3/directory/key").symlink_to(secret / "key")
    (linked / "power-3/directory/folder").symlink_to(secret)
    html = write_one(linked)[0].read_text()
    assert "secret-of-the-machine" not in html
    assert "outside/key" in html


def test_a_database_is_compared_by_its_rows(tmp_path: Path) -> None:
    """Rows that are lost and rows that are new are named, with the values of their columns."""
    import sqlite3

    contents = []
    for number, rows in enumerate([(1, 2), (1, 3)]):
        path = tmp_path / f"{number}.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO orders VALUES (?)", [(row,) for row in rows])
        connection.commit()
        connection.close()
        contents.append({"app.db": path.read_bytes()})
    (file,) = compared(contents[0], contents[1]).files
    assert [(line.kind, line.text) for line in file.lines] == [
        ("place", "table orders"),
        ("gone", "id=3"),
        ("new", "id=2"),
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"target": 1}', b'{"causes": "x"}', b"\xff\xfe", b'{"target": "t", "causes": [{}]}'],
    ids=["empty", "torn", "a list", "wrong type", "no target", "bytes", "an empty cause"],
)
def test_a_story_that_cannot_be_read_says_so(tmp_path: Path, content: bytes) -> None:
    """The page says what is wrong with the story, and is not green."""
    kept = states(tmp_path)
    (kept / "story.json").write_bytes(content)
    page, label = write_one(kept)
    assert label == "INCONCLUSIVE"
    assert "cannot be read" in text_of(page)


def test_a_story_with_unknown_and_missing_fields_is_told(tmp_path: Path) -> None:
    """A newer version may add fields and leave others out: what is known is shown."""
    kept = states(tmp_path)
    story = {"target": "T", "format": 7, "future": {"a": 1}, "causes": [{"signature": "s", "text": "it is wrong"}]}
    (kept / "story.json").write_text(json.dumps(story))
    page, label = write_one(kept)
    assert label == "INCONCLUSIVE"
    assert "it is wrong" in text_of(page)
    assert "newer than 1" in text_of(page)


def test_a_fault_has_the_program_line_at_which_it_struck(tmp_path: Path) -> None:
    """The receipt of the planned fault is followed by the line that the agent noted."""
    told = {"kind": "note", "operation": "chaos.fault", "agent": "worker", "pid": 11}
    notes = [told | {"key": 0, "value": {"kind": "kill", "line": "shop.py:12 in save"}}, told | {"key": 1, "value": 7}]
    page, _ = write_one(pack(tmp_path, more_marks=notes))
    assert text_of(page).count('signal 9, at <code class="line">shop.py:12 in save</code>') == 1


def test_a_run_whose_steps_were_watched_names_step_and_line(tmp_path: Path) -> None:
    """The item has its step, the strip its calls; without steps there is the command."""
    ack = Mark(kind=MarkKind.ACK, operation="order", key=3, agent="worker", order=7)
    why = "it was acknowledged after this step, which reached the page cache only: nothing synced it"
    item = LostItem(mark=ack, why=why, step=2, text="write orders", line="shop.py:9 in save")
    called = StoryStep(number=2, text="write orders", line="shop.py:9 in save", agent="worker")
    steps = RunSteps(
        lost=(item,), steps=(called, StoryStep(number=2, mark=ack, agent="worker")), total=9, is_repeat=True
    )
    watched, bare, blind = pack(tmp_path), pack(tmp_path, name="run-2"), pack(tmp_path, name="run-3")
    for folder, kept in ((watched, steps), (blind, RunSteps(problem="no seccomp"))):
        (folder / "attachments").mkdir()
        (folder / "attachments" / STEPS_NAME).write_bytes(msgspec.json.encode(kept))
        manifest.write(folder, manifest.read(folder))

    html = text_of(write_one(watched)[0])
    assert "<code>2: write orders</code>" in html
    assert html.count("shop.py:9 in save") == 2
    assert "should have made it durable</span>" in html
    assert f"{why}; then came kill of worker" in html
    assert "a replay with the same finding, 9 in all" in html
    assert "--steps" not in html
    assert "chaos replay evidence/run-2 --steps" in text_of(write_one(bare)[0])
    assert "could not be watched: no seccomp" in text_of(write_one(blind)[0])
    (watched / "attachments" / STEPS_NAME).write_text("{")
    manifest.write(watched, manifest.read(watched))
    assert "cannot be read as the durable steps of the run" in text_of(write_one(watched)[0])


def test_a_curve_and_a_shrunk_plan_are_shown_where_the_pack_has_them(tmp_path: Path) -> None:
    """Shares with their bounds, the faults that are left, and a test to paste."""
    folder, bare = pack(tmp_path), pack(tmp_path, name="run-2")
    points = tuple(CurvePoint(at=at, runs=20, violated=20 * (at == 7)) for at in range(1, 11))
    impossible = CurvePoint(at=11, runs=2, violated=3)
    shrunk = Shrunk(faults=("kill worker at step 7",), faults_before=4, runs=31,
                    necessary=("without the kill: 0 of 20",), test=f"def test_it(chaos): ...  # {HOSTILE}")  # fmt: skip
    (folder / "attachments").mkdir()
    for name, kept in ((CURVE_NAME, Curve(points=(*points, impossible), fault="kill worker")), (SHRUNK_NAME, shrunk)):
        (folder / "attachments" / name).write_bytes(msgspec.json.encode(kept))
    manifest.write(folder, manifest.read(folder))

    html = write_one(folder)[0].read_text()
    assert "highest 100 % at step 7; 200 runs at 10 moments" in html
    assert 'class="line" d="M0 100L111 100' in html
    assert "<td>7</td><td>20 of 20</td><td>86.1 % to 100 %</td>" in html
    assert "1 fault of 4 are enough" not in html
    assert "1 fault of 4 is enough for the same finding, found in 31 runs." in html
    assert "without the kill: 0 of 20" in html
    assert HOSTILE not in html
    assert "P(violation)" not in write_one(bare)[0].read_text()
    assert "Shrunk plan" not in write_one(bare)[0].read_text()


def test_the_output_of_a_run_with_an_error_is_beside_its_finding(tmp_path: Path) -> None:
    """The last lines are there, as text."""
    html = text_of(write_one(states(tmp_path, output=f"first\n{HOSTILE}\nOSError: disk full"))[0])
    assert "What the program printed in this run" in html
    assert "OSError: disk full" in html
    assert "<img" not in html


def test_a_story_that_found_nothing_is_not_green(tmp_path: Path) -> None:
    """A story without a verdict, or with an unknown one, shows nothing."""
    kept = states(tmp_path)
    (kept / "story.json").write_bytes(msgspec.json.encode(Story(target="T", verdict="GREEN")))
    assert write_one(kept)[1] == "INCONCLUSIVE"


def test_steps_that_lie_together_are_shaded_by_their_share(tmp_path: Path) -> None:
    """In a run of 4,000 steps every other one is wrong: half as strong as where all are."""
    kept = states(tmp_path, struck={"crash": tuple(range(1, 2_000, 2)), "power": tuple(range(1, 2_000))})
    story = json.loads((kept / "story.json").read_text()) | {"steps": 4_000}
    (kept / "story.json").write_text(json.dumps(story))
    crash, power = page_of(read(kept)).causes[0].heat
    assert {cell.share for cell in power.cells[:-1]} == {1.0}
    assert all(0.4 < cell.share < 0.6 for cell in crash.cells[:-1])
    assert crash.cells[-1].x < 500


def test_a_target_that_is_wrong_without_any_fault_says_so_once(tmp_path: Path) -> None:
    """Nothing was explored then; the line that explores it again is there."""
    kept = states(tmp_path)
    finding = Finding(signature="check:wrong", text="without any fault: always wrong", kind="clean-run")
    story = Story(target="T", verdict="VIOLATED", seed="1", command="chaos explore t.py:T", findings=(finding,))
    (kept / "story.json").write_bytes(msgspec.json.encode(story))
    html = text_of(write_one(kept)[0])
    assert "T is wrong without any fault: always wrong" in html
    assert "chaos explore t.py:T --seed 1" in html
