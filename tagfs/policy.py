"""Policy: how a store's lists are stored: from which size on compressed, with what, and how large at most.  Pure.

Owns: the defaults; which codecs belong to which format.
Does not know: files.
"""

from typing import NamedTuple

from tagfs import sentinel
from tagfs.codec import CODECS, GZIP, PLAIN, ZSTD, Codec, named

DEFAULT_THRESHOLD = 4096
"""Bytes: one block of a disk; below it compression saves nothing there."""

DEFAULT_LIST_LIMIT = 64 << 20
"""Bytes of one plain list."""


class Policy(NamedTuple):
    """How lists are stored: `compressed` from `threshold` plain bytes on, none over `list_limit` plain bytes."""

    compressed: Codec = ZSTD
    threshold: int = DEFAULT_THRESHOLD
    list_limit: int = DEFAULT_LIST_LIMIT

    def codec_for(self, size: int) -> Codec:
        return self.compressed if size >= self.threshold else PLAIN


def codec_named(name: str, format_: int) -> Codec:
    """The codec that a setting names; `auto` is the format's own."""
    if name == "auto":
        return GZIP if format_ == sentinel.FLUX_FORMAT else ZSTD
    return named(name)


def codecs_of(format_: int) -> tuple[Codec, ...]:
    """The codecs whose variants belong to a store's format."""
    return (PLAIN, GZIP) if format_ == sentinel.FLUX_FORMAT else CODECS
