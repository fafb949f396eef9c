"""The store in one SQLite file (WAL, ``synchronous=FULL``): the only code of the core that has SQL.

A write goes ``SqliteStore.transaction`` -> ``group_commit`` (threads of this process share one
transaction) -> ``write_lock_queue`` (processes begin in order) -> the statements -> COMMIT.
``schema`` has the tables and their migrations, ``connections`` opens, checks and translates errors.
``statements`` executes; ``work``, ``jobs``, ``webhooks``, ``state`` and ``once`` have the SQL of
one room of the core each.
"""
