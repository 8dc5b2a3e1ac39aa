"""Asking: whether a path answers, asked by a child process that may hang in our place; who serves a mount.  Blocking.

Owns: the child, its deadline, what its end says; the process at the other end of a FUSE connection.
Does not know: the mount table, who wants to know.
"""

import errno
import os
import select
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

DEADLINE = 5.0
"""Seconds that a mount has to answer."""

FAILED = 255
"""The child's exit code where it failed with no errno."""

_DEVICE = "/dev/fuse"


def is_served(code: int) -> bool:
    """Whether a child that ended with this code was answered by somebody, even if with an error."""
    return code >= 0 and code not in (errno.ENOTCONN, errno.ECONNABORTED, FAILED)


def answer(path: str, look: Callable[[str], object] = os.statvfs) -> int | None:
    """0, or the errno that `look` ended with; None where nothing came within DEADLINE.  OSError: no child."""
    process, pidfd = start(path, look)
    try:
        has_ended = bool(select.select([pidfd], [], [], DEADLINE)[0])
    finally:
        os.close(pidfd)
        # Not even that ends one whose request the daemon has taken: it goes when the mount does, and is not waited for.
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) if has_ended else None


def start(path: str, look: Callable[[str], object] = os.statvfs) -> tuple[int, int]:
    """Process and pidfd of a child that looks, and whose exit code is 0, an errno, or FAILED; OSError.

    statvfs(3) is never answered from what the kernel keeps.
    """
    # It keeps them blocked: else the number of a signal that it is sent would get into a pipe of ours.
    was = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        process = forked(partial(_look, path, look))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, was)
    try:
        return process, os.pidfd_open(process)
    except OSError:
        os.kill(process, signal.SIGKILL)
        raise


def forked(act: Callable[[], NoReturn]) -> int:
    """The process of a child that does nothing but `act`, which takes no lock and ends by _exit(2); OSError."""
    with warnings.catch_warnings():
        # Of threads that hold locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        act()
    return process


def _look(path: str, look: Callable[[str], object]) -> NoReturn:
    code = FAILED
    try:
        # Whoever reads our output would wait for a child that hangs.
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        look(path)
        code = 0
    except OSError as error:
        code = error.errno or FAILED
    finally:
        os._exit(code)


def daemon_of(connection: int) -> int | None:
    """The process that answers a FUSE connection; None where it is not seen from here, or the kernel does not tell."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in os.listdir(process / "fd"):
                if os.readlink(process / "fd" / descriptor) != _DEVICE:
                    continue
                if f"fuse_connection:\t{connection}\n" in (process / "fdinfo" / descriptor).read_text():
                    return int(process.name)
    return None
