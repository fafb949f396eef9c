"""What a program does to SQLite: from the events of one run to findings. Pure.

A SQLite database is not only a file. It is a file, a log or journal beside it, a shared index, and
POSIX locks, which a process holds and loses by rules of their own. What breaks these is rarely a
durable step, and shows as corruption much later. So the events of a run (``trace.step.Event``) are
judged: who opened, locked, closed, copied, renamed and removed what, in which order.

    locks       the POSIX locks of all processes, as the kernel keeps them (fcntl(2))
    world       what is open, locked, named and written, after each event
    telling     findings in words: both parties by program line
    integrity   locks that a close drops, files that are replaced, connections after a fork
    copies      a database that is read whole, without its log or while it is written
    waiting     an upgrade that cannot wait, and a log that a reader keeps from being reused
    commits     acknowledged before it is flushed; schema changes in several transactions
    detect      all detectors over the events of one run

``explore.watched`` and ``runtime.watch`` record the events. Sources: sqlite.org/howtocorrupt.html,
/wal.html, /walformat.html, /lockingv3.html and /isolation.html; fcntl(2).
"""
