"""More than one session: the history of a results folder, and the difference of two sessions.

    history   the earlier sessions of a results folder -> a trend for each scenario
    compare   two summaries -> what is worse, better or undecided. Pure

Both say what was measured, with its bound. A lower pass rate is worse only if chance does not
explain it.
"""
