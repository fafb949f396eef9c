"""The command ``chaos``: a click group, whose further commands come from other distributions.

    main      the group, ``doctor``, ``replay``, ``evidence``; exit codes; error texts
    doctor    what works on this machine
    explore   ``chaos explore``
    init      ``chaos init``: a first scenario
    progress  how far an exploration is, and the time left
    inspect   ``chaos inspect``: a held state
    schema    ``chaos schema``; ``documents`` has the types of what --json prints
    listing   ``chaos list``: one line a scenario
    bank      ``chaos bank``: public bugs, shown again
    mutate    ``chaos mutate``: guards removed one at a time

Commands import what they need when they are called, so ``chaos --help`` stays fast.
"""
