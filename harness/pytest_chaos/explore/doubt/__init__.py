"""Doubt: does the check notice? A recording is damaged, and the check judges what is left then.

    damages   what a program with one mistake would have done: steps left out, moved, halved. Pure
    left      the states that a recording leaves, sound or damaged, and what differs in them. Pure
    trials    each damage against the check: noticed, let pass, equivalent
    result    the outcome, in words and for JSON

It says nothing of the program: the check is what is tried, with defects that cost no writing.
"""
