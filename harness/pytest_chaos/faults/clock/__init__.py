"""Faults of the wall clock: jump, drift, freeze, and heal. The clock itself is moved by ``clocks``.

``kinds.py``  the four kinds, with the functions that plan them, and their receipt: the agent's own
              clock, read before and after
"""
