"""Programs that nobody here wrote, each with what its documentation promises.

    base             what adapters share: keys are put, acknowledged, and looked for afterwards
    embedded         stores in the program's own process: LMDB, LevelDB, RocksDB, DuckDB, ZODB, GDBM
    languages        JavaScript, Java, Go and Rust; ``sources`` has the small clients
    version_control  git, Mercurial
    servers          Redis, PostgreSQL, uvicorn, gunicorn, huey

``docs/foreign.md`` has what came out. A program that is not installed is skipped, with the reason:
``pip install -e '.[targets]'`` brings the Python packages.
"""
