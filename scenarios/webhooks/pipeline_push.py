"""The push of a developer in scenarios 11 and 12, run by its path, isolated.

``pipeline_push.py PORT REPO BRANCH SHA`` pushes a commit to the forge on that port, over HTTP. What
``http.client`` imports takes four times as long as all of this.
"""

import sys
from _socket import AF_INET, SOCK_STREAM, socket


def main() -> None:
    """Push, and fail unless the forge has made the commit."""
    port, repo, branch, sha = sys.argv[1:]
    body = f'{{"branch": "{branch}", "sha": "{sha}"}}'.encode()
    head = f"POST /repos/{repo}/pushes HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}"
    connection = socket(AF_INET, SOCK_STREAM)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", int(port)))
    connection.send(head.encode() + b"\r\n\r\n" + body)
    answer = b""
    while read := connection.recv(1000):
        answer += read
    if b" 201 " not in answer:
        sys.exit(4)


if __name__ == "__main__":
    main()
