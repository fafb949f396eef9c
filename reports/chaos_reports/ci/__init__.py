"""What continuous integration shows of a session.

    ctrf      the runs in the Common Test Report Format, ``matrix.ctrf.json``
    summary   a page of Markdown for the summary of a job, such as the file $GITHUB_STEP_SUMMARY

In both, only HELD is a pass. A run that decided nothing, or was not made, is never green.
"""
