"""The executor of the scenarios about jobs: marks its start and end, and a second one of its job.

It is run by its path, isolated, so that it starts fast: ``executor.py FOLDER [CLAIM=CONDUCT ...]``.
A conduct is the executor's behaviour under that claim. Without one it succeeds.

The kernel releases the lock when the process ends. An executor that finds the lock taken has met
another living executor of its job.
"""

import fcntl
import os
import signal
import sys
import time


def main() -> None:
    """Do one job."""
    folder, *conducts = sys.argv[1:]
    job, claim = os.environ["RECOVERY_JOB_ID"], os.environ["RECOVERY_JOB_CLAIM"]
    conduct = dict(text.split("=") for text in conducts).get(claim, "succeed")
    ledger = os.open(os.path.join(folder, "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # noqa: PTH118 - isolated

    def say(what: str) -> None:
        os.write(ledger, f"{job} {claim} {os.getpid()} {what}\n".encode())

    lock = os.open(os.path.join(folder, f"job-{job}.lock"), os.O_RDWR | os.O_CREAT)  # noqa: PTH118 - isolated
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("overlap")
    say("begin")
    if conduct == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif conduct == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif conduct == "linger":
        while True:
            signal.pause()
    elif conduct == "wait":
        while not os.path.exists(os.path.join(folder, "go")):  # noqa: PTH110, PTH118 - isolated
            time.sleep(0.002)  # sleeps because it waits to be let go; the run bounds it
    say("end")
    if conduct == "die-late":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3 if conduct == "fail" else 0)


if __name__ == "__main__":
    main()
