"""Exploration: states that a crash, a power loss or an I/O error may leave, built and judged.

    options     how to explore: one frozen value, checked where it is made
    launch      the entry: a step source, a folder in memory, a process below a guardian
    explorer    one exploration: the clean run, its repetition, then each family; one state alone
    record      the clean run, its recording, and the comparisons that make it trustworthy
    target      what is explored: a class, two functions or two commands
    session     what families share: time, progress file, and the collector of findings
    judge       worker processes in which the target's own check judges states
    families/   crash, recovery, power, io: states in, findings out
    simulate/   pure: a simulated disk, and the states that it may be left in
    lines/      the line of a Python program that makes a step, the function of a compiled one
    watched     a run of its own that shows what the program does to SQLite
    events      exploration at named audit events, where system calls cannot be seen
    report      the results, and their JSON
    baseline/   findings that are known: the file that lists them, and what is new beside it

The flow goes one way. The command line or the fixture makes ``Options``. ``launch`` hands them to
an ``Explorer`` in another process, which records the target and hands the recording to each family.
A family builds states and gets judgements back from the workers. ``launch`` returns an
``Exploration``; beside it travels only the progress for the bar.

A finding is *confirmed* when a real process was killed, or got the error, and left a state that
shows it. It is *modelled* when only a built state shows it.

The room uses ``trace`` and ``model``, and of ``runtime`` marks, processes and scratch folders. In
pytest_chaos only the plugin and the command line import it.
"""
