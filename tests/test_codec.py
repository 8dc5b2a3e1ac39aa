"""Codec: round trips, sizes from headers, and every way in which stored bytes can lie."""

import gzip
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tagfs import codec
from tagfs.codec import CODECS, GZIP, HEADER_SIZE, PLAIN, TRAILER_SIZE, ZSTD, Codec, Undecodable

PROJECT = Path(__file__).parent.parent
LIMIT = 1 << 20
PLAINS = st.one_of(
    st.binary(max_size=600),
    st.lists(st.sampled_from([b"v1.2.3\n", b"latest\n", b"sha256-0123456789abcdef\n"]), max_size=400).map(b"".join),
)
SAMPLES = {
    "empty": b"",
    "one": b"latest\n",
    "repeating": b"v1.2.3\n" * 300,
    "varied": b"".join(b"%d.%d.%d-r%d\n" % (n % 7, n * n % 31, n * n * n % 101, n) for n in range(150)),
}
COMPRESSED = [GZIP, ZSTD]
every_codec = pytest.mark.parametrize("which", CODECS, ids=lambda which: which.name)
every_compressed = pytest.mark.parametrize("which", COMPRESSED, ids=lambda which: which.name)
every_sample = pytest.mark.parametrize("plain", SAMPLES.values(), ids=SAMPLES.keys())


def promised_size(which: Codec, stored: bytes) -> int:
    return which.plain_size(stored[:HEADER_SIZE], stored[-TRAILER_SIZE:], len(stored))


# -- round trips


@every_codec
@given(plain=PLAINS)
def test_bytes_survive(which: Codec, plain: bytes) -> None:
    stored = which.encode(plain)
    assert which.decode(stored, LIMIT) == plain
    assert promised_size(which, stored) == len(plain)


@every_codec
@every_sample
def test_the_same_list_is_stored_as_the_same_bytes(which: Codec, plain: bytes) -> None:
    assert which.encode(plain) == which.encode(bytes(bytearray(plain)))


@every_codec
@given(plain=PLAINS.filter(bool))
def test_exactly_at_the_limit_is_decoded_and_over_it_is_refused(which: Codec, plain: bytes) -> None:
    stored = which.encode(plain)
    assert which.decode(stored, len(plain)) == plain
    with pytest.raises(Undecodable, match="--max-list-size"):
        which.decode(stored, len(plain) - 1)


@every_codec
def test_an_empty_list_needs_no_room(which: Codec) -> None:
    assert which.decode(which.encode(b""), 0) == b""


@every_sample
def test_other_programs_read_it(plain: bytes) -> None:
    assert gzip.decompress(GZIP.encode(plain)) == plain
    gunzip = subprocess.run(["gunzip", "-c"], input=GZIP.encode(plain), stdout=subprocess.PIPE, check=True)
    assert gunzip.stdout == plain
    assert zstandard.ZstdDecompressor().decompress(ZSTD.encode(plain)) == plain


@every_sample
def test_what_other_programs_wrote_is_read(plain: bytes) -> None:
    """Flux writes gzip at level 9; a person compresses with a name and a time in the header, or by hand."""
    assert GZIP.decode(gzip.compress(plain, 9), LIMIT) == plain
    named = subprocess.run(["gzip", "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout
    assert GZIP.decode(named, LIMIT) == plain
    for checksum in (False, True):
        for level in (-5, 19):
            stored = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(plain)
            assert ZSTD.decode(stored, LIMIT) == plain
            assert promised_size(ZSTD, stored) == len(plain)


def test_gzip_carries_neither_name_nor_time() -> None:
    stored = GZIP.encode(b"latest\n")
    assert stored[3] == 0
    assert stored[4:8] == bytes(4)


def test_zstd_carries_size_and_checksum() -> None:
    parameters = zstandard.get_frame_parameters(ZSTD.encode(b"latest\n"))
    assert parameters.content_size == 7
    assert parameters.has_checksum


def test_codecs_are_found_by_name_and_told_apart_by_suffix() -> None:
    assert [codec.named(name) for name in ("plain", "gzip", "zstd")] == list(CODECS)
    assert [which.suffix for which in CODECS] == ["", ".gz", ".zst"]
    with pytest.raises(KeyError):
        codec.named("xz")


# -- damage


@every_compressed
@every_sample
def test_every_truncation_is_refused(which: Codec, plain: bytes) -> None:
    stored = which.encode(plain)
    for size in range(len(stored)):
        with pytest.raises(Undecodable):
            which.decode(stored[:size], LIMIT)


@every_compressed
@every_sample
def test_no_single_flipped_bit_becomes_a_tag(which: Codec, plain: bytes) -> None:
    """A flip is refused, or it hit a bit that carries no data and the list is the same."""
    stored = which.encode(plain)
    unnoticed = []
    for bit in range(len(stored) * 8):
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            decoded = which.decode(bytes(flipped), LIMIT)
        except Undecodable:
            continue
        assert decoded == plain, f"bit {bit} changed the list"
        unnoticed.append(bit // 8)
    if which is GZIP:
        # Flags, time, extra flags and OS, and the padding of the last byte of deflate.
        assert set(unnoticed) <= {*range(3, 10), len(stored) - 9}
    else:
        # An unused bit of the header, reserved and padding bits of the blocks: a handful.
        assert len(unnoticed) <= 32


@every_compressed
@given(stored=st.binary(max_size=200))
def test_noise_is_refused(which: Codec, stored: bytes) -> None:
    with pytest.raises(Undecodable):
        which.decode(stored, LIMIT)


@every_compressed
@given(plain=PLAINS, at=st.integers(0), noise=st.binary(min_size=1, max_size=8))
def test_overwritten_bytes_are_refused_or_change_nothing(which: Codec, plain: bytes, at: int, noise: bytes) -> None:
    stored = bytearray(which.encode(plain))
    start = at % len(stored)
    stored[start : start + len(noise)] = noise
    try:
        assert which.decode(bytes(stored), LIMIT) == plain
    except Undecodable:
        pass


@every_compressed
@every_sample
@pytest.mark.parametrize("tail", [b"\n", b"\0", b"\0" * 512, b"more"])
def test_bytes_after_the_end_are_refused(which: Codec, plain: bytes, tail: bytes) -> None:
    with pytest.raises(Undecodable):
        which.decode(which.encode(plain) + tail, LIMIT)


@every_compressed
@pytest.mark.parametrize("first", [b"", b"latest\n"])
@pytest.mark.parametrize("second", [b"", b"v1\n"])
def test_a_second_member_or_frame_is_refused(which: Codec, first: bytes, second: bytes) -> None:
    with pytest.raises(Undecodable):
        which.decode(which.encode(first) + which.encode(second), LIMIT)


@pytest.mark.parametrize("content", [b"", b"abcd", b"x" * 1000])
def test_a_skippable_frame_is_no_empty_list(content: bytes) -> None:
    skippable = struct.pack("<II", 0x184D2A50, len(content)) + content
    for stored in (skippable, skippable + ZSTD.encode(b"v1\n"), skippable + ZSTD.encode(b"")):
        with pytest.raises(Undecodable):
            ZSTD.decode(stored, LIMIT)


@pytest.mark.parametrize("lie", [0, 1, 6, 8, 255])
def test_a_zstd_header_that_lies_about_its_size_is_refused(lie: int) -> None:
    """A frame of 7 bytes has its size in byte 5: single segment, one byte of content size."""
    stored = bytearray(ZSTD.encode(b"latest\n"))
    assert stored[5] == 7
    stored[5] = lie
    with pytest.raises(Undecodable):
        ZSTD.decode(bytes(stored), LIMIT)


@pytest.mark.parametrize("lie", [0, 6, 8, 0xFFFFFFFF])
def test_a_gzip_trailer_that_lies_about_its_size_is_refused(lie: int) -> None:
    stored = GZIP.encode(b"latest\n")[:-4] + struct.pack("<I", lie)
    assert promised_size(GZIP, stored) == lie
    with pytest.raises(Undecodable):
        GZIP.decode(stored, LIMIT)


def test_zstd_without_its_size_is_refused_with_advice() -> None:
    stored = zstandard.ZstdCompressor(write_content_size=False).compress(b"latest\n" * 100)
    for refused in (lambda: ZSTD.decode(stored, LIMIT), lambda: promised_size(ZSTD, stored)):
        with pytest.raises(Undecodable, match="content size"):
            refused()


@pytest.mark.parametrize("stored", [b"", b"\x1f", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x20", b"v1\n"])
@every_compressed
def test_no_header_no_size(which: Codec, stored: bytes) -> None:
    with pytest.raises(Undecodable):
        promised_size(which, stored)


def test_a_trailer_that_shrank_away_is_no_size() -> None:
    """Between the status of a file and its trailer another program may cut it."""
    with pytest.raises(Undecodable):
        GZIP.plain_size(GZIP.encode(b"latest\n")[:HEADER_SIZE], b"\0", 27)


def test_a_dictionary_is_not_guessed() -> None:
    dictionary = zstandard.ZstdCompressionDict(b"v1.2.3\nlatest\n" * 20)
    stored = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"v1.2.3\nlatest\n" * 5)
    with pytest.raises(Undecodable):
        ZSTD.decode(stored, LIMIT)


# -- bombs


def zstd_of_zeros(size: int, promise: int) -> bytes:
    """A frame of `size` zeros in RLE blocks of 128 KiB, four bytes each, that promises `promise` bytes."""
    frame = struct.pack("<IBBI", 0xFD2FB528, 0b10_0_00_0_00, (17 - 10) << 3, promise)
    block = 128 << 10
    for done in range(0, size, block):
        last = done + block >= size
        frame += ((block << 3) | (0b01 << 1) | last).to_bytes(3, "little") + b"\0"
    return frame


def gzip_of_zeros(size: int) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + squeezer.flush()


BOMB = 256 << 20


@pytest.mark.parametrize(
    ("which", "promise"),
    [(GZIP, None), (ZSTD, 0), (ZSTD, 1), (ZSTD, 1 << 20), (ZSTD, BOMB)],
    ids=["gzip", "zstd-nothing", "zstd-a-byte", "zstd-a-mebibyte", "zstd-all"],
)
def test_a_bomb_costs_little(which: Codec, promise: int | None, tmp_path: Path) -> None:
    """In a process of its own, whose peak is compared with one that decodes an honest list of the limit's size."""
    bomb = gzip_of_zeros(BOMB) if promise is None else zstd_of_zeros(BOMB, promise)
    assert len(bomb) < 2 << 20
    honest = peak_memory_of_decoding(which, which.encode(bytes(LIMIT)), tmp_path)
    assert peak_memory_of_decoding(which, bomb, tmp_path) < honest + (8 << 20)


def peak_memory_of_decoding(which: Codec, stored: bytes, directory: Path) -> int:
    """Bytes of the largest resident set of a process that decodes `stored`, whether it succeeds or not."""
    file = directory / "stored"
    file.write_bytes(stored)
    program = (
        "import pathlib, resource, sys\n"
        "from tagfs import codec\n"
        "try: codec.named(sys.argv[1]).decode(pathlib.Path(sys.argv[2]).read_bytes(), int(sys.argv[3]))\n"
        "except codec.Undecodable: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", program, which.name, str(file), str(LIMIT)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=PROJECT)
    return int(ran.stdout) * 1024


@pytest.mark.parametrize("window_log", [20, 27, 30])
def test_a_wide_window_is_not_allocated(window_log: int, tmp_path: Path) -> None:
    """A frame may ask its decoder for a window of gigabytes."""
    block = b"v1\n"
    frame = struct.pack("<IBBI", 0xFD2FB528, 0b10_0_00_0_00, (window_log - 10) << 3, len(block))
    frame += ((len(block) << 3) | 1).to_bytes(3, "little") + block
    honest = peak_memory_of_decoding(ZSTD, ZSTD.encode(bytes(LIMIT)), tmp_path)
    assert peak_memory_of_decoding(ZSTD, frame, tmp_path) < honest + (8 << 20)


def test_plain_is_bounded_too() -> None:
    assert PLAIN.decode(b"abc", 3) == b"abc"
    with pytest.raises(Undecodable, match="--max-list-size"):
        PLAIN.decode(b"abcd", 3)
