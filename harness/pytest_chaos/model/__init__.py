"""The pure middle: values, and functions from values to values. No process, no clock, no file.

    seed -> plan -> (a run) -> history -> verdict -> record -> campaign

    values       the frozen, typed values that travel between the rooms
    seed         the seed of a session, and a stream of randomness for each purpose
    plan         when faults fire; a plan in words; the check of a plan
    history      the mark file, read into marks and operations
    verdict      the judgement of one run
    signatures   which findings have one cause
    story        what an exploration tells of what it found
    campaign     the summary of many runs, for the matrix
    statistics   the bounds of a pass rate

Every room may import this one; it imports ``errors`` alone. Nothing here knows a kind of fault
(``faults``), a checker (``checkers``), or how a summary is shown (``chaos_reports``).
"""
