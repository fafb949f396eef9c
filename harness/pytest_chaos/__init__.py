"""pytest-chaos: real processes, real faults, and evidence for every verdict.

One way, no back and forth (words as in ``design.md``):

    scenario -> plan -> run -> history -> checkers -> verdict -> record -> matrix
                seed    agents  marks     invariants    |        results
                faults  faults  faults                  +-> evidence pack

    model, history, seed, plan, deliveries, checkers, statistics,
    campaign                                                      pure: values in, values out
    agents, faults                                                real processes, and what is done to them
    steps, explore                                                every durable step of a program, and what faults there
                                                                  leave: the ``explore`` fixture, ``chaos explore``
    run                                                           one run: the ``chaos`` fixture
    journal, records, evidence                                    what is written down
    settings, scratch, plugin, hookspecs, cli, doctor             the rims: pytest, the command line, the machine

Names are imported when they are first used, so a suite without chaos tests pays next to nothing for
the plugin.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
