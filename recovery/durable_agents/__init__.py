"""The recovery core: the durable heart of an agent system, which goes on where it was killed.

**The parts.** A *store* (``durable_agents.store``) keeps everything and is the only place that
speaks SQL. A *manager* is what callers use: ``TaskManager`` for tasks, ``CheckpointManager`` for
checkpoints. ``Artifacts`` writes the files that checkpoints have for evidence; a ``Worker`` does
work iteration by iteration, and a ``Supervisor`` keeps one alive. A manager is given its store, or
the path of one; there is no global connection, no current database, nothing that a second manager
could overrule.

**The unit of change** is ``store.transaction()``: a block whose writes are there all together or
not at all. Its methods are single durable facts (a number taken, a checkpoint inserted, an audit
row), and managers compose them. That is why what must be in one transaction can be: a checkpoint
with its hash, a status with its audit row, later a boundary checkpoint with the lease it belongs
to. A method of a manager that returns has committed; one that raises has changed nothing, with the
one exception below.

**What an acknowledgement means.** Every connection runs with a write-ahead log and
``synchronous=FULL``, and reads both back before it is used. SQLite then flushes the log to the
device before COMMIT returns, once per transaction. So when ``save``, ``create``, ``set_status``,
``acquire``, ``renew`` or ``complete`` has returned, its change survives a crash or SIGKILL of any
process, and a crash of the kernel or a loss of power as far as the device honours a flush (a disk
that lies about it can lose the newest commits, in order). No operation here runs at a lower
synchronous level, since each of them is acknowledged to somebody who then acts on it.

**Files.** ``Artifacts.write`` flushes the file, renames it into place and flushes its folder,
before it returns and so before any checkpoint can refer to it. A checkpoint that refers to a file
which its caller wrote without a flush may outlive that file; recovery then says so and goes to an
older one.

**What silence means.** A process that dies between the call and its return does not know: the
change is there whole or not at all. An I/O error during COMMIT leaves the same doubt and is raised
as ``DatabaseUnavailable``; read before repeating.

**Waiting.** Writers exclude each other. One that finds the database locked waits, at most
``busy_timeout_s`` (30 seconds unless told otherwise), and then raises ``DatabaseLocked`` with
nothing changed. Readers do not wait for writers. Writers begin in the order in which they came,
give or take a moment: threads of one store share a commit, before which none of them is acknowledged
(``durable_agents.store.sqlite.group_commit``); processes wait in a queue beside the database,
unless a store was opened with ``queue_writers=False``
(``durable_agents.store.sqlite.write_lock_queue``).

**Leases.** A lease is a row and a fencing token; what is written under a lease names the token, and
the store compares it in the transaction of that write. A renewal is flushed like everything else:
one that was acknowledged and lost would let a second holder in while the first still trusts it. The
sweep commits in batches, so it may die anywhere and be run by anyone, at any time, any number of
times at once.

**An agent's own state** lies in grouped state (``durable_agents.state.groups``) and in files, below
one folder (``durable_agents.state.roots``). Where both say something the file counts, and the store
is brought in line at the next start (``durable_agents.state.startup``): ghosts fail and the living
go on (``durable_agents.state.workspaces``), half-done cycles never get into the history
(``durable_agents.state.buffers``), what is to be told to others waits in two copies
(``durable_agents.state.sync_queue``). A start-up may be killed anywhere and done again, and several
agents on one folder take turns at it.

**Jobs** are runs of agents as processes. A ``Monitor`` starts them and says how they ended, a
``JobReaper`` takes over from whoever died, and a ``StageEngine`` moves tasks on; of all who try,
one ends a job, and one moves a task. A job's claim is its fence, and what its end entails is in one
transaction with it (``durable_agents.jobs.queue``).

**Webhooks.** A sender that was told 202 may forget: its delivery is flushed. What its handler
changes is in one transaction with the note that it was handled (``durable_agents.webhooks.inbox``).
A delivery that never came is made up for by the ``Reconciler``, which looks at what is: at the
gates of tasks that have waited for longer than their stage's grace, and at the tracker's issues.
Both go through the same handlers, and of all who move a task at once, one does. An ``Application``
has all of these parts with one life, and ``python -m durable_agents serve`` runs it.

**Keys, the cache and the ledger.** ``execute``, ``get_or_generate`` and ``run`` acknowledge like
everything else: a result that was returned is flushed, and is what everybody gets until it expires.
Before it executes, a caller commits its claim on the key; of many, one executes. An executor that
dies is followed by exactly one other, at once where the kernel can tell
(``durable_agents.once.owner_lock``), else when its claim runs out. For a key of the idempotency
store and the cache that means executing again. A tool may have had its effect by then, so its call
is *in doubt*, and its caller says what follows (``durable_agents.once.tool_ledger``). A large
output is flushed, and its folder, before the row that refers to it is committed.

**Counts are the exception.** Hits, misses, executions, replays, and when an output was last used,
wait in memory: a process that is killed takes up to 500 of them with it, for each cache and ledger
(``durable_agents.once.hit_counters``). Closing one, asking it for its statistics, and the end of
the interpreter add what waits. No result depends on a count.

**Time** is an integer: microseconds since 1970-01-01 UTC, from a clock that is passed in
(``durable_agents.clock``). Nothing is ordered by it, so a clock that jumps back cannot reorder
checkpoints.

**Crash points.** Managers say what they are about to do through ``sys.audit``
(``durable_agents.work.checkpoints.CRASH_POINTS``): tens of nanoseconds when nobody listens, and a
name for each place where a process can be killed when somebody does.

**Threads and processes.** A store may be shared by threads; each operation takes a connection of
its own. After a fork the child leaves its parent's connections alone and opens new ones. Do not
fork while a thread is in a transaction, the forking one included: SQLite in the child believes for
ever that this process holds the lock, so its writes are refused, and the transaction is the
parent's to end (``InheritedTransaction``).

**Interrupts.** Wherever Ctrl-C comes, a transaction is kept whole or not at all, and the database
is left to others.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
