"""Descriptors: how many files a mount may have open.  Blocking.

Owns: taking what the machine allows; how it is divided.
Does not know: which files they are.
"""

import fcntl
import os
import resource
from contextlib import suppress

AT_ONCE = 1 << 13
"""Descriptors that the kernel's table has room for from the start: 64 KiB of its memory."""


def allow_many() -> None:
    """An open list holds a descriptor: take what the machine allows.

    The kernel enlarges the table of descriptors whenever it has doubled, and, once there are threads, has whoever opens
    a file then wait for some milliseconds.  So it is made large before: a descriptor of a high number does that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    low = os.open("/", os.O_PATH | os.O_CLOEXEC)
    with suppress(OSError):  # who started this process has handed it the highest one
        os.close(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, min(hard, AT_ONCE) - 1))
    os.close(low)


def for_versions() -> int:
    """Those for versions that the kernel knows, which somebody may have open.  Each holds 1.5 KiB of kernel memory, its
    inode among it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4
