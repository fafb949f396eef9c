"""The durable core of an agent system: work goes on where it was killed, and effects happen once.

**Rooms.** ``store`` keeps everything, and is the only room that knows SQL. ``work`` has tasks,
checkpoints, leases, the sweep and the worker. ``once`` has idempotency keys, the cache of
language-model outputs and the tool ledger. ``jobs`` runs agents as processes. ``webhooks`` receives
deliveries, and ``pipeline`` acts on them. ``state`` keeps an agent's own state. A *manager* is what
callers use. It is given a store, or the path of one: there is no global connection (D13).

**The unit of change** is ``store.transaction()``: its writes are committed together or not at all.
Its methods are single durable facts (take a number, insert a checkpoint), and managers compose
them. So a checkpoint and its hash, or a status and its audit row, are one transaction. A manager's
method that returns has committed. One that raises has changed nothing, with one exception, below.

**What an acknowledgement means.** Every connection uses a write-ahead log and ``synchronous=FULL``,
and reads both settings back (D15). SQLite then flushes the log before COMMIT returns. So when
``save``, ``create``, ``set_status``, ``acquire``, ``renew`` or ``complete`` has returned, its
change survives SIGKILL of any process, a crash of the kernel, and a loss of power, as far as the
device honours a flush. No operation runs at a lower level: callers act on each acknowledgement.

**In doubt.** A process that dies during a call does not know its outcome: the change is there whole
or not at all. An I/O error during COMMIT leaves the same doubt, and raises ``DatabaseUnavailable``:
read before repeating.

**Files.** ``Artifacts.write`` flushes the file, renames it into place and flushes its folder before
it returns, and so before a checkpoint can refer to it. After a loss of power, a checkpoint may
outlive a file that its caller did not flush; recovery says so and goes to an older checkpoint.

**Waiting.** A writer that finds the database locked waits at most ``busy_timeout_s`` (30 s by
default), then raises ``DatabaseLocked`` with nothing changed. Readers do not wait. Writers begin
roughly in the order of arrival. Waiting threads of one store share a commit, and none is
acknowledged before it (``store.sqlite.group_commit``). Processes stand in a queue beside the
database, unless a store was opened with ``queue_writers=False``
(``store.sqlite.write_lock_queue``).

**Claims** are leases, keys, jobs and lease files (``claim``). A write under a claim names its
fencing token, and the store compares it in the same transaction: a zombie changes nothing (D3). A
renewal is flushed too: a lost one would admit a second holder while the first trusts it. Sweeps
commit in batches: they may die anywhere, and any number may run at once.

**Keys, cache and ledger.** A returned result is flushed, and every caller gets it until it expires.
Of many callers one executes, after committing its claim. If it dies, exactly one other takes over:
at once where the kernel knows of the death, else at the claim's expiry. A key's function then runs
again. A tool may have had its effect, so its call is *in doubt*, and its caller decides.

**Counts are the exception.** Hits, misses and last uses wait in memory; a killed process loses up
to 500 of them for each cache and ledger, and more while the database is being written
(``once.hit_counters``). No result depends on a count.

**Jobs.** A ``Monitor`` starts agents and records how they ended, a ``JobReaper`` takes over from
dead monitors, and a ``StageEngine`` moves tasks on. One of them ends a job, and one moves a task.
The consequences of a job's end are in one transaction with it (``jobs.queue``, D16).

**Webhooks.** A delivery that was answered with 202 is flushed. Its handler's changes are in one
transaction with the note that it was handled (``webhooks.inbox``). The ``Reconciler`` makes up for
lost deliveries by looking at gates and at the tracker, through the same handlers. An
``Application`` has all these parts with one life; ``python -m durable_agents serve`` runs it.

**State** lies in grouped state (``state.groups``) and in files below one folder. Where they differ,
the file counts, and the next start-up corrects the store (``state.startup``). A start-up may be
killed anywhere and repeated; several agents on one folder take turns at it.

**Time** is an integer, microseconds since 1970-01-01 UTC, from a clock that is passed in
(``clock``). Nothing is ordered by it, so a clock that jumps back reorders no checkpoints.

**Crash points** are audit events (``sys.audit``) that name the places where a process can be
killed (``work.crash_points``, ``once.crash_points``): tens of nanoseconds when nobody listens.

**Threads, processes, interrupts.** Threads may share a store; each operation takes a connection of
its own. A forked child opens new connections. Do not fork while a thread is in a transaction, the
forking one included: SQLite in the child believes for ever that this process holds the lock, so its
writes are refused (``InheritedTransaction``). Wherever Ctrl-C comes, a transaction is kept whole or
not at all, and the database is left free for others.

The D-numbers are defects of earlier systems, listed in ``docs/design.md``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
