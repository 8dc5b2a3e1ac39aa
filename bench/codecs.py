#!/usr/bin/env python3
"""Compare ways to compress real tag lists: mean stored bytes, and µs to compress and to decompress.

usage: python bench/codecs.py [DIRECTORY OF LISTS] [--rounds N]

Lists of similar size are one class.  In each round every way does every list of a class, one way after another, so that
a slow moment of the machine hits all of them; the median of the rounds is printed.
"""

import argparse
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from tagfs.codec import ZSTD

Way = tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]

OURS = "zstd as tagfs writes it"
MOST = 64 << 20
"""Plain bytes of a list, at most."""

CLASSES = ((512, 2048), (2048, 8192), (8192, 32768), (32768, 131072), (131072, 1 << 20))
"""Plain bytes: from, up to."""


def gzip_at(level: int) -> Way:
    def encode(plain: bytes) -> bytes:
        squeezer = zlib.compressobj(level, zlib.DEFLATED, 31)
        return squeezer.compress(plain) + squeezer.flush()

    return f"gzip -{level}", encode, lambda stored: zlib.decompress(stored, 31)


def zstd_at(level: int) -> Way:
    encode = zstandard.ZstdCompressor(level=level, write_checksum=True).compress
    return f"zstd -{level}", encode, zstandard.ZstdDecompressor().decompress


def measure(way: Way, lists: list[bytes]) -> tuple[float, float, float]:
    """(mean stored bytes, µs a list to compress, µs a list to decompress)."""
    _, encode, decode = way
    start = time.perf_counter()
    stored = [encode(plain) for plain in lists]
    middle = time.perf_counter()
    decoded = [decode(one) for one in stored]
    end = time.perf_counter()
    if decoded != lists:
        raise SystemExit(f"{way[0]} does not give back what it was given")
    scale = 1e6 / len(lists)
    return statistics.mean(map(len, stored)), (middle - start) * scale, (end - middle) * scale


def main() -> None:
    examples = Path(__file__).resolve().parent.parent / "examples" / "official-images"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=examples)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    every = [path.read_bytes() for path in sorted(arguments.directory.glob("*.txt"))]
    classes = [[plain for plain in every if low <= len(plain) < high] for low, high in CLASSES]
    classes = [lists for lists in classes if lists]
    ways = [
        gzip_at(6),
        gzip_at(9),
        (OURS, ZSTD.encode, lambda stored: ZSTD.decode(stored, MOST)),
        *map(zstd_at, (1, 3, 9, 19)),
    ]
    results: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(arguments.rounds):
        for number, lists in enumerate(classes):
            for way in ways:
                results.setdefault((way[0], number), []).append(measure(way, lists))
    heads = [f"{len(lists)} lists of {statistics.mean(map(len, lists)) / 1024:.1f} KiB" for lists in classes]
    print("|  | " + " | ".join(heads) + " |")
    print("|---" * (len(classes) + 1) + "|")
    for name, _, _ in ways:
        cells = []
        for number in range(len(classes)):
            size, squeeze, expand = (statistics.median(column) for column in zip(*results[name, number], strict=True))
            cells.append(f"{size:.0f}  {squeeze:.0f}/{expand:.0f}")
        shown = f"**{name}**" if name == OURS else name
        print(f"| {shown} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
