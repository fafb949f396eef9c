"""Clocks: the wall clock of an unmodified, running process, moved from outside without privileges.

    stubs -> patch of a vDSO --> within    a fork of ours patches itself before its first own line
    cell  -> one page a run      process   a running process, while all its threads stand still
                                 answers   a program that is started, before its first instruction

``cell.py``     the page that says how far and how fast a clock is moved, and the arithmetic
``stubs.py``    the code that reads it, for x86_64 and aarch64, with its bytes
``vdso.py``     where a process has its vDSO, what is in it, and room near it
``tracee.py``   ptrace(2): a stopped thread, and calls made in its place
``process.py``  another process patched, and its clock read by a call in it
``within.py``   this process patched
``answers.py``  the watcher's part: execs, and clocks that are read by the system call itself
``cells.py``    the cells of one run
``uptime.py``   a process whose monotonic clocks start elsewhere
``trial.py``    a child's clock moved, to see whether it works here

The idea of stubs in the vDSO is Chaos Mesh's (TimeChaos); there each child, each exec and each
jump needs root and writes code again. The faults are in ``faults/clock``. What moves and what does
not: docs/how-to/clocks.md.
"""
