"""What becomes of each trapped call: one method a call, by its name, in the room of what it changes.

    decoded     what becomes of a call
    looking     what every call is looked at with
    writes      write and its relatives, marks among them; copies, those by the kernel
    sizes       truncate, fallocate
    making      open, mkdir, mknod, link; moving, unlink, rename
    attributes  chmod, extended attributes
    syncs       fsync and its relatives
    unseen      what changes no file, and yet what can be seen

``decoding.Decoder`` puts them together.
"""
