"""Doctor: what is wrong with a store, a mount point and what is between them.  Blocking.

Owns: looking at all of it without changing anything; in which order it is told.
Does not know: how it is printed, clusters.
"""

import errno
import os
from collections.abc import Iterator

from tagfs import asking, machine, mountpoint, sentinel
from tagfs.disk import Disk
from tagfs.errors import MountRefused, StoreRefused
from tagfs.holder import holder_of, is_held, open_outside
from tagfs.mountpoint import FSTYPE, Mounted
from tagfs.names import BASE
from tagfs.remarks import Remark, fail, harmless, ok, warn
from tagfs.sentinel import Condition

LITTLE_SPACE = 0.05
"""Of a file system that is free."""

_NETWORKED = frozenset({"9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "nfs", "nfs4", "smb3", "virtiofs"})
"""File systems on which inotify tells nothing of what other machines write."""

_PASSING = frozenset({"tmpfs", "ramfs"})


def examine(store: str | None, point: str | None) -> Iterator[Remark]:
    """Remarks on this machine, and on a store and a mount point where they are named."""
    there = mountpoint.mounted_at(point) if point is not None else None
    of_machine = list(machine.examine(_directories(store) if store is not None else None))
    if there is not None and there.fstype == FSTYPE and store is None:
        of_machine = harmless(of_machine, "only who mounts needs it")
    yield from of_machine
    if store is not None:
        yield from of_store(store)
    if point is not None:
        yield from of_point(point, store, there)


# -- the store


def of_store(path: str) -> Iterator[Remark]:
    disk = Disk()
    inside = mountpoint.holding(path)
    if inside is not None and inside.fstype == FSTYPE:
        yield fail("store", f"{path} is in a mount of {inside.source}", f"name the store: {inside.source}")
        return
    try:
        root = open_outside(disk, path)
    except StoreRefused as error:
        told, _, cure = str(error).partition(": ")
        yield fail("store", told, cure or "name the directory that holds the lists")
        return
    try:
        yield _sentinels(disk, root, path)
        yield _writing(disk, root, path)
        if inside is not None:
            yield from _volume(inside)
        yield _space(root)
    except OSError as error:
        yield fail("store", f"{path} cannot be read: {error.strerror}", "look at the disk: dmesg, smartctl")
    finally:
        disk.close(root)


def _directories(path: str) -> int:
    """How many directories of a store are watched."""
    count = 2
    try:
        with os.scandir(os.path.join(path, BASE)) as namespaces:
            for namespace in namespaces:
                if namespace.is_dir(follow_symlinks=False):
                    count += 1 + sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(namespace.path))
    except OSError:
        pass  # Told where the store is looked at.
    return count


def _sentinels(disk: Disk, root: int, path: str) -> Remark:
    found = sentinel.examine(disk, root)
    if found.condition is Condition.READY:
        return ok("store", f"{path} is a store of format {found.format}")
    if found.condition is Condition.EMPTY:
        return warn(
            "store",
            f"{path} is empty: a read-only mount waits until Flux, or a read-write mount, has made a store of it",
            "nothing, where that is to come; else name the directory that Flux has as --storage-path",
        )
    if found.condition in (Condition.WIPING, Condition.BADGER):
        return warn(
            "store",
            f"{path}: {found.condition.value}; a read-write mount empties it and goes on, a read-only one waits",
            "start its writer: Flux with the feature gate of its storage, or tagfs mount without --read-only",
        )
    return fail(
        "store",
        f"{path}: {found.condition.value} ({found.detail})",
        "name the directory of a store, or an empty one",
    )


def _writing(disk: Disk, root: int, path: str) -> Remark:
    """Whether this user could be its writer, and who is."""
    if is_held(disk, path):
        return ok("writer", f"{holder_of(root)} has the store")
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        return warn("writer", "none, and the file system is mounted read-only", "mount tagfs with --read-only")
    if not os.access(path, os.W_OK | os.X_OK):
        return warn(
            "writer",
            f"none, and uid {os.geteuid()} may not write to the store",
            f"mount with --read-only; or chown -R {os.geteuid()} {path}",
        )
    try:
        os.fsync(root)
    except OSError as error:
        return fail(
            "writer",
            f"none; the file system cannot make a directory durable (fsync: {error.strerror})",
            "keep the store on another file system (ext4, xfs, btrfs): here a power cut may lose what was committed",
        )
    return ok("writer", "none; this user could be it")


def _volume(inside: Mounted) -> Iterator[Remark]:
    subject = "file system"
    told = f"{inside.fstype} ({inside.source} at {inside.point})"
    if inside.fstype in _NETWORKED:
        yield warn(
            subject,
            f"{told}: inotify tells nothing of what other machines write there",
            "mount tagfs on the machine that writes the store; or keep the store on a volume of this machine",
        )
    elif inside.fstype == "overlay":
        yield warn(subject, f"{told}: the store goes with the container", "put it on a volume")
    elif inside.fstype in _PASSING:
        yield warn(subject, f"{told}: the store goes with the machine", "put it on a disk, unless Flux may scan anew")
    else:
        yield ok(subject, told)


def _space(root: int) -> Remark:
    space = os.fstatvfs(root)
    for what, free, total in (
        ("space", space.f_bavail, space.f_blocks),
        ("inodes", space.f_favail, space.f_files),
    ):
        if total and free / total < LITTLE_SPACE:
            return warn("space", f"{free / total:.1%} of the {what} are free", "make room, or enlarge the volume")
    return ok("space", f"{space.f_bavail * space.f_frsize >> 20:,} MiB free")


# -- the mount point


def of_point(path: str, store: str | None, there: Mounted | None) -> Iterator[Remark]:
    if there is None:
        try:
            mountpoint.require_usable(path, store if store is not None else "/nonexistent")
        except MountRefused as error:
            told, _, cure = str(error).partition(": ")
            yield fail("mount point", told, cure or "choose another")
        else:
            yield ok("mount point", f"{path} can be mounted on")
        above = mountpoint.holding(os.path.dirname(os.path.realpath(path)))
        if above is not None:
            yield _propagation(above)
        return
    if there.fstype != FSTYPE:
        yield fail("mount point", f"{path} is a mount of {there.source} ({there.fstype})", "choose a directory in it")
        return
    if store is not None and os.path.realpath(store) != os.path.realpath(there.source):
        yield warn("mount", f"{path} shows {there.source}, not {store}", f"tagfs unmount {path}, and mount again")
    yield _answer(path, there)
    if "allow_other" in there.options:
        yield ok("allow_other", "every user can enter")
    else:
        yield warn(
            "allow_other",
            "not set: only the user who mounted can enter, not even root of another container",
            "mount with --allow-other, where others are to read",
        )
    yield _reach(path, there)


def _answer(path: str, there: Mounted) -> Remark:
    """Whether the daemon of a mount answers."""
    number = asking.answer(path, _list)
    if number is None:
        return fail("mount", f"{path} {mountpoint.silence(there)}", mountpoint.cure_of_silence(there))
    if number == 0:
        return ok("mount", f"{path} shows {there.source} and answers")
    if number in (errno.ENOTCONN, errno.ECONNABORTED):
        return fail(
            "mount",
            f"{path} is dead: its daemon was killed",
            f"tagfs unmount --lazy {path}, or mount again at the same place, which clears it; in a pod that only reads:"
            " volumeMount the directory above with mountPropagation: HostToContainer",
        )
    if number == errno.EAGAIN:
        return warn(
            "mount",
            f"{path} is there, and waits for its store {there.source}",
            "see its log; tagfs doctor on the store says what is missing",
        )
    return fail(
        "mount",
        f"{path} cannot be read: {os.strerror(number)}",
        "read as the user who mounted, or mount with --allow-other",
    )


def _list(path: str) -> None:
    os.statvfs(path)
    os.listdir(path)


def _propagation(above: Mounted) -> Remark:
    """Whether a mount made below `above` reaches other mount namespaces."""
    subject = "propagation"
    if "shared" in above.propagation:
        return ok(subject, f"{above.point} is shared: what is mounted here is seen where it is passed on to")
    how = "a slave" if "master" in above.propagation else "private"
    return warn(
        subject,
        f"{above.point} is {how}: what is mounted below it is seen in this mount namespace alone",
        "in a pod mountPropagation: Bidirectional (and privileged: true) on the volumeMount above the mount point;"
        f" on a host mount --make-rshared {above.point}; nothing, where only this namespace is to read",
    )


def _reach(path: str, there: Mounted) -> Remark:
    """Where a mount that is there came from, and whether a new one after a restart will be seen here too."""
    above = mountpoint.holding(os.path.dirname(os.path.abspath(path)))
    if above is None or "master" not in there.propagation:
        return _propagation(above or there)
    if "master" in above.propagation:
        return ok("propagation", f"received from outside through {above.point}, and so will be the next one")
    return warn(
        "propagation",
        f"{path} was received from outside, but {above.point} takes no further mounts: after a restart of the"
        " daemon this one stays dead",
        "volumeMount the directory above the mount point, with mountPropagation: HostToContainer",
    )
