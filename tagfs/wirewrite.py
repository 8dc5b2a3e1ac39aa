"""Wirewrite: what the kernel asks of a mount that programs write to, and how that is answered, in bytes.  Pure.

Owns: the structures of the FUSE protocol that `wire` does not need for a read-only mount.
Does not know: the tree, the device.
Source: as of `wire`; `struct` lines name the structure that they are.
"""

import struct
from typing import NamedTuple

from tagfs import wire
from tagfs.wire import HEADER_SIZE, Malformed

MAX_WRITE = 1 << 20
"""Bytes of one WRITE: all but the longest lists are one request."""

BUFFER_SIZE = MAX_WRITE + 4096
"""The kernel hands over no request to a buffer that could not hold the longest."""

BACKGROUND = 512
"""Requests under way that nobody waits for: each closed file is one, and where they wait for one another the next
program finds the old list."""

_ATOMIC_O_TRUNC = 1 << 3
_BIG_WRITES = 1 << 5
_ASYNC_DIO = 1 << 15

_WANTED = (
    wire.ASYNC_READ
    | _ATOMIC_O_TRUNC  # O_TRUNC comes with its OPEN, not as a truncation by path, which would commit
    | _BIG_WRITES
    | wire.AUTO_INVAL_DATA
    | wire.DO_READDIRPLUS
    | _ASYNC_DIO
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
)
"""Neither the kernel's cache for writers, which would answer them before anybody has judged what they write; nor its
locks, which stay between the programs of this machine; nor that OPEN and OPENDIR may be answered ENOSYS."""

_DIRECT_IO = 1 << 0
"""FOPEN_DIRECT_IO: no page of a list is kept, because a node is both read and written through."""

_SIZE, _MTIME, _HANDLE = 1 << 3, 1 << 5, 1 << 6
"""FATTR_SIZE, FATTR_MTIME (with the time of now where that is meant) and FATTR_FH."""

_PID = struct.Struct("<32xI")
"""struct fuse_in_header: the thread that asks."""

_SETATTR_IN = struct.Struct("<IIQQQqqqIII")
"""struct fuse_setattr_in, its start: what is set, padding, handle, size, owner of locks, atime, mtime, ctime, their
nanoseconds."""

_RENAME_IN = struct.Struct("<Q")
_RENAME2_IN = struct.Struct("<QII")
_MKDIR_SIZE = 8
_OPEN_IN = struct.Struct("<II")
_CREATE_IN = struct.Struct("<IIII")
"""struct fuse_create_in: flags, mode, umask, more flags; then the name."""

_HANDLE_IN = struct.Struct("<Q")
"""The start of struct fuse_release_in, fuse_flush_in, fuse_fsync_in, fuse_read_in and fuse_write_in."""

_WRITE_IN = struct.Struct("<QQIIQII")
"""struct fuse_write_in: handle, offset, size, flags, owner of locks, flags of the file, padding; then the bytes."""

_GETXATTR_IN = struct.Struct("<II")
_OPEN_OUT = struct.Struct("<QII")
_SIZE_OUT = struct.Struct("<II")
"""struct fuse_write_out and fuse_getxattr_out."""

_SECOND = 1_000_000_000


class Changed(NamedTuple):
    """What a SETATTR sets, of what can be set; None: not that.  `handle` is the open file that it is asked for by."""

    size: int | None
    mtime_ns: int | None
    handle: int | None


def initiation(request: bytes) -> bytes:
    """What INIT is answered with."""
    return wire.initiation(request, _WANTED, MAX_WRITE, BACKGROUND)


def pid_of(request: bytes) -> int:
    """The thread that asks; 0 where it is in another PID namespace, or nobody's."""
    pid: int = _PID.unpack_from(request)[0]
    return pid


def handle_of(request: bytes) -> int:
    """The handle of a request for what is open."""
    return _unpacked(_HANDLE_IN, request)[0]


def flags_of(request: bytes) -> int:
    """The flags of an OPEN."""
    return _unpacked(_OPEN_IN, request)[0]


def written(request: bytes) -> tuple[int, int, bytes]:
    """-> (handle, offset, bytes) of a WRITE."""
    handle, offset, size, *_ = _unpacked(_WRITE_IN, request)
    data = request[HEADER_SIZE + _WRITE_IN.size :]
    if len(data) != size:
        raise Malformed(f"{len(data)} bytes where {size} were promised")
    return handle, offset, data


def created(request: bytes) -> tuple[int, bytes]:
    """-> (flags, name) of a CREATE."""
    return _unpacked(_CREATE_IN, request)[0], _names(request, _CREATE_IN.size, 1)[0]


def made(request: bytes) -> bytes:
    """The name of a MKDIR."""
    return _names(request, _MKDIR_SIZE, 1)[0]


def renamed(request: bytes) -> tuple[bytes, int, bytes, int]:
    """-> (old name, new directory, new name, 0) of a RENAME."""
    old, new = _names(request, _RENAME_IN.size, 2)
    return old, _unpacked(_RENAME_IN, request)[0], new, 0


def renamed_with_flags(request: bytes) -> tuple[bytes, int, bytes, int]:
    """-> (old name, new directory, new name, flags) of a RENAME2."""
    old, new = _names(request, _RENAME2_IN.size, 2)
    directory, flags, _ = _unpacked(_RENAME2_IN, request)
    return old, directory, new, flags


def changed(request: bytes) -> Changed:
    """What a SETATTR sets."""
    valid, _, handle, size, _, _, mtime, _, _, mtime_ns, _ = _unpacked(_SETATTR_IN, request)
    return Changed(
        size if valid & _SIZE else None,
        mtime * _SECOND + mtime_ns if valid & _MTIME else None,
        handle if valid & _HANDLE else None,
    )


def room_of(request: bytes) -> int:
    """The bytes that a GETXATTR or LISTXATTR has room for; 0: it asks how many there are."""
    return _unpacked(_GETXATTR_IN, request)[0]


def attribute_of(request: bytes) -> bytes:
    """The name of a GETXATTR."""
    return _names(request, _GETXATTR_IN.size, 1)[0]


def opened(handle: int) -> bytes:
    """What OPEN, and the end of CREATE, is answered with."""
    return _OPEN_OUT.pack(handle, _DIRECT_IO, 0)


def opened_directory(handle: int) -> bytes:
    """What OPENDIR is answered with: its names are read anew each time."""
    return _OPEN_OUT.pack(handle, 0, 0)


def size(count: int) -> bytes:
    """How much was written, or how long an extended attribute is."""
    return _SIZE_OUT.pack(count, 0)


def _unpacked(layout: struct.Struct, request: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(request, HEADER_SIZE)
    except struct.error as error:
        raise Malformed(f"{len(request)} bytes are too few") from error


def _names(request: bytes, skipped: int, count: int) -> list[bytes]:
    """The `count` names behind a structure of `skipped` bytes, each ended by a NUL."""
    *names, rest = request[HEADER_SIZE + skipped :].split(b"\0")
    if len(names) != count or rest or not all(names):
        raise Malformed("no name")
    return names
