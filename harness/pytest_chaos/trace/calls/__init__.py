"""Decoding trapped system calls: a notification in, durable steps out, before the call is done.

    table     number, filter rule and decoder of each call, declared together; the filter's code
    base      what each decoder uses: the caller's memory, the folder's nodes, the steps
    writes    write and its relatives; marks and output among them
    copies    sendfile, copy_file_range, splice, reflinks
    paths     create, open, link, rename, remove, resize
    metadata  permissions, flushes, descriptors, mappings; refused calls
    decoder   the decoder of a run, made of all these

To add a system call, declare a method in the module of its subject; nothing else changes::

    @system_call("fsync", x86_64=74, aarch64=82)
    def fsync(self, call: Notification) -> Decoded:
        return self._synced(call, Action.SYNC)

Imported by ``trace.seccomp`` alone.
"""
