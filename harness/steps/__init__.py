"""The step engine: what a program does to its disk, call by call, and the means to stop it at any of these calls.

    step        pure: a durable step, an entry of a folder, a blind spot
    recording   the steps of one observed run with everything that was written, on disk and read back
    source      what a source of steps can be asked; two kinds of it exist, seccomp and audit events

A *durable step* is a system call that changes what a crash would leave behind in the watched folder. Steps are numbered
from 1 in the one order in which the source saw them; marks lie between them, in the same order, and have no number of
their own.
"""
