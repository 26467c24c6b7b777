"""A program that attempts what programs in the sandbox must not be able to do.

It is run in the sandbox like any other program; `attempt` names what succeeded. What each name means to a user is in
`rewards.code_pool.OPEN`.
"""

import ctypes
import errno
import importlib
import os
import socket
import time


def network():
    """Whether an address can be reached, or refuses by itself."""
    for address in (("127.0.0.1", 9), ("192.0.2.1", 9)):
        with socket.socket() as made:
            made.settimeout(0.2)
            if made.connect_ex(address) not in (errno.ENETUNREACH, errno.EPERM, errno.EACCES):
                return True
    return False


def files():
    """Whether files of the machine can be seen."""
    return any(map(os.path.exists, ("/etc/passwd", "/proc/self", "/sys/kernel", "/home", "/root/.ssh", "/boot")))


def signals():
    """Whether the parent is not the first process of a namespace, so that others could be signalled too."""
    return os.getppid() != 1


def processes():
    """Whether 40 processes can be started."""
    children = []
    try:
        for _ in range(40):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except OSError:
        return False
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return True


def memory():
    """Whether 256 MiB can be allocated."""
    try:
        return bool(bytearray(2**28))
    except MemoryError:
        return False


def disk():
    """Whether a file of 64 MiB can be written."""
    try:
        with open("large", "wb") as file:
            for _ in range(64):
                file.write(bytes(2**20))
    except OSError:
        return False
    return True


def namespaces():
    """Whether a user namespace can be made, in which the program would have every right."""
    return ctypes.CDLL(None).unshare(0x10000000) == 0


def environment():
    """Whether variables of the trainer's environment can be read."""
    return not set(os.environ) <= {"HOME", "TMPDIR", "PATH", "LANG"}


def libraries():
    """Whether Python's own library is out of reach, so that programs could not import from it."""
    try:
        importlib.import_module("wave")  # not yet imported, so its file has to be read
    except ImportError:
        return True
    return False


CHECKS = (network, files, signals, processes, memory, disk, namespaces, environment, libraries)


def attempt():
    """Names of the checks that found something open."""
    return [check.__name__ for check in CHECKS if check()]
