"""One run of a scenario: the object that tests get as the fixture ``chaos``.

A run owns a journal, starts agents, carries out its plan while the test waits, gathers the history
and the findings, and is concluded with a verdict. It ends everything that it started. It knows
nothing of pytest. It is long because all that a test calls is here, each with its documentation.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.checkers import run_checkers
from pytest_chaos.clocks.cells import Clocks
from pytest_chaos.errors import AgentError, ChaosError, TooLate, UsageError, WaitExpired
from pytest_chaos.evidence.redact import SECRETS, clean, secret_values
from pytest_chaos.faults.injector import Injector
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model import plan as plans, seed as seeds, verdict
from pytest_chaos.model.claims import REACHABLE, SOMETIMES, Claims
from pytest_chaos.model.history import History, MarkParser, not_marks, overwritten
from pytest_chaos.model.values import Assertion, AtMoment, Fault, Finding, Json, Plan, Receipt, RunRecord, Verdict
from pytest_chaos.runtime.agent import (
    SPAWN_TIMEOUT_S,
    WAIT_TIMEOUT_S,
    Agent,
    Command,
    Environment,
    GuardianClient,
    check_bound,
)
from pytest_chaos.runtime.child import POINTS, STEPS, SURVEY, SurveyOrder
from pytest_chaos.runtime.command import command_of
from pytest_chaos.runtime.journal import ATTACHMENTS, MARKS_HEAD, AgentStarted, Journal, RunHeader
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARKS_VARIABLE
from pytest_chaos.runtime.sweep import RunSweep
from pytest_chaos.runtime.watch import EVENTS, StepWatch
from pytest_chaos.workloads.given import Given

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_chaos.checkers import Checker
    from pytest_chaos.faults.every_point import EveryPoint, SweepPlace
    from pytest_chaos.faults.proxy import FaultProxy
    from pytest_chaos.network.link import Link
    from pytest_chaos.trace.survey import Trail

CHECK_TIME_S: Final = 120.0
"""How long the searches of one ``check_history`` may take."""
OBSERVED_CHARACTERS_MAX: Final = 500
OBSERVED_CHARACTERS_READ: Final = 1 << 16


class Run:
    """One run: real processes, planned faults, expectations. Tests get it as ``chaos``.

    ``seed`` and ``iteration`` fix everything random. ``directory`` is the folder that agents work
    in; the evidence contains its SQLite files.

    Example::

        @pytest.mark.chaos(id="01-kill-9", title="A killed writer loses no acknowledged value")
        def test_kill_9(chaos):
            chaos.plan(kill("writer", when=after_mark("put", count=3)))
            chaos.spawn("shop.worker:work", name="writer")
            chaos.wait_for_faults()
            reader = chaos.spawn("shop.worker:read", name="reader")
            reader.wait_exit()
            acks = [mark.key for mark in chaos.history.marks if mark.kind == "ack"]
            found = {mark.key for mark in reader.marks if mark.operation == "found"}
            lost = set(acks) - found
            chaos.expect("acknowledged values lost", observed=len(lost), holds=not lost)
    """

    def __init__(
        self,
        journal: Journal,
        header: RunHeader,
        client: Callable[[], GuardianClient],
        *,
        replay: Plan | None = None,
        place: SweepPlace | None = None,
    ) -> None:
        self._journal = journal
        self._header = header
        self._client_of_session = client
        self._client: GuardianClient | None = None
        self._replay = replay
        self._parser = MarkParser()
        self._marks_read = 0
        self._agents: dict[str, Agent] = {}
        self._incarnations: list[Agent] = []
        self._specs: dict[int, tuple[Command, dict[str, Any]]] = {}
        self._receipts: list[Receipt] = []
        self._findings: list[Finding] = []
        self._assertions: list[Assertion] = []
        self._notes: dict[str, Json] = {}
        self._claims = Claims()
        self._broken: list[Assertion] = []
        self._clean = False
        self._secrets: frozenset[str] = frozenset()
        self._reads_history = False
        self._started_s = time.monotonic()
        self._record: RunRecord | None = None
        self._random_of = (header.seed, header.node_id, header.iteration)
        self._pinned: tuple[Fault, ...] | None = None
        self.given = Given(self.random)
        """The sizes and drawn values of the run; a narrowing makes them smaller."""
        self._injector = Injector(
            self._agents, on_receipt=self._on_receipt, context=self, order=lambda: self._parser.count
        )
        self.steps = StepWatch(self.start_helper, self.directory)
        self.survey: SurveyOrder | None = None
        """Where the points and durable steps of all agents go, in a run that is a survey."""
        self._helpers: set[str] = set()
        self.clocks = Clocks(journal.folder / "clocks")
        self.sweep = RunSweep(place)
        """What this run is in a sweep of points, if its plan has one."""
        journal.create(header)

    # What is fixed before anything starts

    @property
    def seed(self) -> str:
        """The session's seed."""
        return self._random_of[0]

    @property
    def iteration(self) -> int:
        """The number of this run of its scenario, from 0."""
        return self._random_of[2]

    @property
    def directory(self) -> Path:
        """The folder for the files of the target, removed with the run."""
        return self._journal.work_folder

    def random(self, *purpose: str | int) -> seeds.Stream:
        """Return random values for a purpose: a stream of its own, from seed, test and iteration.

        Example::

            delays_s = [chaos.random("delay").uniform(0.0, 0.1) for _ in range(5)]
        """
        return seeds.stream(self._random_of[0], *self._random_of[1:], *purpose)

    def size(self, name: str, number: int, *, least: int = 1) -> int:
        """Return a number of agents or operations, in a way that can be shrunk.

        It is ``number``; when a violation is shrunk, it is the least number that is violated, and
        never below ``least``. Raises UsageError.

        Example::

            for number in range(chaos.size("workers", 4)):
                chaos.spawn("shop.worker:work", kwargs={"jobs": chaos.size("jobs", 50)})
        """
        return self.given.size(name, number, least)

    def draw(self, strategy: Any, name: str = "value") -> Any:
        """Return a value of a Hypothesis strategy, from the seed, in a way that can be shrunk.

        It must be one that JSON can hold: lists, texts, numbers. When a violation is shrunk, it is
        the simplest that is violated, by Hypothesis's own shrinker. Raises UsageError.

        Example::

            orders = chaos.draw(st.lists(st.integers(1, 99), min_size=1), name="orders")
        """
        return self.given.draw(strategy, name)

    def pin(
        self,
        *faults: Fault,
        seed: str,
        test: str,
        iteration: int = 0,
        sizes: Mapping[str, int] | None = None,
        drawn: Mapping[str, Json] | None = None,
    ) -> None:
        """Be the run that ``chaos shrink`` found: these faults are carried out, not those planned.

        All that is random is that of the ``test`` with this seed and iteration. Call it first.
        Raises UsageError after the first agent, or after a plan.

        Example::

            def test_kill_9_shrunk(chaos):
                chaos.pin(kill("writer", after_mark("put")), seed="7", test="test_a.py::test_kill")
                test_kill_9(chaos)
        """
        if self._header.plan is not None or self._incarnations:
            msg = "a run must be pinned before its plan and its first agent; got one before. Call chaos.pin first"
            raise UsageError(msg)
        self._pinned, self._random_of = faults, (seed, test, iteration)
        if self._replay is None:
            self.given.fix(sizes or {}, drawn or {})

    def plan(self, *faults: Fault | EveryPoint) -> Plan:
        """Fix the faults of the run before its first agent starts; return the plan.

        With :func:`at_every_point` the test is executed again for each place of an agent; here that
        is the fault at one place, and nothing in the first execution, which finds the places. In a
        replay it is the plan of the evidence pack. Raises UsageError for a plan that cannot
        be carried out, a second plan, or a plan after the first agent.

        Example::

            chaos.plan(kill("writer", when=after_mark("put")), pause("reader", duration_s=2.0))
        """
        if self._header.plan is not None or self._incarnations:
            msg = "a run must have one plan, fixed before its first agent starts. Call chaos.plan once, with all faults"
            raise UsageError(msg)
        planned = self.sweep.expanded(faults) if self._pinned is None else self._pinned
        plan = Plan(seed=self.seed, scenario=self._header.scenario.id, iteration=self.iteration, faults=planned)
        if self.sweep.is_survey and self._replay is None:
            self.begin_survey(steps=self.sweep.has_steps)
        plans.validate(plan, kinds=REGISTRY)
        if self._replay is not None:
            if self._replay.faults != plan.faults and not self.sweep.is_survey:
                self.note("replay", "the test plans other faults now than the pack holds; the pack's were carried out")
            plan = self._replay
        self._header = msgspec.structs.replace(self._header, plan=plan)
        self._journal.write_header(self._header)
        self._injector.load(plan.faults)
        return plan

    def watch_sqlite(self, *, if_any: bool = False) -> None:
        """Watch what agents do to SQLite databases in ``directory``; call it before the first one.

        What corrupts a database is a finding of the run: locks that a close drops, files that are
        replaced or copied under a connection, connections carried over a fork. A run without any
        database is INCONCLUSIVE, unless ``if_any``. Raises UsageError after the first agent.

        Example::

            chaos.watch_sqlite()
            chaos.spawn("shop.worker:work", name="worker").wait_exit()
        """
        if self._incarnations:
            msg = "SQLite must be watched from the first agent on; got one before. Call chaos.watch_sqlite() first"
            raise UsageError(msg)
        self.steps.events, self.steps.needs_database = self._journal.folder / EVENTS, not if_any

    # Agents

    def spawn(
        self,
        target: str | Callable[..., object] | Sequence[str | os.PathLike[str]],
        *,
        kwargs: Mapping[str, Json] | None = None,
        name: str | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        trace_points: str | None = None,
        may_fail: bool = False,
        timeout_s: float = SPAWN_TIMEOUT_S,
    ) -> Agent:
        """Start a real process of the target and return it.

        ``target`` is ``"module:function"``, ``"path/to/file.py:function"``, a function at the top
        level of a module, or an argv of any program. ``kwargs`` are JSON and become the function's
        arguments; a function with a parameter ``marks`` gets its :class:`Marks`. ``env`` adds to
        the environment of pytest (``None`` unsets). ``cwd`` is the run's directory by default. A
        Python agent is forked from a zygote that has imported its module, or, with ``fresh``,
        started in an interpreter of its own. ``trace_points`` notes every audit event with this
        prefix as a mark. An agent that fails by itself (an exception, an exit code that is not 0, a
        signal of no fault) leaves the run INCONCLUSIVE, unless it ``may_fail`` or the test
        compares its ``exit_status`` and does not start it again.

        Raises SpawnError if it cannot be started, UsageError for a call that cannot be right.

        Example::

            writer = chaos.spawn("shop.worker:work", kwargs={"total": 100}, name="writer")
            server = chaos.spawn(["./server", "--port", "0"], env={"LOG": "debug"})
        """
        check_bound(timeout_s)
        command = command_of(target, kwargs or {}, fresh=fresh)
        agent_name = name or f"agent-{len(self._incarnations) + 1}"
        if agent_name in self._agents and self._agents[agent_name].running:
            msg = f"the name of an agent must be free; got {agent_name!r}, which is running. Give another name"
            raise UsageError(msg)
        if not agent_name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            msg = f"the name of an agent must be made of letters, digits, '-', '_' and '.'; got {agent_name!r}"
            raise UsageError(msg)
        if wrong := [f"{key}={value!r}" for key, value in (env or {}).items() if not isinstance(value, str | None)]:
            msg = f"env must have texts (or None) as values; got {wrong[0]:.200}. Write str(...)"
            raise UsageError(msg)
        directory = Path(cwd or self.directory).absolute()
        if not directory.is_dir():
            msg = f"cwd must be a folder; got {directory}. Make it before the agent starts"
            raise UsageError(msg)
        environment = Environment(os.environ)
        environment.update({key: value for key, value in (env or {}).items() if value is not None})
        for key in [key for key, value in (env or {}).items() if value is None]:
            environment.pop(key, None)
        SECRETS.add_environment({key: value for key, value in (env or {}).items() if value is not None})
        SECRETS.add_environment({key: value for key, value in command.kwargs.items() if isinstance(value, str)})
        SECRETS.add_argv(command.argv or ())
        if (known := SECRETS.values | secret_values(environment)) != self._secrets:
            self._journal.write_secrets(known)
            self._secrets = known
        environment |= {MARKS_VARIABLE: str(self._journal.marks_path), AGENT_VARIABLE: agent_name}
        environment |= self.steps.environment(environment)
        spec = {
            "environment": environment,
            "directory": str(directory),
            "root": str(self.directory),
            "marks": str(self._journal.marks_path),
            "trace_points": trace_points,
        }
        return self._start(agent_name, command, spec, timeout_s, may_fail=may_fail)

    def proxy(
        self, upstream: str = "", *, name: str = "proxy", port: int = 0, timeout_s: float = SPAWN_TIMEOUT_S
    ) -> FaultProxy:
        """Start a fault proxy: it carries HTTP deliveries to ``upstream``, with the plan's toxics.

        Send to its ``url`` in place of the server's (``http://127.0.0.1:PORT``), or give it as
        ``http_proxy`` to a program that cannot be told. The plan's deliveries are counted per
        proxy, and again from 1 where it is restarted. ``port`` 0 takes any. Raises SpawnError, and
        UsageError for an address that is not on loopback.
        """
        from pytest_chaos.faults import proxy  # only where something is delivered

        faults = self._header.plan.faults if self._header.plan is not None else ()
        kwargs = proxy.arguments(upstream, port, faults, name)
        agent = self.spawn(proxy.TARGET, kwargs=kwargs, name=name, timeout_s=timeout_s)
        (ready, *_) = agent.wait_for(proxy.READY_NOTE, kind="note", timeout_s=timeout_s)
        return proxy.FaultProxy(agent, int(ready.value))

    def link(
        self, upstream: str | int, *, name: str = "link", port: int = 0, timeout_s: float = SPAWN_TIMEOUT_S
    ) -> Link:
        """Start a link: a TCP proxy to ``upstream`` (a port, or ``HOST:PORT``), with its faults.

        Connect to its ``address`` in place of the server's. ``network.disturb`` plans what it does.
        ``port`` 0 takes any. Raises SpawnError, and UsageError for an address that is not on
        loopback.

        Example::

            chaos.plan(network.disturb("to-db", "black-hole", after_mark("put", agent="client")))
            link = chaos.link("127.0.0.1:6379", name="to-db")
            chaos.spawn("shop.worker:work", kwargs={"port": link.port}, name="client")
        """
        from pytest_chaos.network import link  # only where a network is disturbed

        seed = f"{self.random('link', name).random()}"
        agent = self.spawn(link.TARGET, kwargs=link.arguments(upstream, port, seed), name=name, timeout_s=timeout_s)
        (ready, *_) = agent.wait_for(link.READY_NOTE, kind="note", timeout_s=timeout_s)
        return link.Link(agent, int(ready.value))

    def agent(self, name: str) -> Agent:
        """Return the newest agent of this name. Raises UsageError if none was started."""
        if name not in self._agents:
            msg = f"agent {name!r} must have been started; got: {', '.join(self._agents) or 'none'}"
            raise UsageError(msg)
        return self._agents[name]

    def wait_until(
        self,
        condition: Callable[[], object],
        *,
        timeout_s: float = WAIT_TIMEOUT_S,
        what: str = "",
        owed: str = "",
    ) -> None:
        """Wait until ``condition()`` is true, while planned faults fire. Raises WaitExpired.

        An expired wait leaves the run INCONCLUSIVE. With ``owed``, a reason why the target must do
        it in time, it makes the run VIOLATED.

        Example::

            chaos.wait_until(lambda: (chaos.directory / "done").exists(), what="the file done")
            chaos.wait_until(is_empty, timeout_s=5, owed="the queue is empty in 5 s")
        """
        described = what or getattr(condition, "__name__", "the condition")
        if self._client is not None:
            self._client.wait_until(condition, timeout_s=timeout_s, what=described, seen=self._describe, owed=owed)
            return
        check_bound(timeout_s)
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                msg = f"waited {timeout_s:g} s for {described}, and it did not come: {self._describe()}"
                raise WaitExpired(msg, owed=owed)
            time.sleep(0.002)

    def wait_for_faults(self, *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Wait until every planned fault has its receipt. Raises WaitExpired."""
        self.wait_until(lambda: not self._injector.waiting, timeout_s=timeout_s, what="all planned faults to fire")

    # What is found out

    @property
    def history(self) -> History:
        """All marks so far, and the receipts of the faults that fired."""
        self._reads_history = True
        return self._history()

    def _history(self) -> History:
        self._read_marks()
        return History.from_lines(self._mark_lines(), receipts=tuple(self._receipts))

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """The receipts so far."""
        return tuple(self._receipts)

    def expect(self, name: str, *, observed: object, holds: bool) -> bool:
        """Record a key assertion with its observed value; return whether it holds.

        If it does not, the run fails. The test goes on, so the record has every expectation. Raises
        UsageError if ``holds`` is neither yes nor no: a function not called, a text, a list.

        Example::

            chaos.expect("leases recovered", observed=stats.recovered, holds=stats.recovered == 100)
        """
        if not hasattr(type(holds), "__bool__"):  # bool, int and None have it, and so has numpy's
            msg = f"holds= of {name!r} must be True or False; got {holds!r:.200}. Compare it, call it, or use bool(...)"
            raise UsageError(msg)
        text = clean(verdict.encodable(str(observed))[:OBSERVED_CHARACTERS_READ])  # half a secret would not be known
        shown = text if len(text) <= OBSERVED_CHARACTERS_MAX else self._shortened(text)
        self._assertions.append(Assertion(name=name, observed=shown, holds=bool(holds)))
        self._broken += self._assertions[-1:] * (not holds)
        return bool(holds)

    def _shortened(self, text: str) -> str:
        """Return the beginning of a value; keep what was read of it for the evidence pack."""
        name = f"value-{len(self._assertions) + 1}.txt"
        with contextlib.suppress(OSError):
            self.attachments.mkdir(exist_ok=True)
            (self.attachments / name).write_text(text)
        more = f"… ({len(text):,} characters; the pack has {ATTACHMENTS}/{name})"
        return text[: OBSERVED_CHARACTERS_MAX - len(more)] + more

    def check(self, findings: Iterable[Finding | str], *, expect: str | None = None) -> tuple[Finding, ...]:
        """Add findings (a string is one, too) to the run, which any finding fails; return them.

        ``expect`` names the key assertion that there are none, so that the record shows a check
        that finds nothing.

        Example::

            chaos.check(lost_rows(path), expect="no acknowledged row is lost")
        """
        found = tuple(clean(finding) for finding in verdict.given(findings))
        if self._clean:
            found = tuple(
                finding if finding.kind == "harness" else msgspec.structs.replace(finding, kind="clean-run")
                for finding in found
            )
        self._findings.extend(found)
        if expect is not None:
            self._assertions.append(
                Assertion(
                    name=expect,
                    observed=", ".join(sorted({finding.signature for finding in found})) or "no finding",
                    holds=not found,
                )
            )
        return found

    def receive_assertion(self, assertion: Assertion) -> None:
        """Add a key assertion whose findings are added by themselves: one cause is one finding."""
        self._assertions.append(clean(assertion))

    def inconclusive(self, text: str) -> None:
        """Make this run INCONCLUSIVE, with the reason (too little load, say). It fails the test."""
        self._findings.append(Finding(signature="harness:inconclusive", text=text, kind="harness"))

    def check_history(
        self, *checkers: Checker, expect: str | None = None, time_s: float = CHECK_TIME_S
    ) -> tuple[Finding, ...]:
        """Run checkers over the history. A checker that raises leaves the run INCONCLUSIVE.

        So does a search that takes longer than ``time_s`` for all of them.
        """
        over_s = time.monotonic() + time_s
        return self.check(
            run_checkers(checkers, self.history, is_over=lambda: time.monotonic() > over_s), expect=expect
        )

    @contextlib.contextmanager
    def clean_run(self) -> Iterator[None]:
        """Mark findings within as seen without faults: a bug of the target, or a wrong checker."""
        self._clean = True
        try:
            yield
        finally:
            self._clean = False

    def note(self, name: str, value: Json) -> None:
        """Keep a fact (JSON) about the run in its record: a figure, a list of crash points."""
        try:
            msgspec.json.encode(value)
        except (TypeError, ValueError) as error:
            msg = f"the note {name!r} must be JSON; got: {error}"
            raise UsageError(msg) from error
        self._notes[name] = value

    def sometimes(self, name: str, *, holds: bool = False) -> None:
        """Declare what must come up in some run of the campaign, and whether it does in this one.

        An agent says so with ``marks.sometimes(name)``. If no run of two or more has it, the matrix
        is INCONCLUSIVE: the scenario may be green for the wrong reason (Antithesis' assertions).

        Example::

            chaos.sometimes("a lease was taken over", holds=stats.recovered > 0)
        """
        self._claims.add(SOMETIMES, name, holds=bool(holds))

    def reachable(self, name: str) -> None:
        """Declare a place in the target that some run of the campaign must reach.

        The agent says there ``marks.reachable(name)``. If no run of two or more comes there, the
        matrix is INCONCLUSIVE.
        """
        self._claims.add(REACHABLE, name, holds=False)

    @property
    def attachments(self) -> Path:
        """The folder for files to be copied into the evidence pack, if one is made."""
        return self._journal.folder / ATTACHMENTS

    def receive(self, receipt: Receipt) -> None:
        """Add the receipt of a fault that is not of the plan: an exploration's."""
        self._on_receipt(receipt)

    def database(self, path: str | os.PathLike[str]) -> Path:
        """Add a SQLite file outside of ``directory`` to the evidence; return its path."""
        self._journal.add_database(Path(path).absolute())
        return Path(path)

    # The end

    def conclude(self, error: BaseException | None = None) -> RunRecord:
        """End what the run started, judge it, and return its record. Calling it twice is fine."""
        if self._record is not None:
            return self._record
        if error is not None:
            self._findings.append(verdict.of_error(error))
        self._end_agents()
        failed = [] if self._lost_agents() else [each.describe_failure() for each in self._incarnations if each.failed]
        watched = self.steps.findings()
        if self.steps.events is not None and self.steps.needs_database:
            self._assertions.append(verdict.of_watched(watched))
        findings = [
            *self._swept(),
            *verdict.of_receipts(self._receipts),
            *verdict.of_failed_agents(failed),
            *watched,
            *self.clocks.findings(self._history().marks),
            *self._findings,
            *verdict.of_assertions(self._broken),
        ]
        if self.steps.failure:
            findings.append(Finding(signature="harness:step-watcher", text=self.steps.failure, kind="harness"))
        if self._lost_agents() or self.steps.failure:
            findings = [msgspec.structs.replace(finding, kind="harness") for finding in findings]
        if not self._assertions and error is None:
            findings.append(verdict.NOTHING_ASSERTED)
        if not self._mark_lines().startswith(MARKS_HEAD):
            findings.append(overwritten())
        history = self._history()
        findings = verdict.without_keys_of(history.marks, findings)
        if torn := history.torn:
            findings += not_marks(torn, may_be_cut=any(map(_was_killed, self._incarnations)))
            self._notes["torn_marks"] = [f"{line.text[:200]} ({line.reason})" for line in torn[:10]]
        self._claims.read(history)
        self._notes |= self._claims.notes()
        self._notes |= self.given.notes
        self._keep_steps([each for each in findings if each.verdict is Verdict.VIOLATED])
        if verdict.of_run(findings) is Verdict.HELD and (hints := self._hints(history)):
            self._notes[verdict.HINT] = hints
        record = RunRecord(
            scenario=self._header.scenario,
            node_id=self._header.node_id,
            run_id=self._header.run_id,
            seed=self._header.seed,
            verdict=verdict.of_run(findings),
            iteration=self._header.iteration,
            plan=self._header.plan,
            receipts=tuple(self._receipts),
            findings=tuple(findings),
            assertions=tuple(self._assertions),
            agents=tuple(agent.summary() for agent in self._incarnations),
            notes=self._notes,
            started=self._header.started,
            duration_s=round(time.monotonic() - self._started_s, 6),
            reproduce=self._header.reproduce,
            worker=self._header.worker,
        )
        self._record = clean(record)
        return self._record

    def pack(self, record: RunRecord, failure: str, evidence: Path, *, queries: Mapping[str, str]) -> RunRecord:
        """Save the evidence of a run that did not hold; return the record with the pack's name.

        If that fails (a full disk, a read-only folder), the pack goes to the folder for temporary
        files, since the failure may not happen again, and the record notes the reason.
        """
        packed = msgspec.structs.replace(record, evidence=f"{evidence.name}/{record.run_id}")
        problem = self._write_pack(packed, failure, evidence / record.run_id, queries)
        if problem:
            packed = self._pack_elsewhere(record, failure, queries, problem)
        self._record = packed
        return packed

    def _write_pack(self, record: RunRecord, failure: str, destination: Path, queries: Mapping[str, str]) -> str:
        """Write the pack; return why that failed, or nothing."""
        from pytest_chaos import evidence as packs  # most runs hold

        try:
            self._journal.write_header(msgspec.structs.replace(self._header, reproduce=record.reproduce))
            self._journal.write_failure(f"{failure}\n\nseed {record.seed}\nreproduce: {record.reproduce}\n")
            self._journal.write_record(record)
            packs.write(self._journal.folder, destination, queries=queries)
        except (ChaosError, OSError) as error:
            return str(error)
        return ""

    def _pack_elsewhere(self, record: RunRecord, failure: str, queries: Mapping[str, str], problem: str) -> RunRecord:
        """Write the pack to a temporary folder; the record notes where it is and how to replay it.

        If that fails, too, only the seed is left.
        """
        import shutil  # hardly ever needed, this and the next
        import tempfile

        _, _, own = record.reproduce.partition(" -- ")
        try:
            folder = Path(tempfile.mkdtemp(prefix="chaos-evidence-"))
        except OSError as error:
            return _without_pack(record, own, [problem, f"nor can it be written elsewhere: {error}"])
        pack = folder / record.run_id
        moved = msgspec.structs.replace(record, reproduce=f"chaos replay {pack}" + (f" -- {own}" if own else ""))
        if lost := self._write_pack(moved, failure, pack, queries):
            shutil.rmtree(folder, ignore_errors=True)
            return _without_pack(record, own, [problem, lost])
        notes = {**record.notes, "evidence_problems": [f"{problem}; it is in {pack} for now"]}
        return msgspec.structs.replace(moved, notes=notes)

    def remove(self) -> None:
        """Remove the journal with the run's directory."""
        import shutil  # once a run

        shutil.rmtree(self._journal.folder, ignore_errors=True)

    # Inside

    def _hints(self, history: History) -> list[Json]:
        """Return sentences about what a run that held cannot have shown."""
        is_empty = self._reads_history and bool(self._incarnations) and not history.marks
        return [*[verdict.NO_MARK] * is_empty, *[verdict.ONLY_MOMENTS] * _only_moments(self._header.plan)]

    def _end_agents(self) -> None:
        if self._client is None:
            self._injector.close()
            return
        try:
            self._client.pump()
            self._injector.close()
            stopped = [agent for agent in self._incarnations if agent.ended is None]
            for agent in stopped:
                agent.ended_by_harness = True
            self._client.end()
            self._read_marks()
        except (AgentError, ChaosError) as error:
            self._findings.append(Finding(signature="harness:cleanup", text=str(error), kind="harness"))
        for agent in self._incarnations:
            self._journal.add_agent(agent.summary())

    def _lost_agents(self) -> bool:
        """Whether the guardian was killed, and the agents with it."""
        return self._client is not None and not self._client.alive

    def _start(
        self, name: str, command: Command, spec: dict[str, Any], timeout_s: float, *, may_fail: bool = False
    ) -> Agent:
        client = self._connect()
        output = self._journal.output_folder / _log_name(name, self._incarnations)
        triggers = self._injector.triggers(name, by_itself=command.target is not None)
        survey = self.survey if name not in self._helpers else None
        is_watched = (survey is not None and survey["steps"]) or any(
            trigger["step"] is not None for trigger in triggers
        )
        is_watched |= self.steps.events is not None and name not in self._helpers
        clock = "" if name in self._helpers else self.clocks.order(name, is_planned=self._injector.moves_clock(name))
        survey_path = self._journal.folder / SURVEY
        is_cut = name not in self._helpers and self._injector.cuts_network(name)
        is_needed = is_watched or is_cut or clock
        watch = self.steps.watch(survey_path, steps=is_watched, clock=clock, network=is_cut) if is_needed else None
        self.clocks.answered |= {name} if clock and watch is not None else set()

        def adopt(agent: Agent) -> None:
            """Register the agent before it starts: it may be restarted before spawn returns."""
            agent.fire = lambda kind, parameters: self._fire(kind, agent, parameters)
            agent.may_fail = may_fail
            self._specs[agent.number] = (command, spec)
            self._agents[name] = agent
            self._incarnations.append(agent)

        order = self._parser.count
        agent = client.spawn(
            name,
            command,
            {
                **spec,
                "triggers": triggers,
                "watch": watch,
                "survey": survey,
                "network": is_cut,
                **self._injector.clocks(name, clock),
            },
            output,
            timeout_s=timeout_s,
            on_made=adopt,
        )
        started = AgentStarted(
            name=name, pid=agent.pid, command=str(command), kwargs=command.kwargs, started_at=_now(), order=order
        )
        self._journal.add_agent(started)
        if agent.note:
            self._notes[f"fresh interpreter for {command}"] = agent.note
        return agent

    def start_helper(self, name: str, target: str, kwargs: Mapping[str, Json]) -> Agent:
        """Start a process that a fault needs. For faults; tests call spawn."""
        taken = sum(agent.name.startswith(name) for agent in self._incarnations)
        self._helpers.add(numbered := f"{name}-{taken + 1}")
        return self.spawn(target, kwargs=kwargs, name=numbered, may_fail=True)  # its receipt says how

    def start_again(self, agent: Agent) -> Agent:
        """Start an agent again with its first arguments. For faults; tests call restart."""
        command, spec = self._specs[agent.number]
        return self._start(agent.name, command, spec, SPAWN_TIMEOUT_S, may_fail=agent.may_fail)

    @property
    def all_agents(self) -> list[Agent]:
        """The agents that the test has started. For faults."""
        return [agent for name, agent in self._agents.items() if name not in self._helpers]

    def trail(self) -> Trail:
        """Return the steps and marks of a run with a survey, in their order. For narrowing."""
        from pytest_chaos.trace.survey import read, trail

        return trail(read(self._journal.folder / SURVEY), self._mark_lines())

    def points_passed(self, name: str) -> list[str]:
        """Return the names of the points that agents of this name passed. For receipts."""
        return self._kept_of(name, POINTS)

    def steps_made(self, name: str) -> list[str]:
        """Return the durable steps that watched agents of this name came to. For receipts."""
        return self._kept_of(name, STEPS)

    def _swept(self) -> Iterable[Finding]:
        """Note the place of this run in a sweep; a survey finds the places."""
        if self.survey is not None and self.sweep.is_survey and self._replay is None:
            yield from self.sweep.look(Path(self.survey["path"]), self.random("sweep"), self.steps.problem)
        self._notes |= self.sweep.notes

    def _keep_steps(self, findings: Sequence[Finding]) -> None:
        """Attach the steps that the items relied on which findings name, if steps were watched."""
        if not findings or not self.steps.is_used:
            return
        from pytest_chaos.model.story import STEPS_NAME, RunSteps
        from pytest_chaos.trace.survey import steps_of

        seen = steps_of(self._journal.folder / SURVEY, self._mark_lines(), findings)
        if self.steps.problem:
            seen = RunSteps(problem=self.steps.problem)
        with contextlib.suppress(OSError):
            self.attachments.mkdir(exist_ok=True)
            (self.attachments / STEPS_NAME).write_bytes(msgspec.json.encode(clean(seen)))

    def begin_survey(self, *, steps: bool, lines: bool = False) -> Path:
        """Keep the points and steps of all agents from now on; return the file they go to."""
        path = self._journal.folder / SURVEY
        self.survey = {"path": str(path), "steps": steps, "lines": lines}
        return path

    def _kept_of(self, name: str, file: str) -> list[str]:
        path = self._journal.folder / file
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return list(dict.fromkeys(what for agent, _, what in (line.partition("\t") for line in lines) if agent == name))

    def _connect(self) -> GuardianClient:
        if self._client is None:
            self._client = self._client_of_session()
            self._client.begin(self._journal.folder)
            self._client.on_pump = self._pump
        return self._client

    def _fire(self, kind: str, agent: Agent, parameters: Mapping[str, Json]) -> Receipt:
        client = self._connect()
        client.pump()  # it may have ended since the last wait
        needs_life = REGISTRY[kind].needs_life
        if agent.ended is not None and needs_life:
            raise _too_late(kind, agent)

        def wait(condition: Callable[[], bool], what: str) -> None:
            def seen_or_ended() -> bool:
                return condition() or (needs_life and agent.ended is not None)

            client.wait_until(seen_or_ended, timeout_s=WAIT_TIMEOUT_S, what=what, seen=agent.describe)
            if needs_life and agent.ended is not None and not agent.ended_by_fault:
                raise _too_late(kind, agent)
            client.wait_until(condition, timeout_s=WAIT_TIMEOUT_S, what=what, seen=agent.describe)

        return self._injector.fire(Fault(kind=kind, agent=agent.name, parameters=dict(parameters)), agent, wait=wait)

    def _pump(self) -> None:
        self._read_marks()
        self._injector.pump()
        now_s = time.monotonic()
        for agent in self._agents.values():
            agent.sample(now_s=now_s)

    def _mark_lines(self, start: int = 0) -> bytes:
        """Return the mark file from ``start`` on; empty if an agent has removed the file."""
        try:
            with self._journal.marks_path.open("rb") as marks:
                marks.seek(start)
                return marks.read()
        except FileNotFoundError:
            return b""

    def _read_marks(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._journal.marks_path.stat().st_size == self._marks_read:
                return
        content = self._mark_lines(self._marks_read)
        self._marks_read += len(content)
        for mark in self._parser.feed(content):
            if (agent := self._agents.get(mark.agent)) is not None:
                agent.add_mark(mark)

    def _on_receipt(self, receipt: Receipt) -> None:
        self._receipts.append(receipt)
        self._journal.add_receipt(receipt)

    def _describe(self) -> str:
        return "; ".join(agent.describe() for agent in self._agents.values()) or "no agent was started"


def _too_late(kind: str, agent: Agent) -> TooLate:
    msg = (
        f"{kind} of agent {agent.name!r} cannot happen: it has ended already ({agent.ended}). "
        "Plan the fault at a point or after a mark, or let the agent wait for it"
    )
    return TooLate(msg)


def _only_moments(plan: Plan | None) -> bool:
    """Whether the faults of a plan all come at moments, so that only luck hits a narrow window."""
    return plan is not None and bool(plan.faults) and all(isinstance(each.when, AtMoment) for each in plan.faults)


def _was_killed(agent: Agent) -> bool:
    """Whether a signal ended it, and may have cut its last mark."""
    return agent.ended_by_harness or agent.exit_status is None or agent.exit_status.signal is not None


def _log_name(name: str, incarnations: Sequence[Agent]) -> str:
    before = sum(agent.name == name for agent in incarnations)
    return f"{name}.log" if not before else f"{name}.{before + 1}.log"


def _without_pack(record: RunRecord, own: str, problems: list[Json]) -> RunRecord:
    """Return the record of a run without a pack: its seed and ``own`` options reproduce it."""
    words = ["pytest", shlex.quote(record.node_id), f"--chaos-seed={record.seed}"]
    words += [f"--chaos-iterations={record.iteration + 1}"] if record.iteration else []
    notes = {**record.notes, "evidence_problems": problems}
    return msgspec.structs.replace(record, reproduce=" ".join([*words, own]).strip(), notes=notes)


def _now() -> str:
    import datetime  # only once an agent is started

    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
