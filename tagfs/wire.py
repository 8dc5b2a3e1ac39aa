"""Wire: what the kernel asks on /dev/fuse and how it is answered, in bytes.  Pure.

Owns: the structures of the FUSE protocol that a read-only mount needs, and their numbers.
Does not know: the tree, the device.
Source: the kernel's `include/uapi/linux/fuse.h`, protocol 7.31; `struct` lines name the structure that they are.
"""

import enum
import functools
import os
import struct

from tagfs.view import Attributes

MAJOR, MINOR = 7, 31
"""The protocol that is spoken; newer kernels speak it too, an older one is no worse off than with its own."""

REQUEST_LIMIT = 8192
"""FUSE_MIN_READ_BUFFER: the kernel hands over no request to a smaller buffer; none of a mount without writers is
larger."""

REPLY_PAGES = 256
"""Pages of one READ at most, so that a list of 1 MiB is one request; the kernel's own limit may be lower."""

READ_AHEAD = 1 << 20
"""Bytes."""


class Opcode(enum.IntEnum):
    """`enum fuse_opcode`: the requests that are answered with more than an errno, and those counted by name."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


CHANGING = frozenset((4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51))
"""SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE, FALLOCATE,
RENAME2, COPY_FILE_RANGE and TMPFILE.  The kernel refuses them itself, unless somebody remounts the mount to write."""

_NOTIFY_INVAL_INODE, _NOTIFY_INVAL_ENTRY = 2, 3

ASYNC_READ = 1 << 0
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
NO_OPENDIR_SUPPORT = 1 << 24

_WANTED = (
    ASYNC_READ
    | AUTO_INVAL_DATA  # a directory that is rewound is compared by its time
    | DO_READDIRPLUS  # always, and no LOOKUP is left
    | NO_OPEN_SUPPORT
    | PARALLEL_DIROPS
    | MAX_PAGES
    | NO_OPENDIR_SUPPORT
)

_KEEP_CACHE, _CACHE_DIRECTORY = 1 << 1, 1 << 3
"""FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR, which a kernel that is answered ENOSYS takes for granted."""

_IN = struct.Struct("<4xIQQ")
"""struct fuse_in_header, without what is not asked for: opcode, unique, node id."""

_OUT = struct.Struct("<IiQ")
"""struct fuse_out_header: length, negative errno (or code of a notification), unique."""

_ENTRY = struct.Struct("<QQQQIIQQQQQQIIIIIIIIII")
"""struct fuse_entry_out: node id, generation, entry and attribute timeouts in seconds and their nanoseconds; and its
struct fuse_attr: ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize,
flags."""

_ATTR = struct.Struct("<QIIQQQQQQIIIIIIIIII")
"""struct fuse_attr_out: timeout in seconds and its nanoseconds, padding, struct fuse_attr."""

_DIRENT = struct.Struct("<QQII")
"""struct fuse_dirent: ino, position of the next, length of the name, type; then the name, padded to eight bytes."""

_READ_IN = struct.Struct("<QQI")
"""struct fuse_read_in, its start: handle, offset, size."""

_FORGET_IN = struct.Struct("<Q")
_BATCH_FORGET_IN = struct.Struct("<II")
_FORGET_ONE = struct.Struct("<QQ")
_INIT_IN = struct.Struct("<IIII")
"""struct fuse_init_in, its start: major, minor, read-ahead, flags."""

_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
"""struct fuse_init_out: major, minor, read-ahead, flags, background requests and when they are a congestion, longest
write, granularity of times, pages of a request, alignment, more flags."""

_STATFS = struct.Struct("<QQQQQIIII24x")
_OPEN_OUT = struct.Struct("<QII")
_INVAL_INODE = struct.Struct("<Qqq")
_INVAL_ENTRY = struct.Struct("<QII")

_SECOND = 1_000_000_000
_BLOCK_SIZE = 4096
"""Bytes: the size of reads that `st_blksize` advises."""

HEADER_SIZE = 40
"""Bytes: the header's other fields are its length, the user, group and process that ask, and the extensions' length."""


class Malformed(ValueError):
    """A request that is not what its opcode promises."""


def header(request: bytes) -> tuple[int, int, int]:
    """-> (opcode, unique, node id)."""
    if len(request) < HEADER_SIZE:
        raise Malformed(f"{len(request)} bytes are no request")
    opcode, unique, node = _IN.unpack_from(request)
    return opcode, unique, node


def opcode_of(request: bytes) -> int:
    """Which kind of request it is; 0 where it is none."""
    return int.from_bytes(request[4:8], "little")


def _body(layout: struct.Struct, request: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(request, HEADER_SIZE)
    except struct.error as error:
        raise Malformed(f"{len(request)} bytes are too few") from error


def name_of(request: bytes) -> bytes:
    """The name that a LOOKUP asks for."""
    name, end, rest = request[HEADER_SIZE:].partition(b"\0")
    if not name or not end or rest:
        raise Malformed("no name")
    return name


def read_of(request: bytes) -> tuple[int, int]:
    """-> (offset, size) of a READ, READDIR or READDIRPLUS."""
    _, offset, size = _body(_READ_IN, request)
    return offset, size


def forgotten(opcode: int, request: bytes, node: int) -> list[tuple[int, int]]:
    """The (node id, count) references that a FORGET or BATCH_FORGET takes back."""
    if opcode == Opcode.FORGET:
        return [(node, _body(_FORGET_IN, request)[0])]
    count, _ = _body(_BATCH_FORGET_IN, request)
    start = HEADER_SIZE + _BATCH_FORGET_IN.size
    if len(request) < start + count * _FORGET_ONE.size:
        raise Malformed(f"{len(request)} bytes are too few for {count} references")
    return [_FORGET_ONE.unpack_from(request, start + number * _FORGET_ONE.size) for number in range(count)]


def answer(unique: int, size: int) -> bytes:
    """The header of an answer with `size` bytes."""
    return _OUT.pack(_OUT.size + size, 0, unique)


def refusal(unique: int, number: int) -> bytes:
    """The answer with an errno."""
    return _OUT.pack(_OUT.size, -number, unique)


def initiation(request: bytes, wanted: int = _WANTED, max_write: int = _BLOCK_SIZE, background: int = 64) -> bytes:
    """What INIT is answered with; Malformed where the kernel speaks an older protocol.

    Args:
        wanted: the flags to ask for, as far as the kernel has them.
        max_write: bytes of one WRITE.
        background: requests under way that no program waits for.
    """
    major, minor, read_ahead, flags = _body(_INIT_IN, request)
    if major < MAJOR:
        raise Malformed(f"protocol {major}.{minor} is too old")
    if major > MAJOR:
        return _INIT_OUT.pack(MAJOR, MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0)  # and it asks again, in this one
    accepted = flags & wanted
    ahead = min(max(read_ahead, READ_AHEAD), READ_AHEAD)
    congested = background * 3 // 4
    return _INIT_OUT.pack(MAJOR, MINOR, ahead, accepted, background, congested, max_write, 1, REPLY_PAGES, 0, 0)


def indispensable(request: bytes) -> list[Opcode]:
    """Of OPEN and OPENDIR, those that the kernel that sent this INIT does not stop asking for."""
    flags = _body(_INIT_IN, request)[3]
    needed = [] if flags & NO_OPEN_SUPPORT else [Opcode.OPEN]
    return needed if flags & NO_OPENDIR_SUPPORT else [*needed, Opcode.OPENDIR]


def opened() -> bytes:
    """What OPEN and OPENDIR are answered with where the kernel cannot do without: no handle, all may be kept."""
    return _OPEN_OUT.pack(0, _KEEP_CACHE | _CACHE_DIRECTORY, 0)


def entry(one: Attributes, uid: int, gid: int) -> bytes:
    """struct fuse_entry_out of a node that is there."""
    id_, mode, size, blocks, mtime, ctime, entry_kept, attr_kept, owner = one
    entry_s, entry_ns = _timeout(entry_kept)
    attr_s, attr_ns = _timeout(attr_kept)
    mtime, mtime_ns = divmod(mtime, _SECOND)
    ctime, ctime_ns = divmod(ctime, _SECOND)
    # fmt: off
    return _ENTRY.pack(
        id_, 0, entry_s, attr_s, entry_ns, attr_ns,
        id_, size, blocks, mtime & _MASK, mtime & _MASK, ctime & _MASK, mtime_ns, mtime_ns, ctime_ns,
        mode, 1, uid if owner is None else owner, gid, 0, _BLOCK_SIZE, 0,
    )
    # fmt: on


@functools.lru_cache(maxsize=8)  # as of `_timeout`
def absence(timeout: float) -> bytes:
    """struct fuse_entry_out that says for how long there is no such name."""
    seconds, rest_ns = _timeout(timeout)
    return _ENTRY.pack(0, 0, seconds, 0, rest_ns, *([0] * 17))


def attributes(one: Attributes, uid: int, gid: int) -> bytes:
    """struct fuse_attr_out."""
    seconds, rest_ns = _timeout(one.attr_timeout)
    mtime, mtime_ns = divmod(one.mtime_ns, _SECOND)
    ctime, ctime_ns = divmod(one.ctime_ns, _SECOND)
    # fmt: off
    return _ATTR.pack(
        seconds, rest_ns, 0,
        one.id, one.size, one.blocks, mtime & _MASK, mtime & _MASK, ctime & _MASK, mtime_ns, mtime_ns, ctime_ns,
        one.mode, 1, uid if one.owner is None else one.owner, gid, 0, _BLOCK_SIZE, 0,
    )
    # fmt: on


def record_size(name: bytes, with_entry: bool) -> int:
    """The bytes that `record` takes for a name."""
    return (_ENTRY.size if with_entry else 0) + _DIRENT.size + (len(name) + 7 & ~7)


def record(name: bytes, following: int, id_: int, mode: int, packed: bytes = b"") -> bytes:
    """struct fuse_direntplus with the `packed` entry of a child, or without one struct fuse_dirent."""
    head = _DIRENT.pack(id_, following, len(name), mode >> 12 & 15)
    return packed + head + name + _PADDING[len(name) & 7]


def space(of: os.statvfs_result | None) -> bytes:
    """struct fuse_statfs_out of the file system beneath; None: it is not known."""
    if of is None:
        return _STATFS.pack(0, 0, 0, 0, 0, _BLOCK_SIZE, 255, _BLOCK_SIZE, 0)
    return _STATFS.pack(
        of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree, of.f_bsize, 255, of.f_frsize, 0
    )  # fmt: skip


def forget_entry(parent: int, name: bytes) -> bytes:
    """The notification that lets the kernel forget what it keeps of a name."""
    body = _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
    return _OUT.pack(_OUT.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body


def forget_node(id_: int) -> bytes:
    """The notification that lets the kernel forget the attributes of a node, and the names or pages that it keeps."""
    body = _INVAL_INODE.pack(id_, 0, 0)
    return _OUT.pack(_OUT.size + len(body), _NOTIFY_INVAL_INODE, 0) + body


@functools.lru_cache(maxsize=8)  # there are three
def _timeout(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND)


_MASK = (1 << 64) - 1
"""Seconds before 1970 are a negative number in the 64 bits of an unsigned one."""

_PADDING = tuple(b"\0" * (-length & 7) for length in range(8))
