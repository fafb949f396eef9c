"""The step engine: what a program does to its disk, call by call, and the means to stop it at any of these calls.

    step        pure: a durable step, an entry of a folder, a blind spot
    likeness    pure: whether two runs make the same steps, but for names that are drawn anew
    recording   the steps of one observed run with everything that was written, on disk and read back
    source      what a source of steps can be asked
    seccomp     the first source: system calls, trapped (filter, syscalls, kernel, memory, folder,
                descriptors, copying); decoding says which call comes when, calls what becomes of it
    audit       the second source: a Python program's audit events
    launching   how a watched program is started, and family: how it is ended with all its descendants
    standby     a process that has the next run of a program ready (the first source's)
    choosing    which source is there on this machine

A *durable step* is a system call that changes what a crash would leave behind in the watched
folder. Steps are numbered from 1 in the one order in which the source saw them; marks lie between
them, in the same order, and have no number of their own.
"""
