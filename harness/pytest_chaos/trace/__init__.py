"""The trace of a program: each durable step that it makes, and the means to stop it at any of them.

A *durable step* is a system call that changes what a crash would leave in the watched folder. Steps
are numbered from 1 in the one order in which the step source saw them. Marks lie between them in
the same order, and have no number of their own.

    step        pure: a durable step, an entry of a folder, a blind spot
    comparison  pure: whether two runs make the same steps, but for drawn names
    recording   the steps of a run with everything that was written, on disk
    source      the interface: sources, directives, observations; which source works on this machine
    seccomp     the first source: trapped system calls of any program
    calls/      decoding a trapped call; where a system call is added
    folder      the watched folder: nodes and paths
    mapped      what a program stores to shared memory of a file, found by comparing
    memory      the caller's memory, descriptors and mappings, through /proc
    kernel      filter and listener of seccomp notifications
    zygote      the process that forks each run with the filter on
    program     how a program is started, and ended with all its descendants
    watcher     the process of a run that holds agents, and stops them, at durable steps
    survey      the points and steps that a program comes to, each with the program's own line
    audit       the second source: audit events of a Python program

With seccomp, ``zygote`` forks the program, ``kernel`` receives its calls, ``calls`` decodes each to
steps, and ``seccomp`` numbers them, carries out the directive, and answers the call.

The rooms ``explore``, ``plugin`` and ``cli`` may import this one; it imports ``runtime`` and
``errors``. An agent whose steps are watched puts the filter of ``kernel`` on itself.
"""
