"""Device: /dev/fuse, opened and mounted, or handed over by who did that.  Blocking.

Owns: the descriptor that a session with the kernel is spoken on; mount(2), and fusermount3 where that is not allowed.
Does not know: what is said on it; unmounting, dead mounts.
"""

import ctypes
import errno
import os
import re
import select
import socket
import stat
import subprocess
from dataclasses import dataclass

from tagfs.errors import MountRefused
from tagfs.mountpoint import DEVICE, FSTYPE, mounts

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4

_NUMBER = (10, 229)
"""Major and minor of /dev/fuse (kernel: `Documentation/admin-guide/devices.txt`)."""

_INHERITED = re.compile(r"/dev/fd/(0|[1-9][0-9]{0,8})")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be mounted where; `source` is what mount tables show."""

    point: str
    source: str
    read_only: bool
    allow_other: bool


def mount(request: Request) -> int:
    """Mount, and -> the descriptor on which the kernel will ask.  The mount point's checks come before (`mountpoint`).

    Raises:
        MountRefused: why, and what to do; nothing is mounted.
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return _mount_as_user(request)
    except OSError as error:
        raise MountRefused(f"{DEVICE} cannot be opened: {error.strerror}") from error
    try:
        number = _mount(request, descriptor)
        if number == 0:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    if number == errno.EPERM:
        return _mount_as_user(request)
    raise MountRefused(f"{request.point} cannot be mounted: {os.strerror(number)}")


def inherited(point: str) -> int | None:
    """The descriptor that a mount point of the form /dev/fd/N names: somebody else has mounted it."""
    found = _INHERITED.fullmatch(point)
    return int(found[1]) if found else None


def require_inherited(descriptor: int) -> None:
    """MountRefused unless the descriptor is one of /dev/fuse that is mounted; no program that is run gets it now."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        raise MountRefused(
            f"/dev/fd/{descriptor} is not open: who mounts must hand its {DEVICE} over, without close-on-exec"
        ) from None
    if not stat.S_ISCHR(status.st_mode) or (os.major(status.st_rdev), os.minor(status.st_rdev)) != _NUMBER:
        raise MountRefused(f"/dev/fd/{descriptor} is not {DEVICE}")
    os.set_inheritable(descriptor, False)
    if not is_connected(descriptor):
        raise MountRefused(f"/dev/fd/{descriptor} is not mounted: mount it before tagfs serves it, and as long")


def is_connected(descriptor: int) -> bool:
    """Whether it is mounted: not yet unmounted, nor its connection cut."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def point_of(descriptor: int) -> str | None:
    """Where what is spoken on this descriptor is mounted; None where that is not seen from here, or the kernel does not
    tell.  Asks nothing of the mount itself."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
            connection = next((line.split()[1] for line in lines if line.startswith("fuse_connection:")), None)
    except OSError:
        return None
    return next((one.point for one in mounts() if f"{one.device[0]}:{one.device[1]}" == f"0:{connection}"), None)


def _mount(request: Request, descriptor: int) -> int:
    """mount(2); -> 0 or an errno."""
    options = f"fd={descriptor},rootmode={stat.S_IFDIR:o},user_id={os.getuid()},group_id={os.getgid()}"
    options += ",default_permissions" + (",allow_other" if request.allow_other else "")
    done = _libc.mount(
        os.fsencode(request.source),
        os.fsencode(request.point),
        FSTYPE.encode(),
        ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | (_MS_RDONLY if request.read_only else 0)),
        options.encode(),
    )
    return 0 if done == 0 else ctypes.get_errno()


def _mount_as_user(request: Request) -> int:
    """By the set-user-id program, which opens the device itself and sends it over a socket."""
    options = [f"fsname={_escaped(request.source)}", f"subtype={FSTYPE.partition('.')[2]}", "default_permissions"]
    options += ["ro"] if request.read_only else []
    options += ["allow_other"] if request.allow_other else []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", request.point],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise MountRefused(
                f"{request.point} may be mounted by root alone: fusermount3 is not installed (package fuse3)"
            ) from None
        if done.returncode != 0:
            raise MountRefused(
                f"{request.point} cannot be mounted: {done.stderr.strip() or 'fusermount3 failed'} (root may;"
                " --allow-other needs user_allow_other in /etc/fuse.conf)"
            )
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _escaped(source: str) -> str:
    """For an option of fusermount3, which takes a backslash for the start of an escape and a comma for the end."""
    return source.replace("\\", "\\\\").replace(",", "\\,")
