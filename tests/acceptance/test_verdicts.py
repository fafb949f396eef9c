"""Mistakes that new users make: the verdict, the exit code,
and the sentence that says what to change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.evidence import records

if TYPE_CHECKING:
    import pytest

HEAD = """
import asyncio, os, signal, sys, time
import pytest
from pytest_chaos import after_mark, at_moment, at_point, kill, restart

def waits(marks): marks.ack("up"); time.sleep(60)
def quick(marks): marks.ack("x", 1)
def crash(): print("about to do the thing"); raise RuntimeError("disk on fire")
async def later(marks): marks.ack("x", 1)
def one_by_one(marks): yield marks.ack("x", 1)
class Worker: ...
def once(marks, then=""):  # what it does when it is started again
    if os.path.exists("seen"):
        return exec(then)
    open("seen", "w").close(); marks.ack("up"); time.sleep(60)
def aborts_first():
    if not os.path.exists("seen"):
        open("seen", "w").close(); os.abort()
def passes(): sys.audit("orders.saved", 1); os.stat(".")

def judged(chaos): chaos.expect("all is well", observed=1, holds=True)
"""

QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:anyio", "--chaos-confirm=0")


class Case(NamedTuple):
    """The body of a test, its verdict, its first finding,
    and words of the sentence that a user sees.
    """

    body: str
    verdict: str
    signature: str
    words: tuple[str, ...]


AGAIN = "chaos.plan(restart('w', after_mark('up'))); a = chaos.spawn(once"
KILLED = "chaos.plan(kill('w', after_mark('up'))); a = chaos.spawn(waits, name='w')"

CASES = {
    "a_misspelt_point": Case(
        "chaos.plan(kill('w', at_point('orders.savd'))); chaos.spawn(passes, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:fault-not-fired:kill",
        ("ended (exit code 0) before it came to that", "did you mean 'orders.saved'?", "Plan a time"),
    ),
    "a_point_never_passed_by_an_agent_that_goes_on": Case(
        "chaos.plan(kill('w', at_point('no.such.point'))); chaos.spawn(waits, name='w').wait_exit(timeout_s=0.3)",
        "INCONCLUSIVE",
        "harness:fault-not-fired:kill",
        ("agent 'w' still runs (state S)", "waited 0.3 s for the end of agent 'w'", "give owed='why'"),
    ),
    "a_kill_after_the_end": Case(
        "a = chaos.spawn(quick, name='w'); a.wait_exit(); a.kill(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:too-late",
        ("it has ended already (exit code 0)", "Plan the fault at a point"),
    ),
    "a_module_that_is_not_found": Case(
        "a = chaos.spawn([sys.executable, '-m', 'no_such_module'], name='w'); a.wait_for_output('ready')",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("No module named no_such_module", "may_fail=True"),
    ),
    "a_command_that_is_not_found": Case(
        "chaos.spawn(['sh', '-c', 'nope'], name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("exit code 127", "nope", "may_fail=True"),
    ),
    "an_executable_that_is_missing": Case(
        "chaos.spawn(['./nope'], name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:SpawnError",
        ("No such file or directory: ./nope", "Mend the agent's target"),
    ),
    "our_own_kill_then_a_wait": Case(
        "chaos.plan(kill('w', after_mark('up'))); chaos.spawn(waits, name='w').wait_for_output('ready')",
        "INCONCLUSIVE",
        "harness:ended-by-fault",
        ("a fault of this run ended it before", "Wait for that before the fault comes"),
    ),
    "an_agent_that_raised": Case(
        "chaos.spawn(crash, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("RuntimeError: disk on fire", "about to do the thing", "Traceback", "may_fail=True"),
    ),
    "an_agent_that_raised_and_data_that_is_missing": Case(
        "chaos.spawn(crash, name='w').wait_exit(); chaos.expect('data is there', observed=0, holds=False)",
        "VIOLATED",
        "harness:agent-failed",
        ("RuntimeError: disk on fire", "data is there: 0"),
    ),
    "an_agent_that_raised_and_an_assert": Case(
        "chaos.spawn(crash, name='w').wait_exit(); assert os.path.exists('no such file')",
        "VIOLATED",
        "harness:agent-failed",
        ("RuntimeError: disk on fire", "assert False"),
    ),
    "an_agent_that_may_fail": Case(
        "chaos.spawn(crash, name='w', may_fail=True).wait_exit(); judged(chaos)", "HELD", "", ()
    ),
    "a_misspelt_mark": Case(
        "chaos.spawn(quick, name='w').wait_for('y', timeout_s=5); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-ended",
        ("it ended before", "1 ack x"),
    ),
    "a_mark_that_is_owed": Case(
        "chaos.spawn(quick, name='w').wait_for('y', owed='y follows x'); judged(chaos)",
        "VIOLATED",
        "liveness:agent-ended",
        ("y follows x", "it ended before"),
    ),
    "a_wait_that_is_owed": Case(
        "chaos.spawn(waits); chaos.wait_until(lambda: 0, timeout_s=0.1, what='z', owed='z is done in time')",
        "VIOLATED",
        "liveness:wait-expired",
        ("z is done in time", "waited 0.1 s for z"),
    ),
    "a_name_that_is_taken": Case(
        "chaos.spawn(waits, name='w'); chaos.spawn(waits, name='w')",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("the name of an agent must be free", "Give another name"),
    ),
    "a_plan_for_an_agent_that_is_not_there": Case(
        "chaos.plan(kill('wrong', at_point('open'))); chaos.spawn(quick, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:fault-not-fired:kill",
        ("no agent called 'wrong' was started (there were: w)",),
    ),
    "a_plan_after_the_first_agent": Case(
        "chaos.spawn(quick, name='w').wait_exit(); chaos.plan(kill('w', at_point('open')))",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("fixed before its first agent starts",),
    ),
    "a_test_with_a_wrong_name": Case(
        "chaos.spawn(quick, name='w').wait_exit(); foo_bar",
        "INCONCLUSIVE",
        "harness:NameError",
        ("foo_bar", "Mend the test"),
    ),
    "an_async_function": Case(
        "chaos.spawn(later, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        (
            "must do its work when it is called",
            "gave a coroutine",
            "asyncio.run",
        ),
    ),
    "a_generator_function": Case(
        "chaos.spawn(one_by_one, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("gave a generator",),
    ),
    "a_class": Case(
        "chaos.spawn(Worker, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        (
            "Worker, which is a class",
            "Name a function that does the work",
        ),
    ),
    "a_wrong_signature": Case(
        "chaos.spawn(quick, kwargs={'folder': 'x'}, name='w').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("got an unexpected keyword argument 'folder'",),
    ),
    "a_function_that_was_called": Case(
        "chaos.spawn(passes(), name='w'); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("got None. Give the function, and do not call it",),
    ),
    "an_argument_that_is_no_json": Case(
        "chaos.spawn(quick, kwargs={'marks': chaos.directory}); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        (
            "kwargs must be JSON",
            "Pass plain values",
        ),
    ),
    "a_number_in_the_environment": Case(
        "chaos.spawn(quick, env={'PORT': 80}); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("got PORT=80. Write str(...)",),
    ),
    "a_number_in_an_argv": Case(
        "chaos.spawn(['sleep', 0]); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("must be made of texts and paths; got 0",),
    ),
    "a_folder_that_is_not_there": Case(
        "chaos.spawn(quick, cwd='/no/such'); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("cwd must be a folder; got /no/such",),
    ),
    "a_condition_that_was_not_called": Case(
        "chaos.expect('it is there', observed=1, holds=chaos.directory.exists)",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("must be True or False; got <bound method",),
    ),
    "a_text_for_a_condition": Case(
        "chaos.expect('it is there', observed=1, holds='False')",
        "INCONCLUSIVE",
        "harness:UsageError",
        ("must be True or False; got 'False'",),
    ),
    "a_plan_in_a_list": Case(
        "chaos.plan([kill('w', after_mark('x'))]); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        (
            "a plan must be made of faults",
            "Give each by itself",
        ),
    ),
    "a_fault_at_a_text": Case(
        "chaos.plan(kill('w', 'open')); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        (
            "must be at_point(...)",
            "got 'open'. Call one of them",
        ),
    ),
    "a_wait_for_a_text": Case(
        "chaos.spawn(quick).wait_exit(timeout_s='1'); judged(chaos)",
        "INCONCLUSIVE",
        "harness:UsageError",
        (
            "timeout_s must be a positive, finite number of seconds",
            "got '1'",
        ),
    ),
    "nothing_asserted": Case(
        "chaos.spawn(quick, name='w').wait_exit()",
        "INCONCLUSIVE",
        "harness:nothing-asserted",
        ("call chaos.expect(",),
    ),
    "an_owed_wait_that_ends_in_time": Case(
        "a = chaos.spawn(waits); chaos.wait_until(lambda: a.marks, owed='it is up'); judged(chaos)", "HELD", "", ()
    ),
    "a_wait_that_nobody_owes": Case(
        "chaos.spawn(waits); chaos.wait_until(lambda: 0, timeout_s=0.1, what='z'); judged(chaos)",
        "INCONCLUSIVE",
        "harness:wait-expired",
        ("waited 0.1 s for z", "give owed='why'"),
    ),
    "an_owed_mark_of_the_second_incarnation_that_comes": Case(
        f"{AGAIN}, kwargs={{'then': 'marks.ack(\\'up\\')'}}, name='w'); chaos.wait_for_faults(); "
        "a.wait_for('up', owed='it is up again'); judged(chaos)",
        "HELD",
        "",
        (),
    ),
    "an_owed_mark_of_the_second_incarnation_that_does_not_come": Case(
        f"{AGAIN}, name='w'); chaos.wait_for_faults(); a.wait_for('up', owed='it is up again'); judged(chaos)",
        "VIOLATED",
        "liveness:agent-ended",
        ("it is up again", "it ended before"),
    ),
    "a_mark_of_the_second_incarnation_that_nobody_owes": Case(
        f"{AGAIN}, name='w'); chaos.wait_for_faults(); a.wait_for('up'); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-ended",
        ("it ended before",),
    ),
    "an_owed_wait_for_an_agent_that_our_fault_killed": Case(
        f"{KILLED}; a.wait_for_output('ready', owed='it is ready')",
        "INCONCLUSIVE",
        "harness:ended-by-fault",
        ("a fault of this run ended it before",),
    ),
    "a_second_agent_that_owes_and_takes_over": Case(
        f"{KILLED}; chaos.wait_for_faults(); chaos.spawn(quick).wait_for('x', owed='b takes over'); judged(chaos)",
        "HELD",
        "",
        (),
    ),
    "a_second_agent_that_owes_and_does_not": Case(
        f"{KILLED}; chaos.wait_for_faults(); "
        "chaos.spawn(waits).wait_for('x', timeout_s=0.3, owed='b takes over'); judged(chaos)",
        "VIOLATED",
        "liveness:wait-expired",
        ("b takes over", "waited 0.3 s"),
    ),
    "a_second_agent_that_owes_nothing": Case(
        f"{KILLED}; chaos.wait_for_faults(); chaos.spawn(waits).wait_for('x', timeout_s=0.3); judged(chaos)",
        "INCONCLUSIVE",
        "harness:wait-expired",
        ("waited 0.3 s", "give owed='why'"),
    ),
    "a_death_of_its_own_among_the_planned_ones": Case(
        "a = chaos.spawn(aborts_first, name='w')\n"
        "    while a.wait_exit().signal is not None:\n        a = a.restart()\n    judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("signal 6", "may_fail=True"),
    ),
    "two_incarnations_that_may_fail": Case(
        "a = chaos.spawn(crash, may_fail=True); a.wait_exit(); a.restart(); a.wait_exit(); judged(chaos)",
        "HELD",
        "",
        (),
    ),
    "a_second_incarnation_that_fails": Case(
        f"{AGAIN}, kwargs={{'then': '1/0'}}, name='w'); chaos.wait_for_faults(); a.wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("ZeroDivisionError", "may_fail=True"),
    ),
    "a_second_incarnation_that_may_fail": Case(
        f"{AGAIN}, kwargs={{'then': '1/0'}}, name='w', may_fail=True); chaos.wait_for_faults(); "
        "a.wait_exit(); judged(chaos)",
        "HELD",
        "",
        (),
    ),
    "a_second_incarnation_whose_failure_is_expected": Case(
        f"{AGAIN}, kwargs={{'then': '1/0'}}, name='w'); chaos.wait_for_faults(); "
        "chaos.expect('it fails', observed=1, holds=a.wait_exit().code == 1)",
        "HELD",
        "",
        (),
    ),
    "an_agent_that_may_fail_beside_one_that_must_not": Case(
        "chaos.spawn(crash, may_fail=True).wait_exit(); chaos.spawn(passes).wait_exit(); "
        "chaos.spawn([sys.executable, '-c', '1/0'], name='sound').wait_exit(); judged(chaos)",
        "INCONCLUSIVE",
        "harness:agent-failed",
        ("'sound'", "ZeroDivisionError"),
    ),
    "an_agent_that_may_fail_and_data_that_is_missing": Case(
        "chaos.spawn(crash, may_fail=True).wait_exit(); chaos.expect('all is there', observed=7, holds=False)",
        "VIOLATED",
        "expectation:all is there",
        ("all is there: 7",),
    ),
    "an_agent_that_may_fail_and_owes_a_mark": Case(
        "chaos.spawn(crash, may_fail=True).wait_for('done', owed='it is done first')",
        "VIOLATED",
        "liveness:agent-ended",
        ("it is done first", "it ended before"),
    ),
    "an_agent_that_may_fail_and_a_mark_that_nobody_owes": Case(
        "chaos.spawn(crash, may_fail=True).wait_for('done')",
        "INCONCLUSIVE",
        "harness:agent-ended",
        ("it ended before",),
    ),
    "a_handle_after_a_restart": Case(
        "a = chaos.spawn(quick); a.wait_exit(); a.restart(); chaos.expect('0', observed=1, holds=a.wait_exit().ok)",
        "HELD",
        "",
        (),
    ),
}


def test_each_mistake_gets_the_verdict_that_the_rule_gives(pytester: pytest.Pytester) -> None:
    """Verdict, first reason and sentence are in the terminal, the page and the pack;
    the footer counts alike.
    """
    tests = [
        f"@pytest.mark.chaos(id='{name.replace('_', '-')}')\ndef test_{name}(chaos):\n    {case.body}\n"
        for name, case in CASES.items()
    ]
    tests.append("@pytest.mark.chaos(id='async')\nasync def test_async(chaos):\n    judged(chaos)\n")
    pytester.makepyfile(test_it="\n".join([HEAD, *tests]))
    result = pytester.runpytest_subprocess(*QUIET, "--chaos-report=md,json")
    said = result.stdout.str()
    results = Path(pytester.path, "chaos-results")
    for ours in ("pytest_chaos/runtime", "direct cause of", "During handling of"):
        assert ours not in said
    page = (results / "latest" / "matrix.md").read_text().replace("\\", "")
    found = {record.node_id.partition("::test_")[2]: record for record in records.read(results).runs}
    undecided = found.pop("async")
    assert [finding.signature for finding in undecided.findings] == ["harness:async-test"]
    assert found.keys() == CASES.keys()
    for name, case in CASES.items():
        record = found[name]
        signatures = [finding.signature for finding in record.findings]
        assert (name, str(record.verdict), signatures[:1]) == (
            name,
            case.verdict,
            [case.signature] * bool(case.signature),
        )
        for words in case.words:
            assert words in said, name
            assert any(words in finding.text for finding in record.findings) or words == "assert False", (name, words)
        assert all(finding.text.split("\n")[0][:40] in page for finding in record.findings), name
    counts = {verdict: sum(case.verdict == verdict for case in CASES.values()) for verdict in ("HELD", "VIOLATED")}
    rest = len(CASES) - sum(counts.values()) + 1
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*{counts['VIOLATED']} failed, {counts['HELD']} passed, {rest} inconclusive in *"])
    shown = pytester.run("chaos", "evidence", "show", str(results / "latest" / found["an_agent_that_raised"].evidence))
    assert "RuntimeError: disk on fire" in shown.stdout.str()


def test_moments_alone_are_hinted_at(pytester: pytest.Pytester) -> None:
    """Thirty runs that held with random moments get one line: points find what moments miss."""
    pytester.makepyfile(
        test_it=f"{HEAD}\n@pytest.mark.chaos(id='it')\ndef test_it(chaos):\n"
        "    chaos.plan(kill('w', at_moment(0.01))); chaos.spawn(waits, name='w').wait_exit(); judged(chaos)\n"
    )
    result = pytester.runpytest_subprocess(*QUIET, "--chaos-iterations=3")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["chaos: 3 runs held, and all planned faults came at moments*at_point*"])
