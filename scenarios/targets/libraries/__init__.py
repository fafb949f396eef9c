"""Python libraries that keep data in files, for the library matrix.

    queues        huey, persist-queue (three kinds), litequeue
    dictionaries  diskcache, tinydb, shelve, dbm.dumb, sqlitedict, pickledb, joblib's cache
    frameworks    APScheduler, langgraph-checkpoint-sqlite, DBOS
    together      the same, and LMDB, with two processes that write at once

``docs/library-matrix.md`` has what came out. A library that is not installed is skipped, with the
reason: ``pip install -e '.[targets]'`` brings them.
"""
