"""Disk: the few system calls that the store is made of, one method each.  Blocking.

Owns: how a call is made (directory-relative, never through a symbolic link), so that a test can fail, tear or forget
exactly one.
Does not know: keys, tags, what a file is for.
Each method raises OSError as its system call does.
"""

import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: opening a FIFO must not wait for its writer."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_OPENAT2 = 437
"""Of every architecture but alpha, which has another call there or none."""

_RESOLVE_NO_SYMLINKS = 0x04
_DIRECTORY_BELOW = (ctypes.c_uint64 * 3)(_DIRECTORY | os.O_NOFOLLOW, 0, _RESOLVE_NO_SYMLINKS)
"""struct open_how: flags, mode, resolve."""

_FILE_BELOW = (ctypes.c_uint64 * 3)(_READ, 0, _RESOLVE_NO_SYMLINKS)

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_STATFS_WORDS = 32
"""More than `struct statfs` has."""


class FileStatus(Protocol):
    """What the store reads of `struct stat`."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class Disk:
    """The real disk.  Directories and files are descriptors; names are single path components, but where a method says
    that it takes a path."""

    def open_root(self, path: str) -> int:
        """The directory at `path`, which alone may lead through symbolic links."""
        return os.open(path, _DIRECTORY)

    def open_dir(self, directory: int, name: str) -> int:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)

    def open_below(self, directory: int, path: str) -> int:
        """The directory at `path` below another, no link on the way, in one call: openat2(2).  OSError also where the
        kernel, or who confines this process, does not have that call; `open_dir` name by name does the same."""
        return _openat2(directory, path, _DIRECTORY_BELOW)

    def open_file(self, directory: int, name: str) -> int:
        return os.open(name, _READ, dir_fd=directory)

    def open_file_below(self, directory: int, path: str) -> int:
        """The file at `path` below a directory, otherwise as `open_below`."""
        return _openat2(directory, path, _FILE_BELOW)

    def create(self, directory: int, name: str) -> int:
        return os.open(name, _CREATE, FILE_MODE, dir_fd=directory)

    def close(self, descriptor: int) -> None:
        """Never an error but for a descriptor that is not open: it is gone whatever close(2) answers, and what has to
        be durable was synced before."""
        try:
            os.close(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def read(self, file: int, size: int, offset: int = 0) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end of the file."""
        part = os.pread(file, size, offset)
        if len(part) == size or not part:
            return part
        parts = [part]
        done = len(part)
        while done < size and (part := os.pread(file, size - done, offset + done)):
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def write(self, file: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def sync(self, file: int) -> None:
        os.fsync(file)

    def sync_dir(self, directory: int) -> None:
        os.fsync(directory)

    def sync_filesystem(self, directory: int) -> None:
        """Make everything written to the file system of `directory` durable: syncfs(2)."""
        if _libc.syncfs(directory) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def kind(self, directory: int) -> int:
        """The number by which the kernel knows the kind of file system that `directory` is on: fstatfs(2)."""
        status = (ctypes.c_long * _STATFS_WORDS)()
        if _libc.fstatfs(directory, status) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return status[0] & 0xFFFFFFFF

    def tells_of_lost_writes(self, release: str | None = None) -> bool:
        """Whether `sync_filesystem` fails where anything written before was lost: Linux 5.8."""
        major, minor = re.findall(r"\d+", release or os.uname().release)[:2]
        return (int(major), int(minor)) >= (5, 8)

    def rename(self, directory: int, name: str, to_directory: int, to_name: str) -> None:
        os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=to_directory)

    def unlink(self, directory: int, name: str) -> None:
        os.unlink(name, dir_fd=directory)

    def make_dir(self, directory: int, name: str) -> None:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=directory)

    def remove_dir(self, directory: int, name: str) -> None:
        os.rmdir(name, dir_fd=directory)

    def names(self, directory: int) -> list[tuple[str, bool]]:
        """(name, whether it is a directory itself and no link to one) of every entry, in no order."""
        with os.scandir(directory) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def stat(self, directory: int, name: str) -> FileStatus:
        """Of a name, or of a path whose directories are known to be no links."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def stat_open(self, descriptor: int) -> FileStatus:
        return os.fstat(descriptor)

    def set_mtime(self, file: int, mtime_ns: int) -> None:
        os.utime(file, ns=(mtime_ns, mtime_ns))

    def set_mode(self, descriptor: int, mode: int) -> None:
        os.fchmod(descriptor, mode)

    def lock(self, directory: int) -> bool:
        """Whether the exclusive lock of `directory` is now held through this descriptor: flock(2)."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def space(self, directory: int) -> os.statvfs_result:
        return os.fstatvfs(directory)

    def remove_tree(self, directory: int, name: str) -> None:
        """Remove `name` and all below it, following no link; no error where it is gone already."""
        try:
            if not stat.S_ISDIR(self.stat(directory, name).st_mode):
                self.unlink(directory, name)
                return
            inner = self.open_dir(directory, name)
            try:
                for below, _ in self.names(inner):
                    self.remove_tree(inner, below)
            finally:
                self.close(inner)
            self.remove_dir(directory, name)
        except FileNotFoundError:
            return


def _openat2(directory: int, path: str, how: "ctypes.Array[ctypes.c_uint64]") -> int:
    descriptor: int = _libc.syscall(_OPENAT2, directory, path.encode(), how, ctypes.sizeof(how))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def sync_file(disk: Disk, directory: int, name: str) -> None:
    """Make a file durable that another program may have written, and its name."""
    file = disk.open_file(directory, name)
    try:
        disk.sync(file)
    finally:
        disk.close(file)
    disk.sync_dir(directory)


@contextmanager
def closed_on_failure(disk: Disk, descriptor: int) -> Iterator[None]:
    """Close a descriptor where what is done first with it fails; else whoever goes on closes it."""
    try:
        yield
    except BaseException:
        disk.close(descriptor)
        raise
