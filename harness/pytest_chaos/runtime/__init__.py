"""Everything with a pid: agents, the processes that start and end them, and what a run writes.

    controller (pytest) ── socket ──▶ guardian ──forks──▶ agent, agent, ...
                                         │
                                         └─forks──▶ zygote (a module imported) ──forks──▶ agent, ...

    run         one run: the fixture ``chaos``, the surface of tests
    agent       the controller's side: the connection to the guardian, and an agent
    command     what an agent is: a function of the target, or an argv
    guardian    starts, reads and reaps all agents; outlives pytest to clean up
    zygote      has one module of the target imported, and forks agents from it
    child       the code inside an agent: faults that fire from within, then the target
    own_line    the line of the program that a frame is in
    sweep       what one run is in a sweep of points
    watch       the controller's side of the watcher of steps, a process of the run
    marks       the lines that an agent writes
    wire        messages between controller, guardian and zygotes
    processes   pid and start time, state, descendants; how to signal and end exactly those
    journal     the folder that a run writes while it goes on
    owner       whose a folder is: the processes that hold a lock in it
    scratch     the folder of a pytest process, and what a later session does with a left one

The *guardian* is started by exec, has one thread and a session of its own, and never imports the
target. It is the subreaper of all that descends from it. When a run ends, it ends all of that. When
the controller ends (or, under xdist, the controller's controller), it also saves the evidence of
the run and removes the session's folder.

A *zygote* pays the import of a module once, so an agent executes its first line in well under a
millisecond. A module that starts threads or opens a SQLite file while it is imported cannot be in a
zygote; its agents get a fresh interpreter, and the record says so.

``plugin``, ``explore`` and ``trace`` import this room; it knows nothing of pytest.
"""
