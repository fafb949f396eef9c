"""Faults: everything about each kind in one file, and the injector that carries out a plan.

    plan -> validate (model/plan.py) -> injector.py -> receipt
                |                          |
            registry.py: kinds of faults, found by entry point (group ``pytest_chaos.faults``)

``kind.py``             what a kind of fault says of itself: parameters, times, how it fires, its evidence
``registry.py``         the kinds that are installed, ours and other distributions', loaded when a plan names them
``injector.py``         fires what is due while the test waits, and hands out a receipt for each fault
``kill.py`` ...         one kind each (``pause.py`` has resume, too), with the function that plans it
``toxics.py``           what a fault proxy does to HTTP deliveries
``proxy.py``            the test's side of a fault proxy; ``proxy_server.py`` its process, ``messages.py`` its HTTP

A fault has fired only when its effect was seen: ``evidence`` says how. Without evidence its run is
INCONCLUSIVE. A Python agent stops at a planned point or mark by itself, with no race against the
controller: either by the signal that is the fault (kill), or until the fault was seen to happen
(hold-lock). ``runtime`` and ``plugin`` use this room; ``model`` and ``checkers`` know nothing of it.
How to add a kind: docs/writing-a-fault.md.
"""

from pytest_chaos.faults.kind import FaultKind, Firing, Parameter

__all__ = ["FaultKind", "Firing", "Parameter"]
