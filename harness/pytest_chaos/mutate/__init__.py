"""Mutation testing for resilience: the guards of a program that its chaos suite notices.

``operators`` (on statements) and ``sql`` (inside SQL texts) make edits of a syntax tree, ``edits``
says what an edit is, and ``mutants`` lists those of a package under stable ids. All these are pure.
``campaign`` measures once which test reaches which statement, then runs each mutant against its
tests alone, in forks of one preloaded process (``runner``). No file of the program is changed: the
folder ``inside`` is put on PYTHONPATH, and its ``sitecustomize`` puts the compiled mutant in place
of the module in every Python process of the tests, agents included. ``results`` is the file, and
``equivalents`` the list of mutants that change nothing.
"""
