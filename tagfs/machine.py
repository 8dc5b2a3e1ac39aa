"""Machine: whether FUSE and inotify can be used here, and by this user.  Blocking.

Owns: the trial of a mount, the limits of the kernel, fusermount3 and its configuration.
Does not know: stores, mount points.
"""

import ctypes
import errno
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tagfs import mountpoint
from tagfs.errors import MountRefused
from tagfs.remarks import Remark, fail, ok, warn

FUSERMOUNT = "fusermount3"
FUSE_CONF = Path("/etc/fuse.conf")
INOTIFY = Path("/proc/sys/fs/inotify")

FILES_WANTED = 4096
"""Descriptors: a list that programs have open holds one until it is read."""

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000
_MOUNT_STEP = 0x80
"""Added to the errno that the child of a trial ends with, where unsharing worked and mounting did not."""

_libc = ctypes.CDLL(None, use_errno=True)


def examine(directories: int | None) -> Iterator[Remark]:
    """Remarks on this machine, or pod.

    Args:
        directories: how many a store has, each of which needs a watch; None where no store was named.
    """
    yield _device()
    yield from _mounting()
    yield _watches(directories)
    yield _files()


def _device() -> Remark:
    try:
        mountpoint.require_device()
    except MountRefused as error:
        told, _, cure = str(error).partition(": ")
        return fail(mountpoint.DEVICE, told, cure)
    return ok(mountpoint.DEVICE, "can be opened")


# -- mounting


def _mounting() -> Iterator[Remark]:
    subject = "mounting"
    if os.geteuid() == 0:
        number = try_mount()
        if number == 0:
            yield ok(subject, "allowed, also for other users (--allow-other)")
        elif number & _MOUNT_STEP:
            yield fail(
                subject,
                f"refused to root ({os.strerror(number & ~_MOUNT_STEP)}) although it has CAP_SYS_ADMIN",
                "a security profile forbids it: in a pod securityContext.privileged: true, or an AppArmor profile of"
                " Unconfined; else journalctl -k | grep -i denied",
            )
        else:
            yield fail(
                subject,
                f"refused to root ({os.strerror(number)}): CAP_SYS_ADMIN is missing",
                "in a pod securityContext.privileged: true, which mountPropagation: Bidirectional needs too; with"
                " docker --cap-add SYS_ADMIN; or let another process mount, and serve /dev/fd/N",
            )
        return
    yield _fusermount(shutil.which(FUSERMOUNT))
    yield _others(FUSE_CONF)


def try_mount() -> int:
    """Mount a FUSE in a mount namespace of a child's own, which ends with it; -> the errno, 0 where it works."""
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            number = _trial()
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _trial() -> int:
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return ctypes.get_errno()
    try:
        device = os.open(mountpoint.DEVICE, os.O_RDWR)
    except OSError as error:
        return error.errno or errno.EIO
    options = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d" % (device, os.geteuid(), os.getegid())
    if _libc.mount(b"tagfs-doctor", b"/", b"fuse.tagfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        return ctypes.get_errno() | _MOUNT_STEP
    return 0


def _fusermount(path: str | None) -> Remark:
    """Whether a user without rights can mount with this program."""
    cure = "apt install fuse3, or run tagfs as root"
    if path is None:
        return fail(FUSERMOUNT, f"not installed, and uid {os.geteuid()} may not mount without it", cure)
    status = os.stat(path)
    if not (status.st_mode & stat.S_ISUID and status.st_uid == 0):
        return fail(FUSERMOUNT, f"{path} is not setuid root", f"chown root {path} && chmod u+s {path}")
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return fail(FUSERMOUNT, f"{path} is on a file system that is mounted nosuid", "mount that without nosuid")
    if _status_field("NoNewPrivs") == "1":
        return fail(
            FUSERMOUNT,
            "this process can gain no rights (no_new_privs), so it mounts nothing",
            "allowPrivilegeEscalation: true in a pod, NoNewPrivileges=no in a unit; or run tagfs as root",
        )
    return ok(FUSERMOUNT, f"{path} mounts for uid {os.geteuid()}")


def _others(conf: Path) -> Remark:
    """Whether a user may let others see a mount."""
    subject = "user_allow_other"
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == subject for line in lines):
        return ok(subject, f"set in {conf}")
    return warn(
        subject,
        f"not set in {conf}: with --allow-other uid {os.geteuid()} may not mount",
        f"echo {subject} >> {conf}, as root; only where others than this user are to read the mount",
    )


# -- limits


def _watches(directories: int | None) -> Remark:
    subject = "inotify"
    descriptor = _libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return fail(
            subject,
            f"no instance is left for uid {os.geteuid()} ({os.strerror(ctypes.get_errno())})",
            f"raise fs.inotify.max_user_instances: sysctl -w fs.inotify.max_user_instances={_limit('instances') * 2}",
        )
    os.close(descriptor)
    most = _limit("watches")
    if directories is None:
        return ok(subject, f"{most:,} watches for each user; a store needs one for each repository")
    told = f"{directories:,} directories, {most:,} watches for each user"
    cure = f"sysctl -w fs.inotify.max_user_watches={max(2 * most, 4 * directories)}, and put it into /etc/sysctl.d"
    if directories >= most:
        return fail(subject, f"{told}: changes beneath a mount show after a second at best", cure)
    if directories * 2 >= most:
        return warn(subject, f"{told}, which other programs of this user take from too", cure)
    return ok(subject, told)


def _limit(name: str) -> int:
    try:
        return int((INOTIFY / f"max_user_{name}").read_text())
    except (OSError, ValueError):
        return 0


def _files() -> Remark:
    subject = "open files"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= FILES_WANTED:
        return ok(subject, "no limit" if most == resource.RLIM_INFINITY else f"at most {most:,}")
    return warn(
        subject,
        f"at most {most:,}: with more lists open at once, programs get EMFILE",
        f"LimitNOFILE={FILES_WANTED} in a unit; ulimit -Hn {FILES_WANTED} before it is started",
    )


def _status_field(name: str) -> str:
    """A field of this process's status (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, text = line.partition(":")
        if key == name:
            return text.strip()
    return ""
