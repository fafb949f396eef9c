"""The chaos matrix: run records in; HTML, Markdown, JSON and lines for the terminal out.

Of the harness it imports only ``model``, ``evidence`` and ``errors``. It implements the hook
``pytest_chaos_session_finished`` and adds the command ``chaos report``. Records alone are enough: a
matrix can be rendered on another day, or from the merged records of several machines.

    pytest_chaos.model.campaign   records -> summary: the arithmetic and the verdicts
    figures      numbers and texts as a reader sees them; the limits of a green matrix
    matrix       summary -> page: labels, cuts, digest
    grid         scenarios by faults at a glance
    columns      the columns of the matrix, for all four writers: to add one, add an entry
    contract     summary -> matrix.json, whose shape is promised to other programs
    environment  the templates' filters, escaping and limits
    trend        earlier sessions, and the difference of two
    ci           CTRF, and the summary of a job
    failure      an evidence pack or an exploration -> its failure page
    render       the three files; ``terminal`` the lines of pytest's summary
    plugin, cli  the two entries: pytest and ``chaos report`` (``python -m chaos_reports``)

The HTML pages make no request. Their content security policy names the one script and the one style
by their hashes, so that nothing that a program under test wrote can run.
"""
