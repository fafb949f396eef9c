"""The command ``chaos``: a click group, whose further commands come from other distributions.

    main      the group, ``doctor``, ``list``, ``replay``, ``evidence``; exit codes; error texts
    doctor    what works on this machine
    explore   ``chaos explore``
    init      ``chaos init``: a first scenario

Commands import what they need when they are called, so ``chaos --help`` stays fast.
"""
