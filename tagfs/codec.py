"""Codec: plain bytes <-> stored bytes, three ways.  Pure.

Owns: plain, gzip and zstd; their suffixes; the plain size from a header or trailer; bounded decoding.
Does not know: files, tags.
Formats: gzip is RFC 1952 with one member; zstd is RFC 8878 with one frame.
"""

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, cast

import zstandard

GZIP_LEVEL = 6
"""Flux writes level 9: on tag lists no smaller, for up to five times the CPU (`bench/codecs.py`)."""

ZSTD_LEVEL = 1
"""On tag lists smaller than gzip at any level, for a tenth of the CPU (`bench/codecs.py`)."""

_ZSTD_HASH_LOG = 9
"""The encoder remembers what it has met in 2^9 places, where level 1 has 2^13 and more.  Tags are sorted, so what a tag
repeats was met a moment ago: few places still know it, they are cleared sooner, and a near match takes fewer bits."""

_ZSTD_MIN_MATCH = 6
"""Bytes that have to be the same: level 1's choice for 16 to 256 KiB."""

HEADER_SIZE = 18
"""Bytes at the start of a file that hold a whole zstd frame header (RFC 8878, 3.1.1.1)."""

TRAILER_SIZE = 4
"""Bytes at the end of a file that hold gzip's ISIZE (RFC 1952, 2.3.1)."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_ZSTD_NOTHING = HEADER_SIZE + 3 + 4
"""Bytes of a frame without content, at most: header, one empty block, checksum."""

_OVERHEAD = 1024
"""Bytes: more than the headers of a list that does not compress; blocks of it add less than a 256th."""

_FRAME_PIECE = 256
"""Bytes of a stream of zstd frames that are decoded at once: of the smallest blocks that is 8 MiB plain."""

_GZIP_WRAPPER = 31
"""zlib's window bits for the largest window in a gzip wrapper."""


class Undecodable(ValueError):
    """Stored bytes that do not decode to what they promise; the sentence says why."""


class Codec(NamedTuple):
    """One way to store a list.

    `encode(plain)` -> stored bytes.  `decode(stored, limit)` -> plain bytes, at most `limit` of them.
    `plain_size(header, trailer, stored_size)` -> the size that the stored bytes promise, unverified, from their first
    HEADER_SIZE and last TRAILER_SIZE bytes.  The last two raise Undecodable.
    """

    name: str
    suffix: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]
    plain_size: Callable[[bytes, bytes, int], int]


def _encode_gzip(plain: bytes) -> bytes:
    squeezer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WRAPPER)
    return squeezer.compress(plain) + squeezer.flush()


def _decode_gzip(stored: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP_WRAPPER)
    try:
        plain = inflater.decompress(stored, limit + 1)
    except zlib.error as error:
        raise Undecodable(f"gzip is corrupt ({error})") from error
    if len(plain) > limit:
        raise Undecodable(f"gzip holds more than the {limit} bytes that --max-list-size allows")
    if not inflater.eof:
        raise Undecodable("gzip is truncated")
    if inflater.unused_data:
        raise Undecodable(f"{len(inflater.unused_data)} bytes follow the gzip member")
    return plain


def _size_gzip(header: bytes, trailer: bytes, stored_size: int) -> int:
    if header[:2] != b"\x1f\x8b" or stored_size < 18 or len(trailer) != TRAILER_SIZE:
        raise Undecodable("not gzip, or truncated")
    return int(struct.unpack("<I", trailer)[0])


_of_thread = threading.local()
"""zstd contexts are costly to make and belong to one thread at a time."""


def _encode_zstd(plain: bytes) -> bytes:
    try:
        compressor: zstandard.ZstdCompressor = _of_thread.compressor
    except AttributeError:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL,
            hash_log=_ZSTD_HASH_LOG,
            min_match=_ZSTD_MIN_MATCH,
            write_checksum=True,
            write_content_size=True,
        )
        compressor = _of_thread.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return compressor.compress(plain)


def _decode_zstd(stored: bytes, limit: int) -> bytes:
    size = _size_zstd(stored[:HEADER_SIZE], b"", len(stored))
    if size > limit:
        raise Undecodable(f"zstd promises {size} bytes, --max-list-size allows {limit}")
    try:
        decompressor: zstandard.ZstdDecompressor = _of_thread.decompressor
    except AttributeError:
        decompressor = _of_thread.decompressor = zstandard.ZstdDecompressor()
    try:
        if size == 0:
            plain = _decode_nothing(decompressor, stored)
        else:
            plain = decompressor.decompress(stored, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Undecodable(f"zstd is corrupt ({error})") from error
    if len(plain) != size:
        raise Undecodable(f"zstd promises {size} bytes and holds others")
    return plain


def _decode_nothing(decompressor: zstandard.ZstdDecompressor, stored: bytes) -> bytes:
    """`decompress` answers b"" to a promise of nothing without looking at the frame; this one looks to its end."""
    if stored[:4] != _ZSTD_MAGIC or len(stored) > _ZSTD_NOTHING:
        raise Undecodable("zstd promises nothing and holds something")
    inflater = decompressor.decompressobj()
    plain = inflater.decompress(stored)
    if not inflater.eof or inflater.unused_data:
        raise Undecodable("zstd is truncated, or bytes follow its frame")
    return plain


def _size_zstd(header: bytes, trailer: bytes, stored_size: int) -> int:
    try:
        size = zstandard.frame_content_size(header)
    except zstandard.ZstdError as error:
        raise Undecodable("not zstd, or truncated") from error
    if size < 0:
        raise Undecodable("zstd frame without its content size: write it with tagfs or `zstd FILE`, not from a pipe")
    return size


PLAIN = Codec("plain", "", bytes, lambda stored, limit: _bounded(stored, limit), lambda h, t, size: size)
GZIP = Codec("gzip", ".gz", _encode_gzip, _decode_gzip, _size_gzip)
ZSTD = Codec("zstd", ".zst", _encode_zstd, _decode_zstd, _size_zstd)

CODECS = (PLAIN, GZIP, ZSTD)


def named(name: str) -> Codec:
    """The codec of that name; KeyError where there is none."""
    return {codec.name: codec for codec in CODECS}[name]


def most_stored(limit: int) -> int:
    """The most bytes that `limit` plain ones can take in any codec: what is larger need not be read to be corrupt."""
    return limit + (limit >> 8) + _OVERHEAD


def exceeds(codec: Codec, stored: bytes, limit: int) -> bool:
    """Whether the stored bytes do decode to more than `limit` bytes: what promises that may as well be corrupt."""
    try:
        if codec is GZIP:
            return len(zlib.decompressobj(_GZIP_WRAPPER).decompress(stored, limit + 1)) > limit
        if codec is ZSTD:
            return len(zstandard.ZstdDecompressor().stream_reader(stored).read(limit + 1)) > limit
    except (zlib.error, zstandard.ZstdError):
        return False
    return len(stored) > limit


def is_zstd(header: bytes) -> bool:
    return header.startswith(_ZSTD_MAGIC)


class _Frames:
    def __init__(self, stream: IO[bytes]) -> None:
        self._parts = _parts_of_frames(stream)
        self._plain = bytearray()

    def read(self, size: int) -> bytes:
        try:
            while len(self._plain) < size and (part := next(self._parts, None)) is not None:
                self._plain += part
        except zstandard.ZstdError as error:
            raise Undecodable(f"zstd is corrupt ({error})") from error
        taken = bytes(self._plain[:size])
        del self._plain[:size]
        return taken


def _parts_of_frames(stream: IO[bytes]) -> Iterator[bytes]:
    """Not by zstandard's own reader, which does not tell a frame that is cut short from one that has ended."""
    frame, stored = None, b""
    while stored := stored or stream.read(_FRAME_PIECE):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(stored)
        frame, stored = (None, frame.unused_data) if frame.eof else (frame, b"")
    if frame is not None:
        raise EOFError("a zstd frame ends too early")


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """What a stream of zstd frames holds, to be read forwards; reading raises Undecodable, EOFError."""
    return cast(IO[bytes], _Frames(stream))


def _bounded(stored: bytes, limit: int) -> bytes:
    if len(stored) > limit:
        raise Undecodable(f"{len(stored)} bytes, --max-list-size allows {limit}")
    return stored
