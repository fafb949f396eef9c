"""Campaigns under pytest: in which order runs come, which are not begun, and where one goes on.

stopping   runs that are not begun: the rate is decided, or the budget used up
resuming   a session that ended early, and the runs that it has made
suite      digests of the tests and of the project's files: are they those of the campaign?
remembered the seed and iterations of the last session, for ``--lf``
levels     processes, files and memory before each run, for drift
"""
