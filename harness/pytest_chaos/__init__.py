"""pytest-chaos: real processes, real faults, and evidence for every verdict.

The flow goes one way (words: docs/glossary.md; rooms: docs/architecture.md):

    scenario -> plan -> run -> history -> checkers -> verdict -> record -> matrix
                seed    agents  marks     findings      |        results
                faults  faults  receipts                +-> evidence pack

    model, checkers   pure: values in, values out
    faults            the kinds of faults, and the injector that carries out a plan
    runtime           agents, the processes that start and end them, one run
    trace, explore    every durable step of a program, and the states that faults leave there
    evidence          records of runs, and evidence packs
    plugin, cli       the rim: pytest, and the command ``chaos``

Names are imported when they are first used, so a suite without chaos tests pays next to nothing for
the plugin.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
