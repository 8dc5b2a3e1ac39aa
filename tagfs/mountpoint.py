"""Mount point: what the kernel and the machine say about mounting here.  Blocking.

Owns: the mount table, dead mounts, unmounting, the checks before a mount.
Does not know: the store's content, FUSE requests.
"""

import ctypes
import errno
import logging
import os
import re
import select
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tagfs import asking
from tagfs.errors import MountRefused

log = logging.getLogger(__name__)

FSTYPE = "fuse.tagfs"
DEVICE = "/dev/fuse"

BACKGROUND_REQUESTS = 1024
"""How many requests that nobody waits for the kernel may have under way; its default of 12 lets RELEASE lag when
hundreds of descriptors are closed at once."""

_CONTROL = "/sys/fs/fuse/connections"
"""The fusectl file system (kernel: `Documentation/filesystems/fuse.rst`)."""

_LINKS_LIMIT = 40
"""Symbolic links in a path, as the kernel has it (path_resolution(7))."""

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of proc(5)'s mountinfo; `device` is (major, minor)."""

    point: str
    fstype: str
    source: str
    options: frozenset[str]
    device: tuple[int, int]
    propagation: frozenset[str] = frozenset()
    """`shared`: mounts made in it reach its peers; `master`: those of its master reach it (mount_namespaces(7))."""

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options


def mounts() -> list[Mounted]:
    """All mounts that this process sees, in the order in which they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [_parsed(line) for line in lines]


def mounted_at(path: str) -> Mounted | None:
    """The topmost mount at exactly `path`."""
    table = mounts()
    real = _real(path, table)
    return next((one for one in reversed(table) if one.point == real), None)


def holding(path: str) -> Mounted | None:
    """The mount that `path` is in; of several at one point the topmost."""
    table = mounts()
    real = _real(path, table)
    within = [one for one in reversed(table) if real == one.point or real.startswith(one.point.rstrip("/") + "/")]
    return max(within, key=lambda one: len(one.point), default=None)


def _real(path: str, table: list[Mounted]) -> str:
    """realpath(3), without asking anything of a mount of tagfs: a daemon that hangs would never answer, and it shows no
    links."""
    topmost = {one.point: one.fstype for one in table}
    real, names, links = "/", os.path.join(os.getcwd(), path).split("/")[::-1], 0
    while names and topmost.get(real) != FSTYPE:
        below = os.path.normpath(os.path.join(real, names.pop()))
        if below in topmost or links == _LINKS_LIMIT:  # a mount point is no link
            real = below
            continue
        try:
            target = os.readlink(below)
        except OSError:
            real = below
        else:
            links += 1
            real = "/" if target.startswith("/") else real
            names += target.split("/")[::-1]
    return os.path.normpath(os.path.join(real, *names[::-1]))


def showing(path: str) -> Mounted | None:
    """The mount of tagfs that `path` is in; None where it is in none, or in another file system's."""
    mounted = holding(path)
    return mounted if mounted is not None and mounted.fstype == FSTYPE else None


@contextmanager
def watched_table() -> Iterator[select.epoll]:
    """What becomes readable when something is mounted or unmounted (proc(5)); `poll(0)` takes note of it."""
    with open("/proc/self/mountinfo", "rb") as table, select.epoll() as news:
        news.register(table, select.EPOLLPRI)
        yield news


def require_device() -> None:
    """MountRefused where FUSE cannot be used at all."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountRefused(
            f"there is no {DEVICE}: load the module (modprobe fuse), or give the container the device"
            f" (docker run --device {DEVICE} --cap-add SYS_ADMIN)"
        ) from None
    except PermissionError:
        raise MountRefused(f"{DEVICE} may not be opened: run as root, or give this user rights to it") from None
    except OSError as error:
        raise MountRefused(f"{DEVICE} does not answer ({error.strerror}): is the fuse module loaded?") from error


def prepare(path: str, store: str, may_make: bool) -> None:
    """Make sure that `path` can be mounted on: MountRefused where it cannot."""
    require_device()
    if clear_dead(path):
        log.warning("%s: unmounted what a killed daemon had left there", path)
    if may_make:
        make(path)
    require_usable(path, store)


def make(path: str) -> None:
    """Make a mount point, and what is above it, where it is missing; MountRefused."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise MountRefused(f"{path} is no directory") from None
    except OSError as error:
        raise MountRefused(f"{path} cannot be made: {error.strerror}") from error


def require_usable(path: str, store: str) -> None:
    """MountRefused unless `path` is an empty directory apart from the store."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise MountRefused(
            f"{path} does not exist: make the mount point first (mkdir -p {path}), or say --make-mountpoint"
        ) from None
    except OSError as error:
        raise MountRefused(f"{path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountRefused(f"{path} is no directory")
    point, beneath = os.path.realpath(path), os.path.realpath(store)
    if point == beneath:
        raise MountRefused(f"{path} is the store itself: a mount point of its own is needed")
    if beneath.startswith(point.rstrip("/") + "/"):
        raise MountRefused(f"the store {store} is inside {path}: the mount would hide it from itself")
    if point.startswith(beneath.rstrip("/") + "/"):
        raise MountRefused(f"{path} is inside the store {store}: choose a mount point outside")
    there = mounted_at(path)
    if there is not None and there.fstype == FSTYPE:
        raise MountRefused(f"{path} already shows {there.source}: tagfs unmount {path} first")
    try:
        names = os.listdir(path)
    except OSError as error:
        raise MountRefused(f"{path} cannot be read: {error.strerror}") from error
    if names:
        raise MountRefused(f"{path} is not empty ({sorted(names)[0]} …): the mount would hide what is there")


def require_answer(there: Mounted) -> None:
    """MountRefused where the daemon of a mount of tagfs hangs; that it is dead is no concern of this."""
    if asking.answer(there.point) is None:
        raise MountRefused(f"{there.point} {silence(there)}; {cure_of_silence(there)}")


def silence(there: Mounted) -> str:
    """What is said of a mount that does not answer."""
    daemon = asking.daemon_of(there.device[1])
    who = "its process is not seen from here" if daemon is None else f"its process is pid {daemon}"
    return f"does not answer within {asking.DEADLINE:g} s: {who}"


def cure_of_silence(there: Mounted) -> str:
    return (
        f"look what that does; else take the mount away (fusermount3 -u -z {there.point}) and release who waits for it"
        f" (echo 1 > {_CONTROL}/{there.device[1]}/abort)"
    )


def clear_dead(path: str) -> bool:
    """Unmount what a killed daemon left at `path`; -> whether there was something.  MountRefused: it cannot be, or
    the daemon is there and hangs."""
    there = showing(path)
    if there is not None:
        require_answer(there)
    try:
        os.statvfs(path)  # not stat: the kernel may still have the attributes, and answers for the dead daemon
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        unmount(path, lazy=True)
        return True
    return False


def unmount(path: str, lazy: bool = False) -> Mounted:
    """Unmount a tagfs; -> what it was.  Its process may go on for a moment, with what was closed before.

    Raises:
        MountRefused: it is none, it is busy and `lazy` is not set, or the rights are missing.
    """
    there = mounted_at(path)
    if there is None:
        raise MountRefused(f"{path} is not mounted")
    if there.fstype != FSTYPE:
        raise MountRefused(f"{path} is a mount of {there.source} ({there.fstype}) and no tagfs")
    if _libc.umount2(os.fsencode(there.point), _MNT_DETACH if lazy else 0) == 0:
        return there
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise MountRefused(f"{path} is busy: end what uses it (fuser -vm {path}), or unmount --lazy")
    if number == errno.EPERM:
        _unmount_as_user(there.point, lazy)
        return there
    raise MountRefused(f"{path} cannot be unmounted: {os.strerror(number)}")


def allow_background(point: str) -> bool:
    """Let the kernel have BACKGROUND_REQUESTS under way for this mount; -> whether it could be said to it."""
    there = mounted_at(point)
    if there is None:
        return False
    try:
        with open(f"{_CONTROL}/{there.device[1]}/max_background", "w", encoding="ascii") as control:
            control.write(str(BACKGROUND_REQUESTS))
    except OSError:
        return False
    return True


def _unmount_as_user(point: str, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", point]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountRefused(f"{point} may be unmounted by root alone: fusermount3 is not installed") from None
    if done.returncode != 0:
        raise MountRefused(f"{point} cannot be unmounted: {done.stderr.strip() or 'fusermount3 failed'}")


def _parsed(line: str) -> Mounted:
    # By single spaces: a source may be empty.
    fields = line.rstrip("\n").split(" ")
    fstype, source, more = fields[fields.index("-") + 1 :][:3]
    major, minor = fields[2].split(":")
    options = frozenset(fields[5].split(",")) | frozenset(more.split(","))
    propagation = frozenset(flag.partition(":")[0] for flag in fields[6 : fields.index("-")])
    return Mounted(_unescape(fields[4]), fstype, _unescape(source), options, (int(major), int(minor)), propagation)


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
