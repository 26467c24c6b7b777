"""Started in an interpreter's place: asks a fork server for a process, and stays for as long as it lives.

Little of the standard library and nothing else: this runs once for every worker, before anything is saved.
"""

import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SERVER = "SELF_DISTILL_FORK_SERVER"  # in the environment of what was forked: by whom


def main(address: str, argv: list[str]) -> None:
    """Have the fork server run a script in this process's place; ends as the script does, and passes signals on to it.

    Where no fork server answers, this process becomes the interpreter that it stands for: slower, with the same result.

    Args:
        address: path of the fork server's socket.
        argv: the script, or ``-m`` and a module, and its arguments.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until there is whom to pass them on to
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        request = json.dumps(own(argv, address)).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        forked = server.recv(8)
    except OSError as error:
        forked = b""
        print(error, file=sys.stderr)
    if not forked:
        print(f"no fork server at {address}: this process imports everything itself", file=sys.stderr, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.execv(sys.executable, [sys.executable, *argv])

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may just have ended, and its code be on its way
            os.kill(int.from_bytes(forked, "big"), number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = server.recv(1)
    os._exit(status[0] if status else 1)  # nothing comes if the server is killed, which ends its workers too


def own(argv: list[str], address: str) -> dict:
    """What a process that takes this one's place must take over.

    Args:
        argv: what it is to run.
        address: path of the fork server's socket.
    """
    with open("/proc/self/oom_score_adj") as file:
        oom_score_adj = file.read()
    return {
        "argv": argv,
        "env": {**os.environ, SERVER: address},
        "cwd": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": oom_score_adj,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
