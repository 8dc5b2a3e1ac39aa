"""The structures of the kernel's protocol, byte by byte."""

import os
import re
import stat
import struct
from pathlib import Path

import pytest

from tagfs import wire
from tagfs.view import FOREVER, Attributes
from tagfs.wire import Malformed, Opcode
from tests.support import wire as kernel

HEADER = Path("/usr/include/linux/fuse.h")
LIST = Attributes(7, stat.S_IFREG | 0o444, 11, 8, 1_500_000_000_000_000_001, 1_600_000_000_000_000_002, FOREVER, 1.5)


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_the_numbers_are_those_of_the_kernel() -> None:
    text = HEADER.read_text()
    opcodes = {name: int(number) for name, number in re.findall(r"^\s*FUSE_([A-Z0-9_]+)\s*= (\d+),", text, re.M)}
    for opcode in Opcode:
        assert opcodes[opcode.name] == opcode, opcode.name
    changing = (
        "SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2"
    )
    named = {opcodes[name] for name in f"{changing} COPY_FILE_RANGE TMPFILE".split() if name in opcodes}
    assert named == wire.CHANGING
    flags = {name: int(bit) for name, bit in re.findall(r"#define FUSE_([A-Z_]+)\s+\(1 << (\d+)\)", text)}
    wanted = "ASYNC_READ AUTO_INVAL_DATA DO_READDIRPLUS NO_OPEN_SUPPORT PARALLEL_DIROPS MAX_PAGES NO_OPENDIR_SUPPORT"
    for name in wanted.split():
        assert getattr(wire, name) == 1 << flags[name], name
    assert f"FUSE_MIN_READ_BUFFER {wire.REQUEST_LIMIT}" in text


def test_an_entry_says_what_stat_shows() -> None:
    raw = wire.entry(LIST, 10, 20)
    # fmt: off
    assert kernel.ENTRY.unpack(raw) == (
        7, 0, 1_000_000_000, 1, 0, 500_000_000,
        7, 11, 8, 1_500_000_000, 1_500_000_000, 1_600_000_000, 1, 1, 2,
        stat.S_IFREG | 0o444, 1, 10, 20, 0, 4096, 0,
    )
    # fmt: on
    assert len(raw) == 128


def test_attributes_are_those_of_the_entry() -> None:
    raw = wire.attributes(LIST, 10, 20)
    assert len(raw) == 104
    assert struct.unpack_from("<QII", raw) == (1, 500_000_000, 0)
    assert raw[16:] == wire.entry(LIST, 10, 20)[40:]


def test_a_pipe_belongs_to_its_owner() -> None:
    pipe = Attributes(9, stat.S_IFIFO | 0o600, owner=33)
    for raw in (wire.entry(pipe, 10, 20)[40:], wire.attributes(pipe, 10, 20)[16:]):
        mode, _, uid, gid = struct.unpack_from("<IIII", raw, 60)
        assert (stat.S_ISFIFO(mode), uid, gid) == (True, 33, 20)
    assert struct.unpack_from("<QQQQ", wire.entry(pipe, 10, 20)) == (9, 0, 0, 0)


def test_times_before_1970_are_negative() -> None:
    old = Attributes(7, stat.S_IFREG | 0o444, mtime_ns=-1, ctime_ns=-2_000_000_000)
    raw = wire.attributes(old, 0, 0)[16:]
    assert struct.unpack_from("<qqq", raw, 24) == (-1, -1, -2)
    assert struct.unpack_from("<III", raw, 48) == (999_999_999, 999_999_999, 0)


def test_an_absence_is_a_node_of_0_with_a_timeout() -> None:
    fields = kernel.ENTRY.unpack(wire.absence(2.25))
    assert fields == (0, 0, 2, 0, 250_000_000, *([0] * 17))


@pytest.mark.parametrize("length", range(1, 20))
def test_a_record_is_padded_to_eight_bytes(length: int) -> None:
    name = b"n" * length
    plain, plus = wire.record(name, 3, 7, stat.S_IFREG), wire.record(name, 3, 7, stat.S_IFREG, wire.entry(LIST, 0, 0))
    assert len(plain) == wire.record_size(name, False) == (24 + length + 7) // 8 * 8
    assert len(plus) == wire.record_size(name, True) == len(plain) + 128
    assert kernel.records(plain, False) == [(name, 3, 8, None)]
    assert kernel.records(plus)[0][:3] == (name, 3, 8)


def test_an_initiation_takes_of_the_flags_what_a_reader_needs() -> None:
    raw = wire.initiation(kernel.init())
    major, minor, ahead, flags, background, congestion, write, granularity, pages = struct.unpack_from(
        "<IIIIHHIIH", raw
    )
    assert len(raw) == 64
    assert (major, minor, ahead, granularity, pages) == (7, 31, 1 << 20, 1, 256)
    assert 0 < congestion < background and write >= 4096
    # READDIRPLUS always, not only where the kernel thinks so (bit 14); no cache of writes (bit 16), no splice (7 … 9).
    assert flags & 1 << 13 and not flags & (1 << 14 | 1 << 16 | 7 << 7)
    assert flags & 1 << 17 and flags & 1 << 24


def test_nothing_is_taken_that_the_kernel_does_not_offer() -> None:
    offered = wire.ASYNC_READ | wire.PARALLEL_DIROPS
    assert struct.unpack_from("<IIII", wire.initiation(kernel.init(flags=offered)))[3] == offered


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (kernel.KERNEL_FLAGS, []),
        (kernel.KERNEL_FLAGS & ~(1 << 24), [Opcode.OPENDIR]),
        (0, [Opcode.OPEN, Opcode.OPENDIR]),
    ],
)
def test_a_kernel_that_cannot_do_without_opens_is_answered(flags: int, needed: list[Opcode]) -> None:
    assert wire.indispensable(kernel.init(flags=flags)) == needed


def test_a_newer_major_version_asks_again_and_an_older_one_is_refused() -> None:
    assert struct.unpack_from("<II", wire.initiation(kernel.init(major=8))) == (7, 31)
    with pytest.raises(Malformed, match="too old"):
        wire.initiation(kernel.init(major=6))


@pytest.mark.parametrize("body", [b"", b"\0", b"no end", b"two\0names\0"])
def test_what_is_no_name_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        wire.name_of(kernel.request(1, 1, body))


def test_references_are_taken_back_one_by_one_or_together() -> None:
    assert wire.forgotten(2, kernel.forget(7, 3), 7) == [(7, 3)]
    assert wire.forgotten(42, kernel.batch_forget((7, 3), (8, 1)), 0) == [(7, 3), (8, 1)]
    with pytest.raises(Malformed, match="too few for 1000"):
        wire.forgotten(42, kernel.request(42, 0, struct.pack("<II", 1000, 0)), 0)


def test_notifications_have_no_unique_and_their_code_for_an_errno() -> None:
    raw = wire.forget_entry(5, b"tags.txt")
    assert kernel.OUT.unpack_from(raw) == (len(raw), 3, 0)
    assert raw[16:] == struct.pack("<QII", 5, 8, 0) + b"tags.txt\0"
    raw = wire.forget_node(5)
    assert kernel.OUT.unpack_from(raw) == (len(raw), 2, 0)
    assert raw[16:] == struct.pack("<Qqq", 5, 0, 0)


def test_space_is_that_of_the_file_system() -> None:
    told = os.statvfs("/")
    raw = wire.space(told)
    assert len(raw) == 80
    assert struct.unpack_from("<QQQ", raw) == (told.f_blocks, told.f_bfree, told.f_bavail)
    assert struct.unpack_from("<QQQQQIII", wire.space(None)) == (0, 0, 0, 0, 0, 4096, 255, 4096)
