"""Servers as targets: a program that stays, a client that drives it, and a start on each state.

    class Target:
        ready = "port:{port}"                          # this is the default
        def serve(self, directory): ...                # returns the server's command, or a function
        def drive(self, directory, marks): ...         # the client; marks say what it was promised
        def check(self, directory, marks): ...         # may ask the server, at self.port

``ready`` is ``port:{port}`` for a free port (``self.port``, another one at each start), a port
number, ``port:8000``, the name of a file in the directory, or ``output:TEXT`` for a line that the
server prints.

One traced process starts the server, waits until it is ready, drives it, and ends it with SIGTERM.
So the steps of the server and the marks of the client have one order, and a crash ends both at
once. Recovery is the same start on a state: a server that does not come up again is a finding. Then
the check runs, and the server is killed, for nothing that it does after the check matters.
"""
