"""Faults: everything about each kind in one file, and the injector that carries out a plan.

    plan -> validate (model/plan.py) -> injector.py -> receipt
                |                          |
            registry.py: kinds of faults, found by entry point (group ``pytest_chaos.faults``)

``kind.py``          what a kind of fault declares: parameters, times, how it fires, its evidence
``registry.py``      the kinds of all installed distributions, loaded when a plan names them
``injector.py``      fires due faults while the test waits, and hands out a receipt for each
``kill.py`` ...      one kind each (``pause.py``: and resume, ``hold.py``: and release), with the
                     function that plans it
``clock/``            the wall clock of agents: jump, drift, freeze, heal
``resources/``        bounds on what agents may use, felt by them; a share of the processor
``network/``          TCP connections through a link: delayed, slowed, held, cut, reset, half open
``toxics.py``        what a fault proxy does to HTTP deliveries
``proxy.py``         the test's side of a fault proxy; its process is ``proxy_server.py``, its HTTP
                     ``messages.py``

A fault has fired only when its effect was seen: ``evidence`` says how. Without evidence its run is
INCONCLUSIVE. A Python agent stops at a planned point or mark by itself, with no race against the
controller: either by the signal that is the fault (kill), or until the fault was seen to happen
(hold-lock). At a durable step the watcher of steps (``trace/watcher.py``) stops any agent so.

``runtime`` uses this room; ``model`` and ``checkers`` know nothing of it. How to add a
kind: docs/writing-a-fault.md.
"""

from pytest_chaos.faults.kind import FaultKind, Firing, Parameter

__all__ = ["FaultKind", "Firing", "Parameter"]
