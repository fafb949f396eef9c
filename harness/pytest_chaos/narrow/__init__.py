"""A violation narrowed down: what is enough for it, when it comes, and which commit brought it.

    variant    values: a changed plan or workload, what a run of it showed, an order, an answer
    trial      runs of variants: their budget, and how often a flaky one is tried
    shrink     smaller variants that are violated by the same finding
    explain    the fault at each moment in turn: a curve, and the neighbour that holds
    python     a variant as Python: faults as calls, and a test to paste
    session    a pytest process that makes the runs, heard through a pipe
    bisect     the commit that brought a violation
    add        what was found goes into the evidence pack
    own        the test that a pack names, refused if it is not the current project's
    commands   ``chaos shrink | explain | bisect``

All runs are real, and as a replay makes them: the seed and the test of the pack, with a variant in
place of its plan. They are made in one pytest process (``plugin/narrowing.py``), because to start
one costs more than most runs; what is left is replayed in processes of its own.

Shrinking is delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing
input", 2002) on processes that do not always do the same. So each step down has to be violated more
than once, and a variant that is wrongly left out makes the result larger, never wrong.
"""
