"""The library matrix: what each fault does to programs that nobody here wrote, from explorations.

    rows     what is explored, what it promises and where, what is known upstream: ``rows.toml``
    measure  one exploration a cell; ``measured.json`` has what came out
    page     the table and the details of ``docs/library-matrix.md``, and ``libraries.json``

``python -m scenarios.library_matrix`` measures all, and writes data and page. Both files of data
are beside the targets (``scenarios/targets``) and are reviewed like code.
"""
