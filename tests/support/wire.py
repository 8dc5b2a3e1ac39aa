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


def lookup(parent: int, name: bytes) -> bytes:
    return request(1, parent, name + b"\0")


def read(node: int, offset: int, size: int) -> bytes:
    return request(15, node, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0))


def readdirplus(node: int, position: int = 0, size: int = 4096) -> bytes:
    return request(44, node, struct.pack("<QQIIQII", 0, position, size, 0, 0, 0, 0))


def readdir(node: int, position: int = 0, size: int = 4096) -> bytes:
    return request(28, node, struct.pack("<QQIIQII", 0, position, size, 0, 0, 0, 0))


def getattr_(node: int) -> bytes:
    return request(3, node, struct.pack("<IIQ", 0, 0, 0))


def forget(node: int, count: int) -> bytes:
    return request(2, node, struct.pack("<Q", count))


def batch_forget(*references: tuple[int, int]) -> bytes:
    return request(42, 0, struct.pack("<II", len(references), 0) + b"".join(struct.pack("<QQ", *r) for r in references))


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
