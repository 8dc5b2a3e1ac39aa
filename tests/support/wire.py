"""Requests as the kernel packs them, and its answers taken apart."""

import struct
from dataclasses import dataclass

IN = struct.Struct("<IIQQIIIHH")
OUT = struct.Struct("<IiQ")
ENTRY = struct.Struct("<QQQQIIQQQQQQIIIIIIIIII")
DIRENT = struct.Struct("<QQII")
KERNEL_FLAGS = 0xFFFFFFFF
"""All that a kernel can offer."""


def request(opcode: int, node: int = 1, body: bytes = b"", unique: int = 2) -> bytes:
    return IN.pack(IN.size + len(body), opcode, unique, node, 1000, 1000, 100, 0, 0) + body


def init(major: int = 7, minor: int = 45, flags: int = KERNEL_FLAGS, read_ahead: int = 131072) -> bytes:
    return request(26, 0, struct.pack("<IIII48x", major, minor, read_ahead, flags))


def lookup(parent: int, name: bytes, unique: int = 2) -> bytes:
    return request(1, parent, name + b"\0", unique)


def read(node: int, offset: int, size: int, handle: int = 0) -> bytes:
    return request(15, node, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))


def readdirplus(node: int, position: int = 0, size: int = 4096, handle: int = 0) -> bytes:
    return request(44, node, struct.pack("<QQIIQII", handle, position, size, 0, 0, 0, 0))


def readdir(node: int, position: int = 0, size: int = 4096) -> bytes:
    return request(28, node, struct.pack("<QQIIQII", 0, position, size, 0, 0, 0, 0))


def getattr_(node: int) -> bytes:
    return request(3, node, struct.pack("<IIQ", 0, 0, 0))


def forget(node: int, count: int) -> bytes:
    return request(2, node, struct.pack("<Q", count))


def batch_forget(*references: tuple[int, int]) -> bytes:
    return request(42, 0, struct.pack("<II", len(references), 0) + b"".join(struct.pack("<QQ", *r) for r in references))


# -- what only a mount that is written to is asked


def setattr_(node: int, size: int | None = None, mtime_ns: int | None = None, handle: int | None = None) -> bytes:
    valid = (
        1 | (0 if size is None else 1 << 3) | (0 if mtime_ns is None else 1 << 5) | (0 if handle is None else 1 << 6)
    )
    seconds, rest_ns = divmod(mtime_ns or 0, 1_000_000_000)
    times = struct.pack("<qqqIII", 0, seconds, 0, 0, rest_ns, 0)
    return request(4, node, struct.pack("<IIQQQ", valid, 0, handle or 0, size or 0, 0) + times + bytes(20))


def mkdir(parent: int, name: bytes) -> bytes:
    return request(9, parent, struct.pack("<II", 0o755, 0) + name + b"\0")


def unlink(parent: int, name: bytes) -> bytes:
    return request(10, parent, name + b"\0")


def rmdir(parent: int, name: bytes) -> bytes:
    return request(11, parent, name + b"\0")


def rename(parent: int, name: bytes, new_parent: int, new_name: bytes, unique: int = 2) -> bytes:
    return request(12, parent, struct.pack("<Q", new_parent) + name + b"\0" + new_name + b"\0", unique)


def rename2(parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bytes:
    return request(45, parent, struct.pack("<QII", new_parent, flags, 0) + name + b"\0" + new_name + b"\0")


def open_(node: int, flags: int = 0) -> bytes:
    return request(14, node, struct.pack("<II", flags, 0))


def create(parent: int, name: bytes, flags: int) -> bytes:
    return request(35, parent, struct.pack("<IIII", flags, 0o600, 0o22, 0) + name + b"\0")


def write(node: int, handle: int, offset: int, data: bytes, unique: int = 2) -> bytes:
    return request(16, node, struct.pack("<QQIIQII", handle, offset, len(data), 0, 0, 0, 0) + data, unique)


def flush(node: int, handle: int) -> bytes:
    return request(25, node, struct.pack("<QIIQ", handle, 0, 0, 0))


def fsync(node: int, handle: int) -> bytes:
    return request(20, node, struct.pack("<QII", handle, 0, 0))


def fsyncdir(node: int, handle: int) -> bytes:
    return request(30, node, struct.pack("<QII", handle, 0, 0))


def release(node: int, handle: int, unique: int = 2) -> bytes:
    return request(18, node, struct.pack("<QIIQ", handle, 0, 0, 0), unique)


def getxattr(node: int, name: bytes, room: int) -> bytes:
    return request(22, node, struct.pack("<II", room, 0) + name + b"\0")


@dataclass(frozen=True, slots=True)
class Reply:
    number: int
    unique: int
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Reply":
        length, number, unique = OUT.unpack_from(raw)
        assert length == len(raw), "the kernel refuses an answer whose length is not its own"
        return cls(-number, unique, raw[OUT.size :])


@dataclass(frozen=True, slots=True)
class Entry:
    node: int
    mode: int
    size: int
    kept: int
    """Whole seconds."""

    @classmethod
    def parse(cls, raw: bytes) -> "Entry":
        fields = ENTRY.unpack_from(raw)
        assert fields[0] == fields[6], "the inode number is the node id"
        return cls(fields[0], fields[15], fields[7], fields[2])


def records(raw: bytes, with_entries: bool = True) -> list[tuple[bytes, int, int, Entry | None]]:
    """(name, position of the next, type, entry) of each record of a listing."""
    found = []
    at = 0
    while at < len(raw):
        entry = Entry.parse(raw[at:]) if with_entries else None
        at += ENTRY.size if with_entries else 0
        _, following, length, kind = DIRENT.unpack_from(raw, at)
        name = raw[at + DIRENT.size : at + DIRENT.size + length]
        found.append((name, following, kind, entry))
        at += (DIRENT.size + length + 7) & ~7
    assert at == len(raw)
    return found
