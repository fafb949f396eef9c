"""Exploration: states that a crash, a power loss or an I/O error may leave, built and judged.

    options     how to explore: one frozen value, checked where it is made
    launch      the entry: a source of steps, a folder in memory, a process of its own below a guardian
    explorer    one exploration: the clean run, the same again, then each family; one state alone
    record      the clean run, its recording, and the comparisons that make it trustworthy
    target      what is explored: a class, two functions or two commands
    session     what families share: time, progress file, and the collector of findings
    judge       worker processes in which the target's own check judges states
    families/   crash, recovery, power, io: states in, findings out
    simulate/   pure: a simulated disk, and the states that it may be left in
    events      exploration at named audit events, where system calls cannot be seen
    report      the results, and their JSON

The flow goes one way: the command line or the fixture makes ``Options``; ``launch`` hands them to
an ``Explorer`` in another process; that records the target, and hands the recording to each family,
which builds states and gets judgements back from the workers; an ``Exploration`` returns. Only
progress for the bar travels beside it.

A finding is *confirmed* when a real process was really killed (or really got the error) and what it
left shows it. It is *modelled* when only a built state shows it.

The room uses ``trace`` and ``model``, and of ``runtime`` marks, processes and scratch folders. The
plugin and the command line import it; nothing else of pytest_chaos does.
"""
