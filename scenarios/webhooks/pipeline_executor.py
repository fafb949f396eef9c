"""The program that does the jobs of scenarios 11 and 12:
the agent of a stage, run by its path, isolated.

``pipeline_executor.py FOLDER TASK STAGE PORT REPO BRANCH``. It leaves the file ``TASK-STAGE``,
which the gate of that stage looks for; in development it also pushes a commit, as the forge on that
port knows it. Each job done is a line of the ledger.
"""

import hashlib
import http.client
import json
import os
import sys


def main() -> None:
    """Do one job, and note it in the ledger."""
    folder, task, stage, port, repo, branch = sys.argv[1:]
    ledger = os.open(os.path.join(folder, "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # noqa: PTH118 - isolated
    if stage == "development":
        push(int(port), repo, branch)
    os.write(ledger, f"{task} {stage}\n".encode())
    os.close(os.open(os.path.join(folder, f"{task}-{stage}"), os.O_WRONLY | os.O_CREAT))  # noqa: PTH118 - isolated


def push(port: int, repo: str, branch: str) -> None:
    """Push a commit; its sha follows from its branch."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = {"branch": branch, "sha": hashlib.sha1(branch.encode(), usedforsecurity=False).hexdigest()}
    connection.request("POST", f"/repos/{repo}/pushes", json.dumps(content))
    if connection.getresponse().status != 201:
        sys.exit(4)


if __name__ == "__main__":
    main()
