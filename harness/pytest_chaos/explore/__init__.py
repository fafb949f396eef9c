"""Exploration: every state that a crash, a power loss or an I/O error may leave, built from one recording and checked.

    content      pure: what is in a file, page by page, copied when written; a store that keeps what memory should not
    disk         pure: a folder tree to which steps are applied; what each step changes, said in one form
    state        pure: one state of the folder with the marks seen so far, its digest, and the code that names it
    crashes      pure: the state before each step, and what a kill within a large write leaves
    power        pure: what a power failure may leave, under two named models
    materialise  writes states into a folder, and reads folders back
    target       what is explored: a class, two functions or two commands
    checking     lets a target's own check judge a state, in a worker that may hang or die
    unwatched    a run without the filter: the program is to do the same
    guarding     the exploration in a process of its own, below a guardian that cleans up after all of it
    explorer     one exploration, from the clean run to the findings

A finding is *confirmed* when a real process was really killed (or really got the error) and what it
left shows it; it is *modelled* when only a built state shows it.
"""
