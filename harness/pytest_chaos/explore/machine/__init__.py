"""Workloads from rules: a state machine of Hypothesis in place of a script.

    workload  the operations of one execution of the machine, and its model after each of them
    subject   a workload as a target: its operations again, its invariants on what a crash leaves
    search    Hypothesis draws workloads; each is explored; the smallest that fails is kept

A machine has rules, invariants and a ``model``. ``directory`` is its folder. To make a machine is
to start the program: after a crash it is made again in the folder that is left, gets the model of
the operations that were done, and its invariants must hold. Of the operation under way the model
before it or the model after it will do.
"""
