"""Workloads: clients for agents, whose marks the checkers that prove can judge.

    generators    operations from a seed; keys by Zipf's law
    clients       loops that do them between their marks

A list-append test over any database needs ``txn(connection, operations)`` from you, and no more
(:func:`~pytest_chaos.workloads.clients.append_lists`).
"""
