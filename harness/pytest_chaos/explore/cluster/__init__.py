"""Exploration on a cluster: batches of states go to workers of Dask, judgements come back.

    address   what ``--cluster`` may say: local:4, tcp://host:8786, slurm:8
    seam      a pool of judgements that gathers tasks into batches, and counts each answer once
    engine    the near end of the cluster's process: batches in, answers out
    process   the process that has Dask: its scheduler, its client, its workers' end
    worker    what a worker of Dask runs: a batch goes to a bench
    bench     a process beside the worker, with the parcel unpacked: builds states, and judges them
    parcel    target, sources and recording as one value with a digest
    sources   the modules of a target, shipped by name
    rebuild   states by their codes, in the order of a recording
    items     states and folders as bytes
    wire      the messages

An exploration enumerates states as ever, and skips those that equal an earlier one. A state goes
to a worker as its code and its digest. The worker builds it from the recording, which it was sent
once, and refuses to judge what comes to another digest. Real runs (a kill that confirms, an I/O
error) are made by the workers, too.

Explorer, cluster process, Dask's workers and benches are processes of their own: an exploration
forks, and Dask has threads. Each of them has a guardian, so none outlives pytest.
"""
