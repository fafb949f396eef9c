"""The chaos matrix: run records in, HTML, Markdown, JSON and lines for the terminal out.

A guest of the harness: it hears the hook ``pytest_chaos_session_finished`` and knows nothing of how
runs are made. Records alone are enough, so a matrix can be rendered again on another day, or from
several machines' records merged.

    pytest_chaos.model.campaign   records -> summary (the arithmetic and the verdicts; nothing here decides anything)
    figures            numbers and texts as a reader sees them, in one place for all formats
    limits             what the figures do not prove
    matrix             summary -> what a page shows: labels, cuts, digest
    contract           summary -> matrix.json, whose shape is promised to other programs
    render             the three files; terminal the lines of pytest's summary
    plugin, cli        the two doors: pytest and ``chaos report`` (also ``python -m chaos_reports``)

The HTML page makes no request of any kind and runs no script; its content security policy says so
to the browser.
"""
