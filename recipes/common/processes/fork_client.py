"""Started by Ray in an interpreter's place: asks the fork server for a worker, and stays for as long as it lives.

Little of the standard library and nothing else: this runs once for every worker, before anything is saved.
"""

import json
import os
import socket
import sys


def main(address: str, argv: list[str]) -> None:
    """Have the fork server run a script in this process's place; ends as the script does.

    Where no fork server answers, this process becomes the interpreter that it stands for: slower, with the same result.

    Args:
        address: path of the fork server's socket.
        argv: the script and its arguments.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        request = json.dumps(own(argv)).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        forked = server.recv(1)
    except OSError as error:
        forked = b""
        print(error, file=sys.stderr)
    if not forked:
        print(f"no fork server at {address}: the worker imports everything itself", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *argv])
    status = server.recv(1)
    os._exit(status[0] if status else 1)  # nothing comes if the server is killed, which ends its workers too


def own(argv: list[str]) -> dict:
    """What a process that takes this one's place must take over.

    Args:
        argv: what it is to run.
    """
    with open("/proc/self/oom_score_adj") as file:
        oom_score_adj = file.read()
    return {
        "argv": argv,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": oom_score_adj,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
