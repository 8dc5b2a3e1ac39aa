"""Holder: opening a store, being its only writer, and who else is.  Blocking.

Owns: the store's lock, and the sentence that names the process which has it.
Does not know: what a store holds.
Source: proc_locks(5); flock(2) is on the store's directory itself, because a lock file would not outlive a wipe.
"""

import logging
import os
import select
from pathlib import Path

from tagfs.disk import Disk, closed_on_failure
from tagfs.errors import StoreHeld, StoreRefused
from tagfs.mountpoint import FSTYPE, mounts, showing
from tagfs.names import BASE, VERSION_SENTINEL

log = logging.getLogger(__name__)

END_PATIENCE = 10.0
"""Seconds in which a process that was unmounted should have committed what it has."""

_UNSEEN = "a process that cannot be seen from here (in another container?)"
_DEPTH = 3
"""Directories of a store that are in one another: for all, of a namespace, of a repository."""

_COMMAND_LIMIT = 200
"""Characters of a command line that are told."""


def require_outside(path: str) -> None:
    """StoreRefused where `path` is in a mount of tagfs, which shows no store and tells of no change beneath; and where
    it is one of the directories of a store, which must not become one, nor be wiped for being none."""
    inside = showing(path)
    if inside is not None:
        raise StoreRefused(f"{path} is in a mount; name its store: {inside.source}")
    above, name = os.path.split(os.path.realpath(path))
    for _ in range(_DEPTH):
        if name == BASE and os.path.lexists(os.path.join(above, VERSION_SENTINEL)):
            raise StoreRefused(f"{path} is in a store; name that: {above}")
        above, name = os.path.split(above)


def open_store(disk: Disk, path: str) -> int:
    """The descriptor of the directory at `path`; StoreRefused where that can be no store."""
    require_outside(path)
    return open_outside(disk, path)


def open_outside(disk: Disk, path: str) -> int:
    """The same, where it is known that `path` is in no mount of tagfs and in no store."""
    try:
        return disk.open_root(path)
    except FileNotFoundError:
        raise StoreRefused(f"{path} does not exist: make it first, or mount the volume that holds it") from None
    except NotADirectoryError:
        raise StoreRefused(f"{path} is no directory: name the directory that holds {path} or lists") from None
    except PermissionError:
        raise StoreRefused(f"{path} may not be read: run as its owner, or as root") from None


def take(disk: Disk, path: str) -> int:
    """The descriptor of the store at `path`, whose only writer is now its owner; StoreHeld, StoreRefused."""
    root = open_store(disk, path)
    with closed_on_failure(disk, root):
        lock(disk, root, path)
    return root


def lock(disk: Disk, root: int, path: str) -> None:
    """Make the owner of `root` the only writer of the store at `path`; StoreHeld."""
    if not disk.lock(root):
        raise StoreHeld(path, holder_of(root))


def is_held(disk: Disk, path: str) -> bool:
    """Whether a writer has a store that was opened, now.  Tries its lock for a moment: a writer in another container is
    seen too."""
    root = open_outside(disk, path)
    try:
        return not disk.lock(root)
    finally:
        disk.close(root)


def await_end(store: str) -> None:
    """Return when the process that had a store for a mount that has just been unmounted has ended: it commits what was
    closed before, and keeps the store until then.  One that cannot be seen from here is not waited for."""
    if any(one.fstype == FSTYPE and one.source == store and not one.is_read_only for one in mounts()):
        return  # it is that one's, for which the other stood by
    try:
        status = os.stat(store)
        locks = Path("/proc/locks").read_text()
        pid = find_pid(locks, os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
        if pid is None:
            return
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if not select.select([process], [], [], END_PATIENCE)[0]:
            log.warning("%s is still held by pid %d (%s)", store, pid, _command(pid))
    finally:
        os.close(process)


def holder_of(root: int | str) -> str:
    """Who holds the lock of a store, as far as the kernel tells: `pid 12 (tagfs mount …)`."""
    status = os.fstat(root) if isinstance(root, int) else os.stat(root)
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return _UNSEEN
    pid = find_pid(locks, os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    return _UNSEEN if pid is None else f"pid {pid} ({_command(pid)})"


def find_pid(locks: str, major: int, minor: int, inode: int) -> int | None:
    """The process that holds the exclusive flock of an inode, in the text of /proc/locks."""
    on_another_device = None
    for line in locks.splitlines():
        # `1: FLOCK  ADVISORY  WRITE 708 08:01:393 0 EOF`; a line of one that waits has `->` in second place.
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or fields[3] != "WRITE" or not fields[4].isdigit():
            continue
        device, _, number = fields[5].rpartition(":")
        if number != str(inode) or fields[4] == "0":
            continue
        if device == f"{major:02x}:{minor:02x}":
            return int(fields[4])
        # btrfs and overlayfs tell stat(2) another device than the lock's.
        on_another_device = int(fields[4])
    return on_another_device


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "its starter is gone, a child of it goes on"
    text = b" ".join(words).decode("utf-8", "backslashreplace")
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown[:_COMMAND_LIMIT] + "…" if len(shown) > _COMMAND_LIMIT else shown
