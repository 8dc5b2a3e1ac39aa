"""Being somebody who has no rights.  Needs root."""

import os
from collections.abc import Callable
from pathlib import Path


def as_nobody(act: Callable[[], None]) -> int:
    """The exit code of a child process that does it without any rights: 0, or 1 where it raised."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            act()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def belongs_to_nobody(path: Path) -> None:
    for at, directories, files in os.walk(path):
        for name in (".", *directories, *files):
            os.chown(os.path.join(at, name), 65534, 65534)
