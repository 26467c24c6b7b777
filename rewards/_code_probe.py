"""A program that attempts what programs must not be able to do; `attempt` names what succeeded.  Run in a sandbox."""

import ctypes
import errno
import importlib
import os
import socket
import time


def network():
    for address in (("127.0.0.1", 9), ("192.0.2.1", 9)):
        with socket.socket() as made:
            made.settimeout(0.2)
            if made.connect_ex(address) not in (errno.ENETUNREACH, errno.EPERM, errno.EACCES):
                return True
    return False


def files():
    return any(map(os.path.exists, ("/etc/passwd", "/proc/self", "/sys/kernel", "/home", "/root/.ssh", "/boot")))


def signals():
    return os.getppid() != 1


def processes():
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
    try:
        return bool(bytearray(2**28))
    except MemoryError:
        return False


def disk():
    try:
        with open("large", "wb") as file:
            for _ in range(64):
                file.write(bytes(2**20))
    except OSError:
        return False
    return True


def namespaces():
    return ctypes.CDLL(None).unshare(0x10000000) == 0


def environment():
    return not set(os.environ) <= {"HOME", "TMPDIR", "PATH", "LANG"}


def libraries():
    try:
        importlib.import_module("wave")  # not yet imported, so its file has to be read
    except ImportError:
        return True
    return False


CHECKS = (network, files, signals, processes, memory, disk, namespaces, environment, libraries)


def attempt():
    return [check.__name__ for check in CHECKS if check()]
