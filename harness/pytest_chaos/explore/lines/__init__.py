"""The places of a program that make its steps: lines of Python, functions of compiled programs.

    noted  a run that notes them, and how its steps are matched with those of a recording

The functions of compiled programs come from ``trace.calls.symbols``.
They are shown with findings, and tell call sites apart. They decide no verdict.
"""
