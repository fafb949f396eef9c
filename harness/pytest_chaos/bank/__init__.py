"""The bug bank: public bugs of other people's programs, each shown again and held once mended.

    entries       an entry and its file ``entry.toml``; a folder of entries
    environments  the libraries of an entry, installed on demand in an environment of its own
    forms         one form of an entry, run by the engine that fits it
    results       what was seen, against what the entry expects: the document ``bank.json``
    campaign      several entries, some at a time

An entry is a folder with the smallest program that has the bug, in two forms. The *reported* form
must show the expected findings, by name. The *mended* form must hold under the same plan. What is
skipped, undecided or otherwise is said in a sentence, and is never green (etcd's robustness tests
have such a table of bugs, each with the command that shows it again).

The engine ``explore`` runs ``program.py:Reported`` and ``program.py:Mended`` with
``chaos explore``. The engine ``scenario`` runs ``scenario.py::test_entry[reported]`` and
``[mended]`` with pytest, in real processes. Both run in a process of their own.
"""
