"""A simulated disk: recorded steps are applied to it, and crash states are built from it.

content   the pages of a file, shared between states and copied when written
disk      a folder tree to which steps are applied; the effect of each step in one form
live      the items of that tree, kept up to date step by step
state     one state of the folder with the marks before it, its digest and its code
crash     the states that a kill leaves
metadata  the pending changes of metadata, with an index
power     the states that a power loss may leave, under two named models
folder    states written into a real folder, and real folders read back
changes   which files of a real folder were changed meanwhile
"""
