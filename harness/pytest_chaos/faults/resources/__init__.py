"""Faults of resources: bounds on a live process, its memory, its share of the processor.

``kinds.py``  the kinds, with the functions that plan them, and their receipts
"""
