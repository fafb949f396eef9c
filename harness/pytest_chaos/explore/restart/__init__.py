"""The restart as the oracle: for a program without a check.

    ends      what a run leaves: files, rows, keys of JSON, lines; each as records of fields
    compare   what of an end is the same in each clean run, and what an end lacks beside it. Pure
    subject   the target: its check is its own restart, run to the end and compared

A run that was killed and started again must end as the run that was not killed. What differs from
one clean run to the next cannot be compared; what a second complete run changes has no one end.
Both are learned before anything is explored, and told.
"""
