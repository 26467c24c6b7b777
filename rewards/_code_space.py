"""The namespaces that programs are run in, and the root directory that they see; used by ``rewards._code_sandbox``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
# Flags that a mount may have been given for good: a remount must repeat them.  statvfs -> mount.
KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
BOX = "/box"  # what programs see as their root directory

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library that answers a failure with -1.

    Args:
        name: the function's.
        *arguments: as ctypes takes them: whole numbers, bytes, ctypes objects, None.

    Returns:
        What the function returns.

    Raises:
        OSError: it failed; the message names the call.
    """
    result = getattr(libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        shown = ", ".join(
            a.decode() if isinstance(a, bytes) else hex(a) for a in arguments if isinstance(a, bytes | int)
        )
        raise OSError(number, f"{name}({shown}): {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """The system call mount(2).

    Args:
        source: what is mounted.
        target: the directory, or file, that it is mounted on.
        kind: type of the file system, None if the flags leave no choice.
        flags: a sum of ``MS_…``.
        options: of the file system, separated by commas.

    Raises:
        OSError: the system refuses it.
    """
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


# ---------------------------------------------------------------------------------------------- entering the namespaces


@dataclass
class Space:
    """What the machine granted.

    Attributes:
        user: whether there is a user namespace.
        mount: whether there is a mount namespace; then also whether it has a root directory of its own.
        pid: whether there is a process namespace.
        ipc: whether there is a namespace for shared memory and semaphores.
        refusals: the system's reasons for what it refused.
        own_pid: descriptor that leads back to our own process namespace; -1 if there is none.
        inherited_bytes: address space that a program has before its first statement.
        null: descriptor of /dev/null.
    """

    user: bool = False
    mount: bool = False
    pid: bool = False
    ipc: bool = False
    refusals: list[str] = field(default_factory=list)
    own_pid: int = -1
    inherited_bytes: int = 0  # address space that a program has before its first statement
    null: int = -1

    def attempt(self, step: Callable[[], Any]) -> bool:
        """Whether a step succeeded; if it did not, the system's reason is kept."""
        try:
            step()
        except OSError as error:
            self.refusals.append(error.strerror or str(error))
            return False
        return True


def write(path: str, text: str) -> None:
    """Write a file of the kernel's (in /proc) in one piece.

    Args:
        path: an existing file.
        text: what is written.

    Raises:
        OSError: the system refuses it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _enter_user_namespace() -> None:
    """Become the root of a user namespace, which outside is an ordinary user: nobody for root, else who we are.

    The map has to be written by a process that has stayed outside: only there is root allowed to map another user.
    """
    user, group = (os.geteuid(), os.getegid()) if os.geteuid() else (NOBODY, NOBODY)
    begin, end = socket.socketpair()
    helper = os.fork()
    if helper == 0:
        begin.close()
        with contextlib.suppress(OSError):
            end.recv(1)
            us = f"/proc/{os.getppid()}"
            with contextlib.suppress(OSError):  # root may map groups all the same
                write(f"{us}/setgroups", "deny")
            write(f"{us}/gid_map", f"0 {group} 1")
            write(f"{us}/uid_map", f"0 {user} 1")
            end.send(b"1")
        os._exit(0)
    end.close()
    try:
        call("unshare", NEWUSER)
        begin.send(b"1")
        if not begin.recv(1):
            raise OSError(errno.EPERM, f"writing uid_map (0 {user} 1): {os.strerror(errno.EPERM)}")
    finally:
        begin.close()
        os.waitpid(helper, 0)


def enter(space: Space) -> None:
    """Enter every namespace that the machine allows; on return this is the first process of its process namespace.

    Args:
        space: what is granted and refused is written into it.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
    space.user = space.attempt(_enter_user_namespace)
    space.mount = space.attempt(lambda: call("unshare", NEWNS))
    for flag in (NEWNET, NEWUTS):
        space.attempt(lambda flag=flag: call("unshare", flag))
    space.ipc = space.attempt(lambda: call("unshare", NEWIPC))
    space.pid = space.attempt(lambda: call("unshare", NEWPID))
    if space.pid:
        first = os.fork()
        if first:  # the runner knows this process; it lasts as long as the other one
            signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
            os.waitpid(first, 0)
            os._exit(0)
        space.own_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def library_paths(packages: list[str]) -> list[str]:
    """Directories and files that Python needs while it runs: its library, installed packages, shared objects, devices.

    Args:
        packages: directories of installed packages that programs may import.
    """
    wanted = [
        *packages, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")),
        str(Path(sys.base_prefix) / "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", *DEVICES,
    ]  # fmt: skip
    paths: list[str] = []
    for path in sorted({os.path.abspath(p) for p in wanted if os.path.exists(p)}):
        inside = any(path.startswith(other + "/") and not os.path.islink(other) for other in paths)
        if path not in ("/", "/usr") and not inside:
            paths.append(path)
    return paths


def build_root(space: Space, packages: list[str]) -> None:
    """Replace the root directory by one in memory; programs will see its ``/box``: libraries, devices and ``/tmp``.

    Args:
        space: the namespaces that were entered; a mount namespace must be among them.
        packages: directories of installed packages that programs may import.

    Raises:
        OSError: the system refuses a mount.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    paths = library_paths(packages)
    links = {p: os.readlink(p) for p in paths if os.path.islink(p)}
    # Opened as who we are outside: after the next step a directory of root's that only root may enter is closed to us.
    sources = {p: os.open(p, os.O_PATH | os.O_CLOEXEC) for p in paths if p not in links}
    if space.user:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    base = tempfile.gettempdir()
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    for path, descriptor in sources.items():
        target = base + BOX + path
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        mount(f"/proc/self/fd/{descriptor}", target, None, MS_BIND)
        kept = sum(flag for seen, flag in KEPT_FLAGS.items() if os.statvfs(target).f_flag & seen)
        read_only = 0 if path in DEVICES else MS_RDONLY | MS_NODEV
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_NOSUID | read_only | kept)
        os.close(descriptor)
    for path, target in links.items():
        os.makedirs(os.path.dirname(base + BOX + path), exist_ok=True)
        os.symlink(target, base + BOX + path)
    os.makedirs(base + BOX + "/tmp")
    os.mkdir(base + "/old")
    os.chdir(base)
    call("pivot_root", b".", b"old")
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
