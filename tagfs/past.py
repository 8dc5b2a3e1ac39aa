"""Past: the lists as they were last told, so that it can be said what a change did to them.  Pure.

Owns: the old versions, packed, within a bound.
Does not know: how a change is noticed, who is told.
Measured by `bench/changes.py`: 5,000 lists of 400 tags.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tagfs import taglist
from tagfs.codec import ZSTD
from tagfs.names import RepositoryKey

BUDGET = 64 << 20
"""Bytes of packed lists that are kept; of what is beyond, only the revision is."""

_REVISION = "sha256:"


@dataclass(frozen=True, slots=True)
class Known:
    """A version of a list: `revision` is the digest, and `packed` the bytes; None where it could not be read, and
    `packed` also where there was no room."""

    identity: tuple[int, ...]
    digest: bytes | None
    packed: bytes | None

    @property
    def revision(self) -> str | None:
        return None if self.digest is None else _REVISION + self.digest.hex()

    def plain(self) -> bytes | None:
        return None if self.packed is None else ZSTD.decode(self.packed, 1 << 31)


class Past:
    """What is known of each list."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._known: dict[RepositoryKey, Known] = {}
        # INVARIANT: the bytes of all that is packed.
        self.size = 0

    def get(self, key: RepositoryKey) -> Known | None:
        return self._known.get(key)

    def __iter__(self) -> Iterator[RepositoryKey]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, key: RepositoryKey, identity: tuple[int, ...], plain: bytes | None) -> None:
        """Take note of a list; `plain` None where it cannot be read."""
        self.drop(key)
        digest = packed = None
        if plain is not None:
            digest = bytes.fromhex(taglist.revision(plain).removeprefix(_REVISION))
            # A copy: the encoder made room for what does not compress, and holes of that size would stay in between.
            packed = bytes(memoryview(ZSTD.encode(plain)))
            if self.size + len(packed) > self._budget:
                packed = None
        self._known[key] = Known(identity, digest, packed)
        self.size += len(packed or b"")

    def drop(self, key: RepositoryKey) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self.size -= len(known.packed or b"")
