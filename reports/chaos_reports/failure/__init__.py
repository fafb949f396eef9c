"""The failure page: what one run, or one exploration, found, told to a reader who was not there.

    source       an evidence pack or a story of an exploration, whole or damaged, is read
    page         the page of a run, of an exploration, or of what cannot be read
    values       what a page is made of, in its order
    run          what the page of a run says
    exploration  what the page of an exploration says
    curve        P(violation) against the moment of a fault
    left         files, databases and output that a run left
    history      the marks of a run, or the steps of a recording, as swim lanes
    lanes        swim lanes laid out in pixels
    difference   the state that was found against the one that was promised, file by file
    write        the file, with its links

One page is one file without a request. Its only script copies a line to the clipboard; the content
security policy names script and style by their hashes.
"""
